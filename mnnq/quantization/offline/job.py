"""The stages of an offline quantization in their order."""

from __future__ import annotations

import time
from concurrent.futures import Executor
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from mnnq.errors import QuantizationError
from mnnq.ir.model import Model, Op
from mnnq.quantization.offline.calibration import (
    Calibration,
    Progress,
    calibrate,
    channel_statistics,
    limited,
)
from mnnq.quantization.offline.check import Check, compare_models
from mnnq.quantization.offline.config import OfflineConfig
from mnnq.quantization.offline.dataset import Dataset
from mnnq.quantization.offline.layout import CONVOLUTIONS, COPIES, STORED, Layout, match_skips, plan_layout
from mnnq.quantization.offline.ranges import TensorQuant, choose_codes, is_relu_sum, one_sided, tensor_codes
from mnnq.quantization.offline.report import (
    OfflineLayer,
    OfflineOutput,
    OfflineReport,
    OfflineResult,
    OfflineTensor,
)
from mnnq.quantization.offline.tables import put_table, table_function
from mnnq.quantization.offline.weights import WeightError, bias_of, mean_error, quantize_weights

#: Signal to noise ratio, in dB, from which codes are good enough for an output.
_OUTPUT_DB = 42.0

#: Largest bias of a depthwise convolution in units of its sums.
_LARGEST_BIAS = 2.0**22

#: Samples of the bias correction.
_BIAS_SAMPLES = 24

#: Description of a tensor that stays float.
_FLOAT: TensorQuant = {"scale": 0.0, "zero": 0.0, "min": -128.0, "max": 127.0, "type": "DT_FLOAT"}

#: Layers that a repair leaves float at once, as a share of those that are int8.
_REPAIR_SHARE = 0.06


def quantize_offline(
    model: Model,
    dataset: Dataset,
    config: OfflineConfig | None = None,
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> OfflineResult:
    """Quantize a float model to static int8; the model given is not changed.

    Parameters
    ----------
    model
        What `mnnq.load` returned.
    dataset
        Calibration samples: sized, and iterable again and again.
    config
        What to do.
    executor
        Where to run shards of the calibration; see `calibrate`.
    progress
        Told how far each stage is.

    Raises
    ------
    ConfigError
        An option is wrong, or names no operator.
    InputError
        A sample does not fit the model.
    QuantizationError
        The data or the weights cannot be used, or the quantized model failed its check: the message names the layers
        to leave float.
    """
    config = config or OfflineConfig()
    if model.imported is not None:
        msg = "the source is quantized already; load it with qdq='float' (--qdq float) to choose scales anew"
        raise QuantizationError(msg)
    match_skips(model, config.skip)
    start = time.perf_counter()
    found = calibrate(model, dataset, config, executor=executor, progress=progress)
    spent = time.perf_counter() - start
    result = quantize_calibrated(model, found, dataset, config, progress=progress)
    seconds = {"calibrate": spent, **result.report.seconds}
    return OfflineResult(result.model, replace(result.report, seconds=seconds))


def quantize_calibrated(
    model: Model,
    calibration: Calibration,
    dataset: Dataset,
    config: OfflineConfig | None = None,
    *,
    progress: Progress | None = None,
) -> OfflineResult:
    """Quantize with statistics that are there already; the data serves bias correction and the check.

    Raises
    ------
    ConfigError, InputError, QuantizationError
        As `quantize_offline`.
    """
    config = config or OfflineConfig()
    skip = match_skips(model, config.skip)
    attempt = _attempt(model, calibration, dataset, config, skip, progress)
    fixed: list[str] = []
    while config.fix and attempt.failed and (more := _repair(attempt)):
        fixed.extend(more)
        skip |= set(more)
        attempt = _attempt(model, calibration, dataset, config, skip, progress)
    report = replace(attempt.report, fixed=tuple(fixed))
    if attempt.failed and not config.force:
        worst = ", ".join(
            f"{layer.name} ({layer.sqnr_db:.1f} dB)" for layer in report.worst() if layer.sqnr_db is not None
        )
        output = min(report.outputs, key=lambda o: o.sqnr_db)
        advice = ", ".join(_repair(attempt)) or "none"
        msg = (
            f"output {output.name!r} has a signal to noise ratio of {output.sqnr_db:.1f} dB, wanted "
            f"{config.min_sqnr_db:g}; worst layers: {worst}; leave float: {advice} (or fix=True, or force=True)"
        )
        raise QuantizationError(msg)
    return OfflineResult(attempt.model, report)


class _Attempt:
    """A quantized model and what is known of it."""

    def __init__(self, model: Model, report: OfflineReport, config: OfflineConfig) -> None:
        self.model = model
        self.report = report
        worst = report.sqnr_db
        self.failed = worst is not None and not worst >= config.min_sqnr_db


def _attempt(
    model: Model,
    calibration: Calibration,
    dataset: Dataset,
    config: OfflineConfig,
    skip: set[str],
    progress: Progress | None,
) -> _Attempt:
    tell = progress or (lambda *_: None)
    seconds: dict[str, float] = {}
    start = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal start
        now = time.perf_counter()
        seconds[stage] = now - start
        start = now

    model = calibration.model
    result = model.copy()
    tell("quantize", 0, 1)
    floats = set(calibration.tensors)
    excluded = _sensitive_outputs(result, calibration, config) if config.keep_float else set()
    layout = plan_layout(result, floats, skip, excluded)
    codes = choose_codes(result, layout, calibration, config)
    errors = apply_codes(result, layout, codes, config)
    lap("quantize")
    shifts: dict[str, float] = {}
    if config.bias_correction and errors:
        shifts = correct_biases(model, result, layout, dataset, config)
        lap("bias correction")
    check = None
    if config.check_samples:
        tell("check", 0, 1)
        samples = limited(dataset, config.check_samples)
        check = compare_models(model, result, list(samples), config.threads)
        lap("check")
    report = _report(result, layout, codes, calibration, errors, check, shifts, seconds)
    return _Attempt(result, report, config)


def _sensitive_outputs(model: Model, calibration: Calibration, config: OfflineConfig) -> set[str]:
    """Tensors that are outputs of the model, up to copies, and that codes would distort."""
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


def apply_codes(
    model: Model, layout: Layout, codes: dict[str, TensorQuant], config: OfflineConfig
) -> dict[int, WeightError]:
    """Make the operators of a layout int8, in place; returns what became of weights, by ``id`` of the operator."""
    model.tensor_quant = {name: dict(info) for name, info in codes.items()}
    for name in _pinned(model, codes):
        model.tensor_quant[name] = dict(_FLOAT)
    errors: dict[int, WeightError] = {}
    for op in model.ops:
        stored = op.type in STORED and op.inputs[0] in codes and op.outputs[0] in codes
        if op.type in CONVOLUTIONS and id(op) in layout.integer:
            floor = _scale_floor(op, codes[op.inputs[0]], codes[op.outputs[0]])
            errors[id(op)] = quantize_weights(op, config.weight_method, config.weight_limit, floor)
            _annotate(op, codes[op.inputs[0]], codes[op.outputs[0]])
        elif stored and len(op.inputs) == 1:
            errors[id(op)] = quantize_weights(op, config.weight_method, config.weight_limit)
        elif id(op) in layout.integer and table_function(op) is not None:
            put_table(op, codes[op.inputs[0]], codes[op.outputs[0]])
        elif id(op) in layout.integer and is_relu_sum(op) and one_sided(codes[op.outputs[0]]):
            op.params["activationType"] = 0
    return errors


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
    """Tensors without codes beside tensors with codes: MNN would give them the codes of their neighbours."""
    found: set[str] = set()
    constants = {name for op in model.ops if op.type == "Const" for name in op.outputs}
    for op in model.ops:
        around = [name for name in (*op.inputs, *op.outputs) if name and name not in constants]
        if op.type not in CONVOLUTIONS and any(name in codes for name in around):
            found.update(name for name in around if name not in codes)
    return found


def _annotate(op: Op, source: TensorQuant, target: TensorQuant) -> None:
    """What readers that do not look at tensor descriptions need."""
    op.params["quanParameter"]["scaleIn"] = source["scale"]
    op.params["quanParameter"]["scaleOut"] = target["scale"]
    op.params["symmetricQuan"] = {
        "method": "DEFAULT",
        "nbits": 8,
        "zeroPoint": int(source["zero"]),
        "outputZeroPoint": int(target["zero"]),
        "clampMin": int(target["min"]),
        "clampMax": int(target["max"]),
        "outputDataType": "DT_INT8",
    }


def correct_biases(
    reference: Model, model: Model, layout: Layout, dataset: Dataset, config: OfflineConfig
) -> dict[str, float]:
    """Take the mean difference of each convolution's output off its bias, in place, by a few rounds over all layers.

    Returns
    -------
    The largest change of a bias of each operator, relative to the spread of its channel means.
    """
    ops = [op for op in model.ops if id(op) in layout.integer and op.type in CONVOLUTIONS]
    names = {op.inputs[0] for op in ops}
    samples = list(limited(dataset, _BIAS_SAMPLES))
    found = channel_statistics(reference, samples, names, config.threads)
    means = {name: numbers[0] for name, numbers in found.items()}
    float_ops = {id(op): other for op, other in zip(model.ops, reference.ops, strict=True)}
    shifts = {}
    for op in ops:
        shift = mean_error(op, float_ops[id(op)], means[op.inputs[0]])
        before = bias_of(op)
        op.params["bias"] = (before + shift).astype(np.float32)
        spread = float(np.std(before)) or 1.0
        shifts[op.name] = float(np.abs(shift).max(initial=0.0)) / spread
    return shifts


def _repair(attempt: _Attempt) -> list[str]:
    """Operators to leave float next: those that lose most against what comes in."""
    layers = [layer for layer in attempt.report.integer if layer.sqnr_db is not None]
    layers = [layer for layer in layers if layer.op_type in CONVOLUTIONS]
    count = max(1, int(len(layers) * _REPAIR_SHARE))
    worst = sorted(layers, key=lambda layer: layer.sqnr_db if layer.sqnr_db is not None else 0.0)
    return [layer.name for layer in worst[:count]]


def _report(
    model: Model,
    layout: Layout,
    codes: dict[str, TensorQuant],
    calibration: Calibration,
    errors: dict[int, WeightError],
    check: Check | None,
    shifts: dict[str, float],
    seconds: dict[str, float],
) -> OfflineReport:
    layers, tensors = [], []
    for op in model.ops:
        if op.type in ("Input", "Const") or not op.outputs or op.outputs[0] not in calibration.tensors:
            continue
        name = op.outputs[0]
        seen = check.tensors.get(name) if check is not None else None
        info = codes.get(name)
        overflow = None
        if info is not None:
            numbers = (info["scale"], int(info["zero"]), int(info["min"]), int(info["max"]))
            overflow = calibration.statistics.error(name, *numbers)[2]
        error = errors.get(id(op))
        layers.append(
            OfflineLayer(
                op.name,
                op.type,
                id(op) in layout.integer,
                layout.reasons.get(id(op)),
                None if error is None else error.sqnr_db,
                None if seen is None else seen.cosine,
                None if seen is None else seen.sqnr_db,
                overflow,
                shifts.get(op.name),
            )
        )
    for name, info in codes.items():
        summary = calibration.statistics.summary(name)
        bounds = (int(info["zero"]), int(info["min"]), int(info["max"]))
        tensors.append(OfflineTensor(name, info["scale"], *bounds, summary["min"], summary["max"]))
    outputs = (
        []
        if check is None
        else [(name, check.outputs[name]) for name in model.outputs if name in check.outputs]
    )
    return OfflineReport(
        tuple(layers),
        tuple(tensors),
        tuple(OfflineOutput(name, seen.cosine, seen.sqnr_db) for name, seen in outputs),
        calibration.samples,
        check.samples if check is not None else 0,
        sum(error.bytes_before for error in errors.values()),
        sum(error.bytes_after for error in errors.values()),
        (),
        calibration.notes,
        seconds,
    )
