"""How engines are timed against each other: in turn, with a rest between, a few runs at a time.

The threads of most engines go on spinning for some milliseconds after a run, on CPUs that the next engine needs. So each
turn begins with a pause and a run that does not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable

#: Seconds between engines, and runs of an engine in a row that are timed.
PAUSE, BURST = 0.02, 4


def burst(run: Callable[[], object]) -> list[tuple[float, float]]:
    """One engine's turn: seconds, and processor seconds of this process, of each of `BURST` runs."""
    time.sleep(PAUSE)
    run()
    taken = []
    for _ in range(BURST):
        start, used = time.perf_counter(), time.process_time()
        run()
        taken.append((time.perf_counter() - start, time.process_time() - used))
    return taken


def in_turn(runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Seconds of each run of each engine, all in this process; two turns at least, then until `seconds` are over."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or any(len(values) < 2 * BURST for values in times.values()):
        for name, run in runs.items():
            times[name].extend(wall for wall, _ in burst(run))
    return times
