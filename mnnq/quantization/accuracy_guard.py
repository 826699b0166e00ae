"""Keeping a metric: finds the smallest set of layers to leave out of quantization.

Three parts that know nothing of each other: an *evaluator* maps a model to a number (larger is better), a *ranker*
orders the layers by how much they hurt, and the *selection* chooses how many of them, and which, stay out. `guard` puts
them together for any ``build(skip) -> Model``; what it means to leave a layer out, float or 16 bits, is up to ``build``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from mnnq.data.dataset import Feeds
from mnnq.errors import ConfigError, QuantizationError
from mnnq.ir.model import Model

#: Quantizes with the named layers left out.
Build: TypeAlias = Callable[[frozenset[str]], Model]

#: Metric of a model; larger is better.
Evaluate: TypeAlias = Callable[[Model], float]


@dataclass(frozen=True)
class Trial:
    """One model that was tried.

    Attributes
    ----------
    skip
        Layers left out.
    metric
        Its metric.
    met
        Whether the metric is kept.
    seconds
        Time to build and evaluate it.
    """

    skip: frozenset[str]
    metric: float
    met: bool
    seconds: float


@dataclass(frozen=True)
class GuardProgress:
    """Where a search is.

    Attributes
    ----------
    done, expected
        Trials done, and how many there will be at most as things stand.
    best
        The best trial so far.
    seconds_left
        Estimate from the trials so far and the time limit.
    """

    done: int
    expected: int
    best: Trial
    seconds_left: float


Progress: TypeAlias = Callable[[GuardProgress], None]


@dataclass(frozen=True)
class GuardResult:
    """Outcome of a search.

    Attributes
    ----------
    model
        The best model found: of those that keep the metric one with the fewest layers left out, else the one with
        the best metric.
    best
        Its trial.
    reference
        Metric of the float model.
    target
        Smallest metric that was asked for.
    trials
        All trials in order.
    stopped
        Why the search ended early, or None.
    """

    model: Model
    best: Trial
    reference: float
    target: float
    trials: tuple[Trial, ...]
    stopped: str | None = None

    @property
    def met(self) -> bool:
        """Whether the metric is kept."""
        return self.best.met

    @property
    def skip(self) -> tuple[str, ...]:
        """Layers left out, sorted."""
        return tuple(sorted(self.best.skip))


@dataclass(frozen=True)
class GuardLimits:
    """Bounds of a search.

    Attributes
    ----------
    max_trials
        Models to try at most.
    max_seconds
        No new trial is begun after this time; None for no limit.
    """

    max_trials: int = 64
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.max_trials, bool) or not isinstance(self.max_trials, int) or self.max_trials < 1:
            msg = f"{self.max_trials!r} is not possible; use 1 or more"
            raise ConfigError(msg, key="max_trials")
        if self.max_seconds is not None and not self.max_seconds > 0:
            msg = f"{self.max_seconds!r} is not possible; use a number above 0"
            raise ConfigError(msg, key="max_seconds")


def parse_drop(text: str | float) -> float:
    """Largest drop of the metric, in its own unit: ``"0.5%"`` and 0.005 are half a percentage point of accuracy.

    Raises
    ------
    ConfigError
        It is no number, or negative.
    """
    try:
        drop = float(text[:-1]) / 100 if isinstance(text, str) and text.endswith("%") else float(text)
    except ValueError:
        drop = -1.0
    if not 0 <= drop < float("inf"):
        msg = f"{text!r} is not possible; use a drop such as 0.5% or 0.005"
        raise ConfigError(msg, key="max_drop")
    return drop


# -- ranking


def rank_by_trial(build: Build, evaluate: Evaluate, layers: Sequence[str]) -> list[str]:
    """Order layers by the metric gained when each alone is left out, largest gain first.

    Exact for single layers, but builds and evaluates one model per layer. Ties keep the order given.
    """
    gains = {layer: evaluate(build(frozenset({layer}))) for layer in layers}
    return sorted(layers, key=lambda layer: -gains[layer])


def rank_by_error(
    reference: Model, quantized: Model, data: Collection[Feeds], layers: Sequence[str]
) -> list[str]:
    """Order layers by how much noise each adds, most first: one pass over the data.

    The measure is the noise that a layer adds to that of its inputs (`mnnq.report.compare.LayerError.added`). Layers
    that were not compared come last, in the order given.
    """
    from mnnq.report.compare import compare

    noise: dict[str, float] = {}
    for layer in compare(reference, quantized, data).layers:
        added = float("inf") if layer.added is None else layer.added
        for name in (layer.node, layer.error.name):
            noise[name] = max(added, noise.get(name, 0.0))
    return sorted(layers, key=lambda name: -noise.get(name, -1.0))


# -- selection


@dataclass
class _Search:
    """Trials so far, and the best of them."""

    build: Build
    evaluate: Evaluate
    target: float
    limits: GuardLimits
    progress: Progress | None
    started: float = field(default_factory=lambda: time.monotonic())
    trials: list[Trial] = field(default_factory=list)
    known: dict[frozenset[str], Trial] = field(default_factory=dict)
    best: Trial | None = None
    model: Model | None = None
    stopped: str | None = None

    def try_out(self, skip: frozenset[str], expected: int) -> Trial | None:
        """Build and evaluate a model; None when a limit forbids it. What was tried before is not tried again."""
        if skip in self.known:
            return self.known[skip]
        if self.best is not None and self._exhausted():
            return None
        begun = time.monotonic()
        model = self.build(skip)
        metric = self.evaluate(model)
        trial = Trial(skip, metric, metric >= self.target, time.monotonic() - begun)
        self.trials.append(trial)
        self.known[skip] = trial
        if self.best is None or _better(trial, self.best):
            self.best, self.model = trial, model
        if self.progress is not None:
            self.progress(self._progress(expected))
        return trial

    def _exhausted(self) -> bool:
        if len(self.trials) >= self.limits.max_trials:
            self.stopped = f"{self.limits.max_trials} trials are done"
        elif self.limits.max_seconds is not None:
            typical = sum(trial.seconds for trial in self.trials) / len(self.trials)
            if time.monotonic() - self.started + typical > self.limits.max_seconds:
                self.stopped = f"the time limit of {self.limits.max_seconds:g} s"
        return self.stopped is not None

    def _progress(self, expected: int) -> GuardProgress:
        assert self.best is not None
        done = len(self.trials)
        total = max(done, min(done + expected, self.limits.max_trials))
        elapsed = time.monotonic() - self.started
        left = (total - done) * sum(trial.seconds for trial in self.trials) / done
        if self.limits.max_seconds is not None:
            left = min(left, max(self.limits.max_seconds - elapsed, 0.0))
        return GuardProgress(done, total, self.best, left)


def _better(one: Trial, other: Trial) -> bool:
    """Whether `one` is the better outcome."""
    if one.met != other.met:
        return one.met
    if one.met:
        return (len(one.skip), -one.metric) < (len(other.skip), -other.metric)
    return one.metric > other.metric


def select(
    build: Build,
    evaluate: Evaluate,
    ranking: Sequence[str] | Callable[[Model], Sequence[str]],
    target: float,
    *,
    reference: float | None = None,
    limits: GuardLimits | None = None,
    progress: Progress | None = None,
) -> GuardResult:
    """Find a small set of layers that, left out, brings the metric to `target`.

    With everything quantized the metric may do already. Else the shortest beginning of the ranking that does is found,
    by doubling its length and then halving the interval; after that halves, quarters and at last single layers of it
    are put back where the metric allows, the least sensitive first. The result cannot be shortened by any one layer (unless a limit
    ended the search); that no other set is smaller would take a trial per set to know. Whatever happens, the best
    model found so far is what is returned.

    Parameters
    ----------
    build
        Makes a model with the given layers left out.
    ranking
        Layers from most to least sensitive; or a function that makes it from the model with nothing left out, called
        only when it is needed.
    reference
        Metric of the float model, for the report.
    limits
        Bounds of the search.
    progress
        Called after each trial.
    """
    search = _Search(build, evaluate, target, limits or GuardLimits(), progress)
    first = search.try_out(frozenset(), 1)
    assert first is not None
    assert search.model is not None
    if not first.met:
        order = list(ranking(search.model) if callable(ranking) else ranking)
        if len(set(order)) < len(order):
            msg = "the ranking names a layer twice"
            raise QuantizationError(msg)
        _shorten(search, order, _grow(search, order))
    assert search.best is not None
    known = search.best.metric if reference is None else reference
    return GuardResult(search.model, search.best, known, target, tuple(search.trials), search.stopped)


def _grow(search: _Search, order: Sequence[str]) -> int | None:
    """Length of the shortest beginning of `order` that meets the target, found by doubling and halving."""
    short, long = 0, 0
    for length in _doubled(len(order)):
        trial = search.try_out(frozenset(order[:length]), max(len(order) - length, 1).bit_length() + length)
        if trial is None:
            return None
        if trial.met:
            long = length
            break
        short = length
    if not long:
        return None
    while long - short > 1:
        middle = (short + long) // 2
        trial = search.try_out(frozenset(order[:middle]), (long - short).bit_length() + middle)
        if trial is None:
            return None
        short, long = (short, middle) if trial.met else (middle, long)
    return long


def _doubled(count: int) -> Iterator[int]:
    length = 1
    while length < count:
        yield length
        length *= 2
    if count:
        yield count


def _shorten(search: _Search, order: Sequence[str], length: int | None) -> None:
    """Put layers back, the least sensitive first, as long as the target stays met: halves, quarters ... one by one."""
    if length is None:
        return
    kept = list(order[:length])
    size = len(kept) // 2
    while size >= 1:
        end = len(kept)
        while end > 0 and len(kept) > 1:
            part = kept[max(0, end - size) : end]
            trial = search.try_out(frozenset(kept) - frozenset(part), len(kept) // size)
            if trial is None:
                return
            if trial.met:
                kept = [layer for layer in kept if layer not in part]
            end -= len(part)
        size = min(size // 2, len(kept) // 2) if size > 1 else 0


def guard(
    build: Build,
    evaluate: Evaluate,
    reference: Model,
    max_drop: float,
    ranking: Sequence[str] | Callable[[Model], Sequence[str]],
    *,
    limits: GuardLimits | None = None,
    progress: Progress | None = None,
) -> GuardResult:
    """Quantize so that the metric falls at most `max_drop` below that of the float model.

    Parameters
    ----------
    build
        Quantizes with the given layers left out.
    evaluate
        Metric of a model, e.g. `mnnq.quantization.metrics.make_evaluator`.
    reference
        The float model; it is evaluated first.
    max_drop
        In the unit of the metric; see `parse_drop`.
    ranking, limits, progress
        As for `select`.
    """
    exact = evaluate(reference)
    return select(
        build,
        evaluate,
        ranking,
        exact - parse_drop(max_drop) - 1e-12,
        reference=exact,
        limits=limits,
        progress=progress,
    )
