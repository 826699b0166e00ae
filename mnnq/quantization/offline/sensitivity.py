"""Which layers to leave float, by what each does to the outputs: models are built without it and run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.ir.model import Model, Op
from mnnq.quantization.offline.build import Builder
from mnnq.quantization.offline.calibration import checked_feeds, open_session
from mnnq.quantization.offline.dataset import Dataset
from mnnq.quantization.offline.layout import CONVOLUTIONS

#: Samples that a model is judged by.
_SAMPLES = 8

#: Sets of layers that are tried on their own.
_CANDIDATES = 24

#: Share of the noise that a further set of layers must take away to be worth it.
_WORTH = 0.05

#: Sets in a row that were not worth it, after which the search ends.
_PATIENCE = 4

#: Share of the noise that must be left at most for layers to stay float unasked.
_GAIN = 0.6


@dataclass(frozen=True)
class Noise:
    """Noise of the outputs over samples, relative to their power.

    Attributes
    ----------
    worst
        That of the worst output.
    total
        Sum over the outputs.
    """

    worst: float
    total: float

    @property
    def sqnr_db(self) -> float:
        """Signal to noise ratio of the worst output, in dB."""
        return float("inf") if self.worst == 0 else float(-10 * np.log10(self.worst))


class Trials:
    """Builds models with some layers float and measures the noise of their outputs.

    Parameters
    ----------
    builder
        Makes the models.
    dataset
        Samples; the first few are used.
    skip
        Operators that stay float in all models.
    first, count
        First sample used, and how many.
    """

    def __init__(
        self,
        builder: Builder,
        dataset: Dataset,
        skip: set[str],
        *,
        first: int = 0,
        count: int = _SAMPLES,
    ) -> None:
        self._builder, self._skip = builder, frozenset(skip)
        self._threads = builder.config.threads
        session = open_session(builder.calibration.model, self._threads)
        samples = itertools.islice(iter(dataset), first, first + count)
        self._feeds = [checked_feeds(session, x, i) for i, x in enumerate(samples, first)]
        self._wanted = [_floats(session.run(None, feeds)) for feeds in self._feeds]
        self._known: dict[frozenset[str], Noise] = {}

    def noise(self, names: frozenset[str]) -> Noise:
        """The noise with these operators float too."""
        if names not in self._known:
            self._known[names] = self.measure(self._builder.build(self._skip | names).model)
        return self._known[names]

    def measure(self, model: Model) -> Noise:
        """The noise of a model's outputs."""
        session = open_session(model, self._threads)
        power, lost = np.zeros(len(self._wanted[0])), np.zeros(len(self._wanted[0]))
        for feeds, wanted in zip(self._feeds, self._wanted, strict=True):
            for index, (a, b) in enumerate(zip(wanted, _floats(session.run(None, feeds)), strict=True)):
                power[index] += np.square(a).sum()
                lost[index] += np.square(a - b).sum()
        relative = lost / np.maximum(power, 1e-30)
        relative = np.where(np.isfinite(relative), relative, np.inf)
        return Noise(float(relative.max(initial=0.0)), float(relative.sum()))


def _floats(arrays: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[np.float64]]:
    return [array.astype(np.float64) for array in arrays if array.dtype.kind == "f"]


def candidates(model: Model, integer: Sequence[str], added: Mapping[str, float]) -> list[frozenset[str]]:
    """Sets of layers worth a trial: each layer on codes with those whose results it reads, so that the codes between go.

    Of many, the first layers of the model, where noise passes through everything, and those that add most noise. The layers that
    give the outputs are a set of their own.

    Parameters
    ----------
    integer
        Names of the layers on codes, in order.
    added
        Noise that a layer adds, by name.
    """
    known = set(integer)
    producer = {name: op for op in model.ops for name in op.outputs}
    found: dict[frozenset[str], str] = {}
    for op in model.ops:
        if op.name not in known:
            continue
        before = {source.name for source in _sources(op, producer)} & known
        found.setdefault(frozenset({op.name, *before} if len(before) <= 2 else {op.name}), op.name)
    tails = {source.name for name in model.outputs for source in _before(name, producer)} & known
    sets = list(found)
    if tails:
        found.setdefault(frozenset(tails), "")
    if len(found) <= _CANDIDATES:
        return list(found)
    first = sets[: _CANDIDATES // 2]
    rest = sorted(sets[len(first) :], key=lambda names: -added.get(found[names], 0.0))
    return list(
        dict.fromkeys([*first, *rest[: _CANDIDATES - len(first)], *([frozenset(tails)] if tails else [])])
    )


def _sources(op: Op, producer: Mapping[str, Op]) -> list[Op]:
    """The convolutions next before an operator."""
    return [source for name in op.inputs for source in _before(name, producer)]


def _before(tensor: str, producer: Mapping[str, Op]) -> list[Op]:
    """The convolutions that a tensor comes from, the next ones."""
    found: dict[int, Op] = {}
    seen: set[str] = set()
    todo = [tensor]
    while todo:
        name = todo.pop()
        source = producer.get(name)
        if source is None or name in seen:
            continue
        seen.add(name)
        if source.type in CONVOLUTIONS:
            found[id(source)] = source
        else:
            todo.extend(source.inputs)
    return list(found.values())


def quiet(trials: Trials, sets: Sequence[frozenset[str]], most: int) -> frozenset[str]:
    """The layers, `most` at most, that cause an outsized part of the noise; none where noise comes from everywhere."""
    usable = [names for names in sets if len(names) <= most]
    if not usable:
        return frozenset()
    start = trials.noise(frozenset()).total
    chosen = _grow(trials, usable, lambda names, _: len(names) <= most, lambda noise: False)
    return chosen if trials.noise(chosen).total <= _GAIN * start else frozenset()


def repair(trials: Trials, sets: Sequence[frozenset[str]], wanted_db: float) -> frozenset[str]:
    """Layers that, left float, bring the worst output to `wanted_db`, or all that help."""
    return _grow(trials, sets, lambda *_: True, lambda noise: noise.sqnr_db >= wanted_db)


def _grow(
    trials: Trials,
    sets: Sequence[frozenset[str]],
    allowed: Callable[[frozenset[str], Noise], bool],
    done: Callable[[Noise], bool],
) -> frozenset[str]:
    """Join sets, the most helpful alone first, as long as each takes noise away."""
    order = sorted(sets, key=lambda names: trials.noise(names).total)
    chosen: frozenset[str] = frozenset()
    best = trials.noise(chosen)
    failures = 0
    for names in order:
        if done(best) or failures >= _PATIENCE:
            break
        joined = chosen | names
        if joined == chosen or not allowed(joined, best):
            continue
        noise = trials.noise(joined)
        if noise.total <= (1 - _WORTH) * best.total:
            chosen, best, failures = joined, noise, 0
        else:
            failures += 1
    return chosen
