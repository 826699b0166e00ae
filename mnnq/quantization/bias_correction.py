"""Bias correction: the mean of every output channel of a quantized model is that of the float model.

Rounding errors of weights do not cancel where inputs have a mean: behind a ReLU, a mean error of a filter's weights
shifts the whole channel, and a chain of layers adds the shifts up. Layer by layer in the order of the graph, with
``x`` the input in the float model, ``x'`` the input in the quantized model, whose earlier layers are corrected
already, and means over samples and positions,

    bias_o <- bias_o + mean(W_o x) - mean(W'_o x')

so that the mean before the activation is exact on the samples. Padding is counted as what it is, zeros. Nothing but
biases changes: neither the size of the file nor its speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.errors import MnnqError
from mnnq.ir.model import Model, Op
from mnnq.quantization.stepwise import MEMORY_BUDGET, Step, Stepper
from mnnq.quantization.stored import float_weights
from mnnq.quantization.windows import Windows

Array = npt.NDArray[Any]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class BiasShift:
    """What the correction did to one layer.

    Attributes
    ----------
    name
        The operator.
    before
        Root mean square over channels of the error of the mean output, as it was, relative to the root mean square of
        the mean outputs. Earlier layers are corrected already.
    after
        The same with the new bias: what rounding it to 32 bits leaves.
    """

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class BiasReport:
    """What a correction did to a model.

    Attributes
    ----------
    layers
        One entry per corrected layer, in the order of the graph.
    samples
        Number of samples.
    sqnr_before, sqnr_after
        Signal to noise ratio of the model's outputs on the samples against the float model, in dB, before and
        after. None where it was not measured.
    """

    layers: tuple[BiasShift, ...]
    samples: int
    sqnr_before: float | None = None
    sqnr_after: float | None = None


def correct_bias(
    model: Model,
    float_model: Model,
    samples: Iterable[Mapping[str, Array]],
    *,
    threads: int | None = None,
    memory: int = MEMORY_BUDGET,
    measure: bool = False,
    progress: Progress | None = None,
) -> BiasReport:
    """Correct the biases of a quantized model in place.

    Parameters
    ----------
    model
        The quantized model; only ``bias`` of its convolutions changes.
    float_model
        The model it was made from, with the same layers.
    samples
        Real inputs of the model by name; 8 to 128 samples are enough. With `measure`, read twice.
    threads, memory
        As for `Stepper`.
    measure
        Measure the outputs before the correction too, which takes one more pass over the data.
    progress
        Called before each layer with (layers done, layers in all, name).

    Returns
    -------
    BiasReport
        The shift of each layer.

    Raises
    ------
    ConfigError
        There are no samples, or the models differ in their layers.
    InputError
        A sample does not fit the model.

    Examples
    --------
    >>> model = mnnq.load("model.onnx")  # doctest: +SKIP
    >>> small = mnnq.quantize_weights(model, bits=4, block=32, method="search")  # doctest: +SKIP
    >>> correct_bias(small, model, [{"input": x} for x in images])  # doctest: +SKIP
    """
    before = output_sqnr(model, float_model, samples, threads=threads, memory=memory) if measure else None
    shifts: list[BiasShift] = []
    with Stepper(float_model, model, samples, threads=threads, memory=memory) as stepper:
        total = stepper.layers
        for step in stepper:
            for layer in step.layers:
                exact_op, op = stepper.layer(layer)
                if progress is not None:
                    progress(len(shifts), total, op.name)
                try:
                    exact, actual = output_means(stepper, step, layer)
                except MnnqError as error:
                    error.node = error.node or op.name
                    raise
                shifts.append(shift_bias(op, exact_op, exact, actual))
        after = sqnr(stepper.outputs())
    if progress is not None:
        progress(total, total, "")
    return BiasReport(tuple(shifts), stepper.samples, before, after)


def shift_bias(op: Op, exact_op: Op, exact: Array, actual: Array) -> BiasShift:
    """Set the bias of `op` so that its mean output is that of `exact_op`.

    Parameters
    ----------
    exact, actual
        Mean outputs without bias, ``[channels]``: of the float layer, of the quantized layer.
    """
    wanted = exact + bias(exact_op)
    old = bias(op)
    new = (wanted - actual).astype(np.float32)
    power = float(np.sqrt(np.mean(np.square(wanted)))) or 1.0

    def error(value: Array) -> float:
        return float(np.sqrt(np.mean(np.square(actual + value - wanted)))) / power

    if not np.isfinite(new).all() or error(new) > error(old):
        return BiasShift(op.name, error(old), error(old))
    op.params["bias"] = new
    return BiasShift(op.name, error(old), error(new))


def bias(op: Op) -> npt.NDArray[np.float64]:
    """Bias of a convolution, zeros if it has none: ``[outputCount]``."""
    values = np.asarray(op.params.get("bias", ()), np.float64)
    return values if values.size else np.zeros(int(op.params["common"]["outputCount"]))


def output_means(stepper: Stepper, step: Step, layer: str) -> tuple[Array, Array]:
    """Mean output per channel, without bias and activation: of the float layer, of the quantized layer."""
    exact_op, op = stepper.layer(layer)
    if op.type.startswith("Deconvolution"):
        return _run_means(stepper, step, layer)
    windows = Windows.of(op)
    sums = [np.zeros(()), np.zeros(())]
    count = 0
    for exact, actual in step.inputs(layer):
        part, n = windows.tap_sums(exact)
        sums[0] = sums[0] + part
        sums[1] = sums[1] + (part if actual is exact else windows.tap_sums(actual)[0])
        count += n
    weights = [float_weights(exact_op), float_weights(op)]
    means = [
        _product(np.asarray(weight, np.float64), total / max(count, 1), windows.group)
        for weight, total in zip(weights, sums, strict=True)
    ]
    return means[0], means[1]


def _product(weight: Array, mean: Array, group: int) -> Array:
    """Apply weights ``[O, C / group * kh * kw]`` to mean inputs ``[C, kh, kw]``."""
    rows = weight.reshape(group, weight.shape[0] // group, -1)
    return np.asarray(np.einsum("gok,gk->go", rows, mean.reshape(group, -1))).reshape(-1)


def _run_means(stepper: Stepper, step: Step, layer: str) -> tuple[Array, Array]:
    """Mean outputs found by running the layer without bias and activation."""
    exact_op, op = stepper.layer(layer)
    sums = [np.zeros(()), np.zeros(())]
    count = 0
    runs = [stepper.linear(exact_op), stepper.linear(op)]
    for pair in step.inputs(layer):
        for side, x in enumerate(pair):
            y = runs[side](x)
            sums[side] = sums[side] + y.sum((0, *range(2, y.ndim)), dtype=np.float64)
        count += y.size // max(y.shape[1], 1)
    return sums[0] / max(count, 1), sums[1] / max(count, 1)


def sqnr(pairs: Iterable[tuple[list[Array], list[Array]]]) -> float:
    """Signal to noise ratio of outputs in dB; pairs of exact and actual outputs."""
    signal = noise = 0.0
    for exact, actual in pairs:
        for a, b in zip(exact, actual, strict=True):
            if a.dtype.kind == "f":
                signal += float(np.square(a, dtype=np.float64).sum())
                noise += float(np.square(b.astype(np.float64) - a).sum())
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal else float("-inf")


def output_sqnr(
    model: Model,
    float_model: Model,
    samples: Iterable[Mapping[str, Array]],
    *,
    threads: int | None = None,
    memory: int = MEMORY_BUDGET,
) -> float:
    """Signal to noise ratio of a model's outputs against the float model, in dB."""
    with Stepper(float_model, model, samples, threads=threads, memory=memory) as stepper:
        for _ in stepper:
            pass
        return sqnr(stepper.outputs())
