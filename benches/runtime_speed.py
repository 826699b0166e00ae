"""Float inference speed: mnnq's runtime against onnxruntime and the real MNN runtime, interleaved in one run.

    python -m benches.runtime_speed MODEL.onnx ... [--threads 1 2] [--seconds 3] [--size name=1x3x224x224] [--json]

All three run the same ONNX model (MNN through the file that mnnq writes), in this process, in turn;
medians and ratios to the fastest peer are printed. Symbolic axes are 1 unless given.

Load time (file to session), the time of the first run, which plans, and the memory that both take are measured in a
process per engine, where mnnq and MNN load the same `.mnn` file; memory is the growth of the largest resident size.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import mnnq
from benches.turns import in_turn

Run = Callable[[], Any]


def sample(model: Path, sizes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Random inputs of a model: floats from a normal distribution, integers 0 or 1."""
    rng = np.random.default_rng(0)
    feeds = {}
    for spec in onnxruntime.InferenceSession(model).get_inputs():
        shape = sizes.get(spec.name) or [d if isinstance(d, int) else 1 for d in spec.shape]
        floating = "float" in spec.type
        values = rng.standard_normal(shape) if floating else rng.integers(0, 2, shape)
        feeds[spec.name] = values.astype(np.float32 if floating else np.int64)
    return feeds


def ours(model: Path, feeds: dict[str, np.ndarray], threads: int) -> Run:
    session = mnnq.InferenceSession(model, mnnq.SessionOptions(threads=threads))
    return lambda: session.run(None, feeds)


def onnx_runtime(model: Path, feeds: dict[str, np.ndarray], threads: int) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feeds)


def real_mnn(model: Path, feeds: dict[str, np.ndarray], threads: int) -> Run:
    MNN: Any = importlib.import_module("MNN")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.mnn"
        outputs = [spec.name for spec in onnxruntime.InferenceSession(model).get_outputs()]
        mnnq.load(model).save(path)
        return loaded_mnn(MNN, path, outputs, feeds, threads)


def loaded_mnn(MNN: Any, path: Path, outputs: list[str], feeds: dict[str, np.ndarray], threads: int) -> Run:
    manager = MNN.nn.create_runtime_manager(({"backend": 0, "numThread": threads},))
    module = MNN.nn.load_module_from_file(str(path), list(feeds), outputs, runtime_manager=manager)
    inputs = []
    for array in feeds.values():
        floating = array.dtype.kind == "f"
        value = MNN.expr.placeholder(array.shape, MNN.expr.NCHW, MNN.expr.float if floating else MNN.expr.int)
        value.write(array if floating else array.astype(np.int32))
        inputs.append(value)
    return lambda: [np.array(out.read(), copy=True) for out in module.onForward(inputs)]


ENGINES = {"mnnq": ours, "onnxruntime": onnx_runtime, "mnn": real_mnn}


def peak_mb() -> float:
    """The largest resident size of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the parent had when it forked
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def start_up(engine: str, model: Path, threads: int, inputs: Path, outputs: list[str]) -> None:
    """Load and run once in this process; prints the cost as JSON."""
    feeds = dict(np.load(inputs))
    # Importing is no part of loading.
    MNN: Any = importlib.import_module("MNN") if engine == "mnn" else None
    load = {"mnnq": ours, "onnxruntime": onnx_runtime}.get(engine)
    assert mnnq.InferenceSession is not None
    before = peak_mb()
    start = time.perf_counter()
    run = load(model, feeds, threads) if load else loaded_mnn(MNN, model, outputs, feeds, threads)
    loaded = time.perf_counter()
    run()
    done = time.perf_counter()
    cost = {"load_s": loaded - start, "first_run_s": done - loaded, "memory_mb": peak_mb() - before}
    print(json.dumps(cost))


def start_ups(model: Path, threads: int, sizes: dict[str, list[int]]) -> dict[str, dict[str, float]]:
    """`start_up` of every engine, each in a process of its own."""
    found = {}
    outputs = [spec.name for spec in onnxruntime.InferenceSession(model).get_outputs()]
    with tempfile.TemporaryDirectory() as folder:
        converted, inputs = Path(folder) / "model.mnn", Path(folder) / "inputs.npz"
        mnnq.load(model).save(converted)
        feeds: dict[str, Any] = dict(sample(model, sizes))
        np.savez(inputs, **feeds)
        for engine in ENGINES:
            path = model if engine == "onnxruntime" else converted
            command = [sys.executable, "-m", "benches.runtime_speed", str(path), "--start-up", engine]
            command += ["--inputs", str(inputs), "--threads", str(threads), "--outputs", *outputs]
            environment = {**os.environ, "PIP_NO_INDEX": "1"}
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            found[engine] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(
    model: Path, threads: int, seconds: float, sizes: dict[str, list[int]]
) -> dict[str, dict[str, float]]:
    """Median run time per engine."""
    feeds = sample(model, sizes)
    runs = {name: engine(model, feeds, threads) for name, engine in ENGINES.items()}
    for run in runs.values():
        run()
    times = in_turn(runs, seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = min(value for name, value in medians.items() if name != "mnnq")
    return {
        name: {
            "median_ms": 1e3 * value,
            "ratio_to_best_peer": value / best,
        }
        for name, value in medians.items()
    }


def _cost(cost: dict[str, float]) -> str:
    first = f"load {cost['load_s'] * 1e3:.0f} ms, first run {cost['first_run_s'] * 1e3:.0f} ms"
    return f"{first}, {cost['memory_mb']:.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=3.0, help="time per model and number of threads")
    parser.add_argument("--size", action="append", default=[], metavar="NAME=DxD", help="shape of an input")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--start-up", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--outputs", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = {
        item.partition("=")[0]: [int(d) for d in item.partition("=")[2].split("x")] for item in args.size
    }
    if args.start_up:
        start_up(args.start_up, args.models[0], args.threads[0], args.inputs, args.outputs)
        return
    table = []
    for model in args.models:
        costs = start_ups(model, args.threads[0], sizes)
        if not args.json:
            print(f"{model.name:<32} " + "  ".join(f"{name} {_cost(cost)}" for name, cost in costs.items()))
        for threads in args.threads:
            rows = measure(model, threads, args.seconds, sizes)
            for name, row in rows.items():
                row.update(costs[name])
            table.append({"model": model.name, "threads": threads, "engines": rows})
            if not args.json:
                cells = "  ".join(
                    f"{name} {row['median_ms']:.2f} ms ({row['ratio_to_best_peer']:.2f})"
                    for name, row in rows.items()
                )
                print(f"{model.name:<32} {threads} thread(s)  {cells}", flush=True)
    if args.json:
        print(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
