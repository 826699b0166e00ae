"""The stages of an offline quantization in their order."""

from __future__ import annotations

import time
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from mnnq.errors import QuantizationError
from mnnq.ir.model import Model
from mnnq.quantization.offline.build import Builder, Built
from mnnq.quantization.offline.calibration import Calibration, Progress, calibrate, limited
from mnnq.quantization.offline.config import OfflineConfig
from mnnq.quantization.offline.dataset import Dataset
from mnnq.quantization.offline.layout import CONVOLUTIONS, match_skips
from mnnq.quantization.offline.measured_ranges import measured_clipping
from mnnq.quantization.offline.report import (
    OfflineLayer,
    OfflineOutput,
    OfflineReport,
    OfflineResult,
    OfflineTensor,
)
from mnnq.quantization.offline.sensitivity import Trials, candidates, quiet, repair
from mnnq.quantization.offline.sequential import MIN_SAMPLES, MOST_WORK, fitted, work
from mnnq.quantization.stepwise import has_weights
from mnnq.quantization.stored import describe
from mnnq.report.compare import CompareResult, compare


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
    if model.imported is not None and model.imported.native:
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
    job = _Job(calibration, dataset, config, progress)
    attempt = job.attempt(skip)
    if config.measures_ranges and attempt.check is not None and job.widen(attempt, skip):
        attempt = job.attempt(skip)
    fixed: list[str] = []
    share = 0.0 if config.compat else config.float_share
    if share and attempt.check is not None and (names := job.noisy(attempt, skip, share)):
        skip |= names
        fixed.extend(sorted(names))
        attempt = job.attempt(skip)
    if config.tries_sequential and job.gains_by_sequence(attempt, skip):
        job.sequential = True
        attempt = job.attempt(skip)
    more: frozenset[str] = frozenset()
    while attempt.failed and (config.fix or not config.force) and (more := job.repair(attempt, skip)):
        if not config.fix:
            break
        skip |= more
        fixed.extend(sorted(more))
        attempt = job.attempt(skip)
    report = _report(attempt, calibration)
    report = replace(report, fixed=tuple(fixed), sequential=job.sequential, notes=(*report.notes, *job.notes))
    if attempt.failed and not config.force:
        raise QuantizationError(_refusal(report, config, more))
    return OfflineResult(attempt.built.model, report)


def _refusal(report: OfflineReport, config: OfflineConfig, repair: frozenset[str]) -> str:
    """Why a model is refused, and what to do."""
    worst = ", ".join(
        f"{layer.name} ({layer.sqnr_db:.1f} dB)" for layer in report.worst() if layer.sqnr_db is not None
    )
    output = min(report.outputs, key=lambda o: o.sqnr_db)
    advice = ", ".join(sorted(repair)) or "none found"
    return (
        f"output {output.name!r} has a signal to noise ratio of {output.sqnr_db:.1f} dB, wanted "
        f"{config.min_sqnr_db:g}; worst layers: {worst}; leave float: {advice} (or fix=True, or force=True)"
    )


@dataclass(frozen=True)
class _Attempt:
    """A quantized model and what is known of it."""

    built: Built
    check: CompareResult | None
    seconds: dict[str, float]
    min_sqnr_db: float

    @property
    def failed(self) -> bool:
        """Whether the check says so; without one nothing failed."""
        if self.check is None:
            return False
        return not all(output.sqnr_db >= self.min_sqnr_db for output in self.check.outputs)


#: Samples that ranges are judged by.
_WIDENED = 4

#: Samples at most, of those that the sequential stage has not seen, that judge it.
_JUDGED = 24


class _Job:
    """Attempts on one set of statistics."""

    def __init__(
        self, calibration: Calibration, dataset: Dataset, config: OfflineConfig, progress: Progress | None
    ) -> None:
        self.calibration, self.dataset, self.config = calibration, dataset, config
        self.builder = Builder(calibration, dataset, config)
        self.tell = progress or (lambda *_: None)
        self.sequential = config.sequential is True
        self._sequence: dict[frozenset[str], Built] = {}
        self.seconds: dict[str, float] = {}
        self.notes: tuple[str, ...] = ()

    def _lap(self, stage: str, start: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def attempt(self, skip: set[str]) -> _Attempt:
        """Quantize and check."""
        start = time.perf_counter()
        self.tell("quantize", 0, 1)
        built = self._sequence.get(frozenset(skip)) if self.sequential else None
        if built is None:
            built = self.builder.build(skip, sequential=self.sequential)
        self._lap("quantize", start)
        check = None
        if self.config.check_samples:
            self.tell("check", 0, 1)
            start = time.perf_counter()
            samples = list(limited(self.dataset, self.config.check_samples))
            options = {} if self.config.threads is None else {"threads": self.config.threads}
            check = compare(self.calibration.model, built.model, samples, options=options)
            self._lap("check", start)
        return _Attempt(built, check, self.seconds, self.config.min_sqnr_db)

    def widen(self, attempt: _Attempt, skip: set[str]) -> bool:
        """Widen ranges whose clipping does harm; returns whether there are such."""
        start = time.perf_counter()
        self.tell("ranges", 0, 1)
        trials = Trials(self.builder, self.dataset, skip, count=_WIDENED)
        self.builder.clipping = measured_clipping(self.builder, attempt.built, trials)
        self._lap("ranges", start)
        return bool(self.builder.clipping)

    def gains_by_sequence(self, attempt: _Attempt, skip: set[str]) -> bool:
        """Whether the sequential stage takes noise away on samples that it has not seen."""
        if self.calibration.samples < MIN_SAMPLES or not attempt.built.errors:
            return False
        needed = work(self.calibration, attempt.built.layout, attempt.built.model)
        if needed > MOST_WORK:
            self.notes += (
                f"the sequential stage would take {needed:.0e} multiply-adds and was not tried; "
                "sequential=True asks for it",
            )
            return False
        start = time.perf_counter()
        self.tell("sequential", 0, 1)
        found = self.builder.build(skip, sequential=True)
        self._sequence[frozenset(skip)] = found
        judge = Trials(
            self.builder, self.dataset, skip, first=fitted(self.calibration.samples), count=_JUDGED
        )
        better = judge.measure(found.model).total < judge.measure(attempt.built.model).total
        self._lap("sequential", start)
        return better

    def noisy(self, attempt: _Attempt, skip: set[str], share: float) -> frozenset[str]:
        """Layers that cause most of the noise, up to a share of them."""
        layers = _layers(attempt)
        most = int(share * len(layers))
        if not most:
            return frozenset()
        start = time.perf_counter()
        self.tell("sensitivity", 0, 1)
        sets = candidates(attempt.built.model, layers, _added(attempt))
        found = quiet(Trials(self.builder, self.dataset, skip), sets, most)
        self._lap("sensitivity", start)
        return found

    def repair(self, attempt: _Attempt, skip: set[str]) -> frozenset[str]:
        """Layers to leave float so that the check passes, as far as they help; if none does, the worst one."""
        start = time.perf_counter()
        self.tell("repair", 0, 1)
        layers, added = _layers(attempt), _added(attempt)
        if not layers:
            return frozenset()
        sets = candidates(attempt.built.model, layers, added)
        found = repair(Trials(self.builder, self.dataset, skip), sets, self.config.min_sqnr_db)
        self._lap("repair", start)
        return found or frozenset({max(layers, key=lambda name: added.get(name, 0.0))})


def _layers(attempt: _Attempt) -> list[str]:
    """Convolutions on codes, in order."""
    built = attempt.built
    return [op.name for op in built.model.ops if id(op) in built.layout.integer and op.type in CONVOLUTIONS]


def _added(attempt: _Attempt) -> dict[str, float]:
    """Noise that each layer adds, by name of the operator."""
    layers = () if attempt.check is None else attempt.check.layers
    return {layer.node: float("inf") if layer.added is None else layer.added for layer in layers}


def _integer_share(built: Built, calibration: Calibration) -> float:
    """Share of the multiply-adds of layers with weights that run on codes."""
    counted = set(calibration.tensors)
    total = integer = 0.0
    for op in built.model.ops:
        if has_weights(op) and op.outputs[0] in counted:
            work = describe(op).shape[1] * float(calibration.statistics.summary(op.outputs[0])["count"])
            total += work
            integer += work * (id(op) in built.layout.integer)
    return integer / total if total else 0.0


def _report(attempt: _Attempt, calibration: Calibration) -> OfflineReport:
    built, check = attempt.built, attempt.check
    model, layout, codes, errors = built.model, built.layout, built.codes, built.errors
    tensors_seen = {} if check is None else {layer.error.name: layer.error for layer in check.layers}
    layers, tensors = [], []
    for op in model.ops:
        if op.type in ("Input", "Const") or not op.outputs or op.outputs[0] not in calibration.tensors:
            continue
        name = op.outputs[0]
        seen = tensors_seen.get(name)
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
                built.shifts.get(op.name),
            )
        )
    for name, info in codes.items():
        summary = calibration.statistics.summary(name)
        bounds = (int(info["zero"]), int(info["min"]), int(info["max"]))
        tensors.append(OfflineTensor(name, info["scale"], *bounds, summary["min"], summary["max"]))
    outputs = () if check is None else check.outputs
    return OfflineReport(
        tuple(layers),
        tuple(tensors),
        tuple(OfflineOutput(output.name, output.cosine, output.sqnr_db) for output in outputs),
        calibration.samples,
        check.samples if check is not None else 0,
        sum(error.bytes_before for error in errors.values()),
        sum(error.bytes_after for error in errors.values()),
        integer_share=_integer_share(attempt.built, calibration),
        notes=calibration.notes,
        seconds=attempt.seconds,
    )
