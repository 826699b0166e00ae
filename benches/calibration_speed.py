"""Time and memory of calibration: mnnq against onnxruntime's ``quantize_static`` and mnnquant, one thread.

    python -m benches.calibration_speed --data DIR [--task mobilenetv2] [--model FILE] [--samples 100] [--repeats 3] [--json]

Each tool runs in a process of its own, in turns; the least wall and processor times count, and the peak of the resident memory. Reading
images is not part of any time: all tools get the same arrays. ``mnnq kl`` does what the peers do; ``checked`` compares the result
with the float model besides, tensor by tensor; ``default`` has all stages that follow from the check, which no peer has.
``--model`` takes another model of one picture in place of the task's. ``--growth`` instead runs mnnq with 10 and with 1000 samples.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from benches.tasks import TASKS, Task

Feeds = dict[str, np.ndarray]


class Repeated:
    """So many samples from few, without their memory."""

    def __init__(self, samples: list[Feeds], count: int) -> None:
        self.samples, self.count = samples, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Feeds]:
        return (self.samples[index % len(self.samples)] for index in range(self.count))


#: All that the tools are given: sized, and gone through again and again.
Samples = list[Feeds] | Repeated


#: Settings without the stages that no peer has.
PLAIN = {"check_samples": 0}

#: Settings with the check of the result only.
CHECKED = {"float_share": 0.0, "sequential": False}


def _mnnq(method: str, **settings: object) -> Callable[[Task, Samples, Path], None]:
    def run(task: Task, samples: Samples, folder: Path) -> None:
        import mnnq

        model = mnnq.load(task.model)
        result = mnnq.quantize(model, samples, feature_method=method, threads=1, force=True, **settings)
        result.model.save(folder / "ours.mnn")

    return run


def _onnxruntime(method: str) -> Callable[[Task, Samples, Path], None]:
    def run(task: Task, samples: Samples, folder: Path) -> None:
        from onnxruntime import quantization as peer

        from tests.peers.sample_reader import SampleReader

        peer.quantize_static(
            str(task.model),
            str(folder / "theirs.onnx"),
            SampleReader(samples),
            per_channel=True,
            calibrate_method=peer.CalibrationMethod[method],
        )

    return run


def _mnnquant(task: Task, samples: Samples, folder: Path) -> None:
    import mnnq
    from benches.offline_accuracy import mnnquant

    plain = folder / "float.mnn"
    mnnq.load(task.model).save(plain)
    if not mnnquant(plain, folder / "theirs.mnn", samples, "KL"):
        msg = "mnnquant gave no file"
        raise RuntimeError(msg)


TOOLS: dict[str, Callable[[Task, Samples, Path], None]] = {
    "mnnq mse": _mnnq("mse", **PLAIN),
    "mnnq kl": _mnnq("kl", **PLAIN),
    "mnnq kl checked": _mnnq("kl", **CHECKED),
    "mnnq kl default": _mnnq("kl"),
    "mnnq mse default": _mnnq("mse"),
    "onnxruntime MinMax": _onnxruntime("MinMax"),
    "onnxruntime Entropy": _onnxruntime("Entropy"),
    "mnnquant KL": _mnnquant,
}


@dataclass(frozen=True)
class Job:
    """What is measured: a tool on the samples of a task."""

    tool: str
    task: str
    data: Path
    model: Path | None
    count: int
    repeated: bool = False


@dataclass(frozen=True)
class Figures:
    """Wall and processor seconds, MiB more than before and at the peak."""

    seconds: float
    cpu: float
    more: float
    peak: float

    def best(self, other: Figures) -> Figures:
        """The least time of both."""
        return replace(self, seconds=min(self.seconds, other.seconds), cpu=min(self.cpu, other.cpu))


def _open(job: Job) -> tuple[Task, list[Feeds]]:
    task = TASKS[job.task](job.data)
    task.evaluate.clear()
    if job.model is None:
        return task, task.calib[: job.count]
    import onnx

    graph = onnx.load(job.model, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    (name,) = (value.name for value in graph.input if value.name not in constants)
    samples = [{name: value} for feeds in task.calib[: job.count] for value in feeds.values()]
    return replace(task, model=job.model), samples


def _measure(job: Job, queue: mp.Queue) -> None:
    chosen, samples = _open(job)
    given: Samples = Repeated(samples[:10], job.count) if job.repeated else samples
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        TOOLS[job.tool](chosen, given, Path(folder))
        spent = time.perf_counter() - start
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    peak = max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, children)
    used = sum(resource.getrusage(who).ru_utime for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    queue.put(Figures(spent, used - begun, (peak - before) / 1024, peak / 1024))


def measure(job: Job) -> Figures:
    """What a tool takes in a process of its own with one thread."""
    os.environ.update({"OMP_NUM_THREADS": "1", "PIP_NO_INDEX": "1"})
    context = mp.get_context("spawn")
    queue: mp.Queue = context.Queue()
    process = context.Process(target=_measure, args=(job, queue))
    process.start()
    found: Figures = queue.get(timeout=900)
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--task", default="mobilenetv2", choices=sorted(TASKS))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tool", action="append", choices=sorted(TOOLS))
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows: dict[str, Figures] = {}
    if args.growth:
        for count in (10, 1000):
            job = Job("mnnq kl checked", args.task, args.data, args.model, count, repeated=True)
            rows[f"mnnq kl checked, {count}"] = measure(job)
    else:
        for _ in range(args.repeats):
            for tool in args.tool or TOOLS:
                found = measure(Job(tool, args.task, args.data, args.model, args.samples))
                rows[tool] = found.best(rows[tool]) if tool in rows else found
    name = args.task if args.model is None else args.model.stem
    if args.json:
        tools = {tool: asdict(row) for tool, row in rows.items()}
        print(json.dumps({"model": name, "samples": args.samples, "tools": tools}, indent=2))
        return
    print(f"{'model':<20} {'tool':<24} {'wall s':>8} {'cpu s':>8} {'more MiB':>9} {'peak MiB':>9}")
    for tool, row in rows.items():
        print(f"{name:<20} {tool:<24} {row.seconds:8.2f} {row.cpu:8.2f} {row.more:9.0f} {row.peak:9.0f}")


if __name__ == "__main__":
    main()
