"""Statistics of a float model's tensors over a data set, in one pass and constant memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mnnq import _native
from mnnq.errors import InputError, QuantizationError
from mnnq.ir.model import Model
from mnnq.quantization.offline.config import OfflineConfig, RangeMethod
from mnnq.quantization.offline.dataset import Dataset, Feeds
from mnnq.quantization.offline.equalize import equalize
from mnnq.quantization.offline.layout import CONVOLUTIONS, match_skips
from mnnq.quantization.offline.products import ChannelRanges
from mnnq.runtime.session import InferenceSession
from mnnq.writer.to_mnn import to_bytes

_T = TypeVar("_T")

#: Told how far a stage is: its name, units done, units in all.
Progress = Callable[[str, int, int], None]

#: Samples that the equalization of channels looks at.
EQUALIZATION_SAMPLES = 12

#: Samples whose means per channel are kept, for the correction of biases.
MEAN_SAMPLES = 24

#: Samples that one task of an executor takes.
_SHARD = 16


@dataclass
class Calibration:
    """Statistics of the float tensors of a model over samples.

    Attributes
    ----------
    model
        The float model whose tensors were counted: the one given, with its channels evened out.
    statistics
        What was counted, by tensor.
    inputs
        Float graph inputs.
    samples
        Number of samples.
    notes
        What was changed in the model, one line each.
    """

    model: Model
    statistics: _native.NativeStatistics
    inputs: tuple[str, ...]
    samples: int
    notes: tuple[str, ...] = ()
    #: What was derived from the statistics, by what it depends on: models that differ in what stays float share it.
    derived: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def tensors(self) -> list[str]:
        """Names of the tensors counted, those that were never computed apart."""
        return [name for name in self.statistics.tensors if self.statistics.summary(name)["count"]]

    def once(self, key: Hashable, compute: Callable[[], _T]) -> _T:
        """What `compute` returns, computed for each key only once."""
        if key not in self.derived:
            self.derived[key] = compute()
        found: _T = self.derived[key]
        return found

    def to_bytes(self) -> bytes:
        """The statistics as bytes, for other processes of the same version."""
        return self.statistics.state()


def open_session(model: Model, threads: int | None) -> InferenceSession:
    """A session of a model in memory."""
    options = {} if threads is None else {"threads": threads}
    return InferenceSession(to_bytes(model), options)


def limited(dataset: Dataset, count: int | None) -> Iterator[Feeds]:
    """The first samples of a data set, or all."""
    return itertools.islice(iter(dataset), count)


def checked_feeds(session: InferenceSession, sample: Feeds, index: int) -> dict[str, npt.NDArray[Any]]:
    """A sample as the native session takes it.

    Raises
    ------
    InputError
        The sample is not a mapping, or an array does not fit or holds NaN; the message has its number.
    """
    if not isinstance(sample, Mapping):
        msg = f"sample {index} is {type(sample).__name__}, wanted a mapping of input names to arrays"
        raise InputError(msg)
    try:
        feeds = {name: session.feed(name, value) for name, value in sample.items()}
        for name, array in feeds.items():
            if array.dtype == np.float32 and np.isnan(array).any():
                msg = f"input {name!r} holds NaN"
                raise InputError(msg, key=name)
        return feeds
    except InputError as error:
        error.message = f"sample {index}: {error.message}"
        raise


def float_tensors(session: InferenceSession, sample: Feeds) -> list[str]:
    """Names of the float tensors that a session computes, inputs included, in order."""
    found: dict[str, None] = {}

    def see(name: str, array: npt.NDArray[Any]) -> None:
        if array.dtype == np.float32:
            found[name] = None

    session.observe(sample, see)
    return list(found)


def calibrate(
    model: Model,
    dataset: Dataset,
    config: OfflineConfig | None = None,
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Run the float model over the data and collect the statistics that every range method needs.

    Parameters
    ----------
    model
        A float model.
    dataset
        Samples.
    config
        `max_samples`, `threads` and `momentum` matter; with `compat` and ``"kl"`` the data is gone through twice, as
        MNN's histograms need their range beforehand.
    executor
        Runs shards of the data elsewhere, e.g. a ``ProcessPoolExecutor`` or what Dask's client gives for its
        ``get_executor``. The result is the same as without one.
    progress
        Told how far it is.

    Raises
    ------
    InputError
        A sample does not fit the model, naming its number.
    QuantizationError
        There are no samples, or a tensor is not finite, naming it.
    """
    config = config or OfflineConfig()
    total = len(dataset) if config.max_samples is None else min(len(dataset), config.max_samples)
    first = next(iter(dataset), None)
    if total == 0 or first is None:
        msg = "there are no calibration samples"
        raise QuantizationError(msg)
    model, notes = _prepare(model, dataset, config)
    session = open_session(model, config.threads)
    names = float_tensors(session, checked_feeds(session, first, 0))
    inputs = tuple(name for name in names if name in model.inputs)
    channels = sorted(_convolution_inputs(model) & set(names)) if config.bias_correction else []
    job = _Job(to_bytes(model) if executor else b"", names, config.momentum, {}, channels)
    found = _pass(job, session, limited(dataset, total), total, executor, progress)
    if config.compat and config.feature_method is RangeMethod.KL:
        limits = {name: _magnitude(found, name) for name in names}
        job = replace(job, limits=limits)
        found = _pass(job, session, limited(dataset, total), total, executor, progress)
    return Calibration(model, found, inputs, int(found.samples), notes)


def _convolution_inputs(model: Model) -> set[str]:
    return {op.inputs[0] for op in model.ops if op.type in CONVOLUTIONS and len(op.inputs) == 1}


def channel_means(
    calibration: Calibration, dataset: Dataset, threads: int | None
) -> dict[str, npt.NDArray[np.float64]]:
    """Mean of each channel of the inputs of convolutions, from the calibration if it has kept them."""
    names = _convolution_inputs(calibration.model) & set(calibration.tensors)
    try:
        return {name: calibration.statistics.channel_statistics(name)[0] for name in names}
    except KeyError:
        found = channel_statistics(calibration.model, limited(dataset, MEAN_SAMPLES), names, threads)
        return {name: numbers[0] for name, numbers in found.items()}


def _prepare(model: Model, dataset: Dataset, config: OfflineConfig) -> tuple[Model, tuple[str, ...]]:
    """The model with its channels evened out, and what was done."""
    if not config.equalization or config.compat:
        return model, ()
    names = {name for op in model.ops if op.type in CONVOLUTIONS for name in (op.inputs[0], op.outputs[0])}
    found = channel_statistics(model, limited(dataset, EQUALIZATION_SAMPLES), names, config.threads)
    ranges = {
        name: ChannelRanges(low.astype(np.float64), high.astype(np.float64))
        for name, (_, low, high) in found.items()
    }
    even = model.copy()
    notes = equalize(even, ranges, match_skips(model, config.skip))
    return (even, tuple(notes)) if notes else (model, ())


def _magnitude(statistics: _native.NativeStatistics, name: str) -> float:
    summary = statistics.summary(name)
    largest = max(abs(summary["min"]), abs(summary["max"]))
    # MNN takes tensors below this for invalid.
    return largest if largest > 1e-5 else 0.0


@dataclass(frozen=True)
class _Job:
    """What a shard is told; it can travel to another process."""

    model: bytes
    names: list[str]
    momentum: float
    limits: dict[str, float]
    channels: list[str]

    def observe(
        self,
        session: InferenceSession,
        samples: Iterable[Feeds],
        start: int = 0,
        seen: Callable[[int], None] = lambda index: None,
    ) -> _native.NativeStatistics:
        """Statistics of samples, the first of which has the number `start`."""
        found = self.fresh(start)
        whole = found
        for index, sample in enumerate(samples, start):
            if index == MEAN_SAMPLES and index > start:
                found = self.fresh(index)
            seen(index)
            found.observe(session.native, checked_feeds(session, sample, index))
        if found is not whole:
            whole.merge(found)
        return whole

    def fresh(self, start: int) -> _native.NativeStatistics:
        """Statistics of no samples, for samples from a number on."""
        channels = self.channels if start < MEAN_SAMPLES else []
        return _native.NativeStatistics(self.names, channels, momentum=self.momentum, limits=self.limits)


def _pass(
    job: _Job,
    session: InferenceSession,
    samples: Iterator[Feeds],
    total: int,
    executor: Executor | None,
    progress: Progress | None,
) -> _native.NativeStatistics:
    tell = progress or (lambda *_: None)
    found = job.fresh(0)
    if executor is None:
        # The same shards as with an executor, so that averaged ranges agree to the last bit.
        while True:
            lazily, first = itertools.islice(samples, _SHARD), int(found.samples)
            part = job.observe(session, lazily, first, lambda index: tell("calibrate", index, total))
            if not part.samples:
                break
            found.merge(part)
        tell("calibrate", total, total)
        return found
    pending: list[Any] = []
    done = 0

    def collect(count: int) -> None:
        nonlocal done
        while len(pending) > count:
            # In order: averaged ranges depend on it.
            part = _native.NativeStatistics.from_state(pending.pop(0).result())
            found.merge(part)
            done += int(part.samples)
            tell("calibrate", done, total)

    for start, shard in _shards(samples):
        pending.append(executor.submit(_observe_shard, job, start, shard))
        # Few shards wait at a time, so that memory does not grow with the data.
        collect(8)
    collect(0)
    _worker_session.cache_clear()
    return found


def _shards(samples: Iterable[Feeds]) -> Iterator[tuple[int, list[dict[str, npt.NDArray[Any]]]]]:
    iterator, start = iter(samples), 0
    while shard := [dict(sample) for sample in itertools.islice(iterator, _SHARD)]:
        yield start, shard
        start += len(shard)


def _observe_shard(job: _Job, start: int, samples: list[dict[str, npt.NDArray[Any]]]) -> bytes:
    """Statistics of some samples as bytes: what runs in another process."""
    return job.observe(_worker_session(job.model), samples, start).state()


@lru_cache(maxsize=1)
def _worker_session(model: bytes) -> InferenceSession:
    """The session of this process: all shards of a job have the same model."""
    return InferenceSession(model, {"threads": 1})


def channel_statistics(
    model: Model, samples: Iterable[Feeds], names: Iterable[str], threads: int | None
) -> dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Mean, smallest and largest value of each channel of some tensors over samples."""
    session = open_session(model, threads)
    found = _native.NativeStatistics([], list(names))
    for index, sample in enumerate(samples):
        found.observe(session.native, checked_feeds(session, sample, index))
    return {name: found.channel_statistics(name) for name in names}
