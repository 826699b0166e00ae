"""Timing of a session: latencies of runs and where the time goes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.errors import ConfigError
from mnnq.runtime.session import InferenceSession, StepProfile


@dataclass(frozen=True)
class OperatorTime:
    """Time of all steps of one operator type per run of the model.

    Attributes
    ----------
    op_type
        Operator type; ``"layout"`` for conversions that the planner inserted.
    steps
        How many steps there are.
    seconds
        Mean time per run of the model.
    """

    op_type: str
    steps: int
    seconds: float


@dataclass(frozen=True)
class BenchmarkResult:
    """What a benchmark has measured.

    Attributes
    ----------
    first
        Seconds of the first run, which plans and packs weights.
    latencies
        Seconds of each timed run, in order.
    steps
        The steps that ran in the timed runs, in order of execution; `runs` and `seconds` of these runs only.
    """

    first: float
    latencies: tuple[float, ...]
    steps: tuple[StepProfile, ...]

    def percentile(self, percent: float) -> float:
        """Latency in seconds that `percent` of the runs do not exceed, linear between runs."""
        return float(np.percentile(self.latencies, percent))

    @property
    def median(self) -> float:
        """Median latency in seconds."""
        return self.percentile(50)

    @property
    def runs(self) -> int:
        """Number of timed runs."""
        return len(self.latencies)

    def by_type(self) -> list[OperatorTime]:
        """Time per operator type, the largest first."""
        totals: dict[str, tuple[int, float]] = {}
        for step in self.steps:
            count, seconds = totals.get(step.op_type, (0, 0.0))
            totals[step.op_type] = (count + 1, seconds + step.seconds)
        times = [OperatorTime(kind, count, total / self.runs) for kind, (count, total) in totals.items()]
        return sorted(times, key=lambda entry: -entry.seconds)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON can hold it; all times in milliseconds."""
        return {
            "runs": self.runs,
            "first_ms": self.first * 1e3,
            "median_ms": self.median * 1e3,
            "p90_ms": self.percentile(90) * 1e3,
            "min_ms": min(self.latencies) * 1e3,
            "by_type": [
                {"op_type": entry.op_type, "steps": entry.steps, "ms": entry.seconds * 1e3}
                for entry in self.by_type()
            ],
            "steps": [
                {
                    "node": step.node,
                    "op_type": step.op_type,
                    "kernel": step.kernel,
                    "output_shapes": step.output_shapes,
                    "ms": step.seconds / self.runs * 1e3,
                }
                for step in self.steps
            ],
        }


def benchmark(
    session: InferenceSession,
    feeds: Mapping[str, npt.NDArray[Any]],
    *,
    seconds: float = 3.0,
    warmup: int = 3,
    max_runs: int = 10_000,
) -> BenchmarkResult:
    """Run a session on the same inputs again and again and time each run.

    Parameters
    ----------
    seconds
        Time budget of the timed runs; there is at least one.
    warmup
        Runs that are not counted, after the first one, which is reported by itself.
    max_runs
        Number of timed runs after which it ends even when there is time left.

    Raises
    ------
    ConfigError
        A number is out of range.
    InputError, ExecutionError
        As `InferenceSession.run`.
    """
    for key, value, least in (("seconds", seconds, 0), ("warmup", warmup, 0), ("max_runs", max_runs, 1)):
        if not value >= least:
            msg = f"{value!r} is not possible; use {least} or more"
            raise ConfigError(msg, key=key)
    first = _timed(session, feeds)
    for _ in range(warmup):
        session.run(None, feeds)
    before = session.profile()
    latencies: list[float] = []
    end = time.perf_counter() + seconds
    while not latencies or (len(latencies) < max_runs and time.perf_counter() < end):
        latencies.append(_timed(session, feeds))
    return BenchmarkResult(first, tuple(latencies), _difference(before, session.profile()))


def _timed(session: InferenceSession, feeds: Mapping[str, npt.NDArray[Any]]) -> float:
    start = time.perf_counter()
    session.run(None, feeds)
    return time.perf_counter() - start


def _difference(before: list[StepProfile], after: list[StepProfile]) -> tuple[StepProfile, ...]:
    """What ran between two profiles of a session whose plans did not change: same steps, same order."""
    pairs = zip(before, after, strict=True)
    steps = (replace(new, runs=new.runs - old.runs, seconds=new.seconds - old.seconds) for old, new in pairs)
    return tuple(step for step in steps if step.runs)
