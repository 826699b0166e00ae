"""One quantized model from the statistics: layout, codes, weights, biases."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.ir.model import Model, Op
from mnnq.quantization.int8 import annotate
from mnnq.quantization.offline.calibration import Calibration, channel_means, limited
from mnnq.quantization.offline.config import OfflineConfig, RangeMethod
from mnnq.quantization.offline.dataset import Dataset, Feeds
from mnnq.quantization.offline.layout import CONVOLUTIONS, COPIES, STORED, Layout, plan_layout
from mnnq.quantization.offline.ranges import TensorQuant, choose_codes, is_relu_sum, one_sided, tensor_codes
from mnnq.quantization.offline.sequential import compensate, fitted
from mnnq.quantization.offline.tables import put_table, table_function
from mnnq.quantization.offline.weights import WeightError, bias_of, mean_error, quantize_weights

#: Signal to noise ratio, in dB, from which codes are good enough for an output.
_OUTPUT_DB = 36.0

#: Largest bias of a depthwise convolution in units of its sums.
_LARGEST_BIAS = 2.0**22

#: Description of a tensor that stays float.
_FLOAT: TensorQuant = {"scale": 0.0, "zero": 0.0, "min": -128.0, "max": 127.0, "type": "DT_FLOAT"}


@dataclass(frozen=True)
class Built:
    """A quantized model and what was decided on the way.

    Attributes
    ----------
    model
        The model.
    layout
        Tensors with codes and operators on codes; the keys are those of `model`.
    codes
        Codes by tensor.
    errors
        What became of weights, by ``id`` of the operator.
    shifts
        Largest relative change of a bias, by name of the operator.
    """

    model: Model
    layout: Layout
    codes: dict[str, TensorQuant]
    errors: dict[int, WeightError]
    shifts: dict[str, float]


class Builder:
    """Makes quantized models that differ in what stays float; what they have in common is computed once.

    Parameters
    ----------
    calibration
        The float model and its statistics.
    dataset
        The data, for the bias correction.
    """

    def __init__(self, calibration: Calibration, dataset: Dataset, config: OfflineConfig) -> None:
        self.calibration, self.config = calibration, config
        self._dataset = dataset
        self._means: dict[str, npt.NDArray[np.float64]] | None = None
        self._weights: dict[tuple[str, bytes], _Stored] = {}
        #: What errors of clipping weigh in the choice of a tensor's range, where it is more than usual.
        self.clipping: dict[str, float] = {}
        model = calibration.model
        self._excluded = _sensitive_outputs(model, calibration, config) if config.keep_float else set()

    def build(self, skip: AbstractSet[str], *, sequential: bool = False) -> Built:
        """Quantize all but the operators named."""
        model = self.calibration.model.copy()
        layout = plan_layout(model, set(self.calibration.tensors), set(skip), self._excluded)
        codes = choose_codes(model, layout, self.calibration, self.config, self.clipping)
        stored = apply_codes(model, layout, codes, self.config, self._weights)
        errors = {op: weights.error for op, weights in stored.items()}
        shifts: dict[str, float] = {}
        if sequential and errors:
            reference = self.calibration.model
            shifts = compensate(reference, model, layout, self._fitted(), self.config, errors)
        elif self.config.bias_correction and errors:
            shifts = correct_biases(self.calibration.model, model, layout, stored, self._input_means())
        return Built(model, layout, codes, errors, shifts)

    def _fitted(self) -> Iterator[Feeds]:
        """Samples of the sequential stage; the others can judge it."""
        return limited(self._dataset, fitted(self.calibration.samples))

    def _input_means(self) -> dict[str, npt.NDArray[np.float64]]:
        """Mean of each channel of the inputs of convolutions."""
        if self._means is None:
            self._means = channel_means(self.calibration, self._dataset, self.config.threads)
        return self._means


def _sensitive_outputs(model: Model, calibration: Calibration, config: OfflineConfig) -> set[str]:
    """Tensors that are outputs of the model, up to copies, and that even the best codes would distort."""
    config = replace(config, feature_method=RangeMethod.MSE, compat=False)
    found: set[str] = set()
    todo = list(model.outputs)
    producers = {name: op for op in model.ops for name in op.outputs}
    known = set(calibration.tensors)
    while todo:
        name = todo.pop()
        if name not in known or name in found:
            continue
        info = tensor_codes(calibration, [name], config)
        numbers = (info["scale"], int(info["zero"]), int(info["min"]), int(info["max"]))
        signal, noise, _ = calibration.statistics.error(name, *numbers)
        if signal > noise * 10 ** (_OUTPUT_DB / 10):
            continue
        found.add(name)
        op = producers.get(name)
        if op is not None and op.type in COPIES:
            todo.append(op.inputs[0])
    return found


@dataclass
class _Stored:
    """Quantized weights of an operator."""

    error: WeightError
    params: dict[str, Any]
    #: Mean of what they take off each channel of its output, once it is known.
    shift: npt.NDArray[np.float64] | None = None


def apply_codes(
    model: Model,
    layout: Layout,
    codes: dict[str, TensorQuant],
    config: OfflineConfig,
    known: dict[tuple[str, bytes], _Stored],
) -> dict[int, _Stored]:
    """Make the operators of a layout int8, in place; returns what became of weights, by ``id`` of the operator.

    Weights that are in `known`, by operator and smallest scales, are taken from there, others are added.
    """
    model.tensor_quant = {name: dict(info) for name, info in codes.items()}
    for name in _pinned(model, codes):
        model.tensor_quant[name] = dict(_FLOAT)
    errors: dict[int, _Stored] = {}
    for op in model.ops:
        stored = op.type in STORED and op.inputs[0] in codes and op.outputs[0] in codes
        if op.type in CONVOLUTIONS and id(op) in layout.integer:
            floor = _scale_floor(op, codes[op.inputs[0]], codes[op.outputs[0]])
            errors[id(op)] = _quantize(op, config, floor, known)
            annotate(op, codes[op.inputs[0]], codes[op.outputs[0]])
        elif stored and len(op.inputs) == 1:
            errors[id(op)] = _quantize(op, config, None, known)
        elif id(op) in layout.integer and table_function(op) is not None:
            put_table(op, codes[op.inputs[0]], codes[op.outputs[0]])
        elif id(op) in layout.integer and is_relu_sum(op) and one_sided(codes[op.outputs[0]]):
            op.params["activationType"] = 0
    return errors


def _quantize(
    op: Op,
    config: OfflineConfig,
    floor: npt.NDArray[np.float32] | None,
    known: dict[tuple[str, bytes], _Stored],
) -> _Stored:
    """Quantize the weights of an operator, or take what an earlier model has."""
    key = op.outputs[0], b"" if floor is None else floor.tobytes()
    if key not in known:
        error = quantize_weights(op, config.weight_method, config.weight_limit, floor, config.threads)
        known[key] = _Stored(error, op.params["quanParameter"])
    op.params["quanParameter"] = dict(known[key].params)
    op.params.pop("weight", None)
    return known[key]


def _scale_floor(op: Op, source: TensorQuant, target: TensorQuant) -> npt.NDArray[np.float32] | None:
    """Smallest scales of a depthwise convolution's channels.

    Runtimes turn its bias and zero point into whole numbers of input scale times weight scale; channels whose weights are
    almost zero beside their bias would overflow.
    """
    if op.type != "ConvolutionDepthwise":
        return None
    constant = np.abs(bias_of(op)) + abs(target["zero"]) * target["scale"]
    return np.asarray(constant / (source["scale"] * _LARGEST_BIAS), np.float32)


def _pinned(model: Model, codes: dict[str, TensorQuant]) -> set[str]:
    """Tensors without codes beside tensors with codes: MNN would give them the codes of their neighbours.

    What a function of one element reads or a ``Scale`` gives is only named where an operator that hands codes on touches it: MNN
    3.6.1 gives zeros for tensors of these two that are described as float.
    """
    found: set[str] = set()
    handed: set[str] = set()
    unnamed: set[str] = set()
    constants = {name for op in model.ops if op.type == "Const" for name in op.outputs}
    for op in model.ops:
        around = [name for name in (*op.inputs, *op.outputs) if name and name not in constants]
        if op.type in ("UnaryOp", "Scale"):
            unnamed.add(op.inputs[0] if op.type == "UnaryOp" else op.outputs[0])
        if op.type not in CONVOLUTIONS and any(name in codes for name in around):
            found.update(name for name in around if name not in codes)
            handed.update(around if op.type not in ("UnaryOp", "BinaryOp", "Scale") else ())
    return found - (unnamed - handed)


def correct_biases(
    reference: Model,
    model: Model,
    layout: Layout,
    stored: dict[int, _Stored],
    means: dict[str, npt.NDArray[np.float64]],
) -> dict[str, float]:
    """Take the mean difference of each convolution's output off its bias, in place.

    Parameters
    ----------
    stored
        What became of weights, by ``id`` of the operator.
    means
        Mean of each channel of the inputs of the convolutions.

    Returns
    -------
    The largest change of a bias of each operator, relative to the spread of its channel means.
    """
    ops = [op for op in model.ops if id(op) in layout.integer and op.type in CONVOLUTIONS]
    float_ops = {id(op): other for op, other in zip(model.ops, reference.ops, strict=True)}
    shifts = {}
    for op in ops:
        weights = stored[id(op)]
        if weights.shift is None:
            weights.shift = mean_error(op, float_ops[id(op)], means[op.inputs[0]])
        shift = weights.shift
        before = bias_of(op)
        op.params["bias"] = (before + shift).astype(np.float32)
        spread = float(np.std(before)) or 1.0
        shifts[op.name] = float(np.abs(shift).max(initial=0.0)) / spread
    return shifts
