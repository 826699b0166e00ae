"""Weights and biases chosen layer by layer for the inputs that the int8 model really has."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mnnq import _native
from mnnq.ir.model import Model
from mnnq.quantization.bias_correction import output_means, shift_bias
from mnnq.quantization.calibrated import MIN_POSITIONS, POSITIONS_PER_INPUT, Compensation, collect
from mnnq.quantization.offline.calibration import Calibration
from mnnq.quantization.offline.config import OfflineConfig
from mnnq.quantization.offline.dataset import Feeds
from mnnq.quantization.offline.layout import CONVOLUTIONS, Layout
from mnnq.quantization.offline.weights import WeightError, describe_error, store
from mnnq.quantization.stepwise import Stepper
from mnnq.quantization.stored import describe, float_weights

#: Samples at most: the activations of all are kept at once, in memory or a file.
_SAMPLES = 64

#: Bytes of activations in memory; what goes beyond lies in a temporary file.
_MEMORY = 1 << 28

#: Samples from which some are kept to judge the result.
MIN_SAMPLES = 24

#: Settings of the error compensation; strongly damped, as noise of the codes is part of the inputs.
_SETTINGS = Compensation(damping=1.0)


#: Multiply-adds that the stage may take to be tried unasked: about half a minute on one thread.
MOST_WORK = 3e11


def work(calibration: Calibration, layout: Layout, model: Model) -> float:
    """Multiply-adds of the stage: covariances of the inputs, their factors, rounding with compensation.

    Parameters
    ----------
    model
        The model that the layout is of.
    """
    total = 0.0
    share = fitted(calibration.samples) / calibration.samples
    for op in model.ops:
        if id(op) not in layout.integer or op.type != "Convolution":
            continue
        common = op.params["common"]
        outputs, groups = int(common["outputCount"]), max(int(common.get("group", 1)), 1)
        columns = describe(op).shape[1]
        positions = calibration.statistics.summary(op.outputs[0])["count"] / outputs * share
        rows = min(positions, max(MIN_POSITIONS, POSITIONS_PER_INPUT * columns))
        total += columns**2 * (groups * (2 * rows + columns / 3) + outputs * (1 + 2 * _SETTINGS.sweeps))
    return total


def fitted(samples: int) -> int:
    """How many of so many samples the stage uses: three quarters, up to a limit; all where there are few."""
    return min(_SAMPLES, samples if samples < MIN_SAMPLES else samples * 3 // 4)


def compensate(
    reference: Model,
    model: Model,
    layout: Layout,
    samples: Iterable[Feeds],
    config: OfflineConfig,
    errors: dict[int, WeightError],
) -> dict[str, float]:
    """Choose weights and biases of the layers on codes in the order of the graph, in place.

    Rounding errors of a row are moved into weights that are still to be rounded, for the inputs as they are in the int8 model, whose
    earlier layers are final; then the mean error of each output channel is taken off its bias.

    Parameters
    ----------
    errors
        What became of weights; updated.

    Returns
    -------
    The mean error of each layer's output before its bias was corrected, relative to its mean outputs, by name.
    """
    shifts: dict[str, float] = {}
    with Stepper(reference, model, samples, threads=config.threads, memory=_MEMORY) as stepper:
        for step in stepper:
            for layer in step.layers:
                exact_op, op = stepper.layer(layer)
                if id(op) not in layout.integer or op.type not in CONVOLUTIONS:
                    continue
                if op.type == "Convolution":
                    inputs = collect(
                        op, step.inputs(layer), stepper.samples, hold_out=False, threads=config.threads
                    )
                    weights = np.require(float_weights(exact_op), np.float32, ["C", "A"])
                    found = _native.compensate_weights(
                        weights,
                        inputs.fitted,
                        bits=config.bits,
                        symmetric=True,
                        damping=_SETTINGS.damping,
                        by_variance=_SETTINGS.by_variance,
                        follow_float=_SETTINGS.follow_float,
                        sweeps=_SETTINGS.sweeps,
                        threads=config.threads,
                    )
                    annotation = {
                        key: op.params["quanParameter"][key]
                        for key in ("scaleIn", "scaleOut")
                        if key in op.params["quanParameter"]
                    }
                    limit = config.weight_limit
                    codes = np.clip(found["codes"], -limit, limit).reshape(weights.shape)
                    scales = found["scale"].reshape(-1)
                    store(op, codes, scales)
                    op.params["quanParameter"].update(annotation)
                    errors[id(op)] = describe_error(weights, codes, scales, errors[id(op)].bytes_before)
                exact, actual = output_means(stepper, step, layer)
                shifts[op.name] = shift_bias(op, exact_op, exact, actual).before
    return shifts
