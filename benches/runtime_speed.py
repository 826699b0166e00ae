"""Float inference speed: mnnq's runtime against onnxruntime and the real MNN runtime, interleaved in one run.

    python -m benches.runtime_speed MODEL.onnx ... [--threads 1 2] [--seconds 3] [--size name=1x3x224x224] [--json]

All three run the same ONNX model (MNN through the file that mnnq writes), in this process, one run of each in turn;
medians and ratios to the fastest peer are printed, with load time beside them. Symbolic axes are 1 unless given.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import mnnq

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
        converted = mnnq.load(model)
        converted.save(path)
        manager = MNN.nn.create_runtime_manager(({"backend": 0, "numThread": threads},))
        module = MNN.nn.load_module_from_file(
            str(path), list(feeds), list(converted.outputs), runtime_manager=manager
        )
    inputs = []
    for array in feeds.values():
        floating = array.dtype.kind == "f"
        value = MNN.expr.placeholder(array.shape, MNN.expr.NCHW, MNN.expr.float if floating else MNN.expr.int)
        value.write(array if floating else array.astype(np.int32))
        inputs.append(value)
    return lambda: [np.array(out.read(), copy=True) for out in module.onForward(inputs)]


ENGINES = {"mnnq": ours, "onnxruntime": onnx_runtime, "mnn": real_mnn}


def measure(
    model: Path, threads: int, seconds: float, sizes: dict[str, list[int]]
) -> dict[str, dict[str, float]]:
    """Median run time and load time per engine."""
    feeds = sample(model, sizes)
    runs: dict[str, Run] = {}
    load: dict[str, float] = {}
    for name, engine in ENGINES.items():
        start = time.perf_counter()
        runs[name] = engine(model, feeds, threads)
        runs[name]()
        load[name] = time.perf_counter() - start
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["mnnq"]) < 5:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = min(value for name, value in medians.items() if name != "mnnq")
    return {
        name: {
            "median_ms": 1e3 * value,
            "ratio_to_best_peer": value / best,
            "load_and_first_run_s": load[name],
        }
        for name, value in medians.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=3.0, help="time per model and number of threads")
    parser.add_argument("--size", action="append", default=[], metavar="NAME=DxD", help="shape of an input")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    sizes = {
        item.partition("=")[0]: [int(d) for d in item.partition("=")[2].split("x")] for item in args.size
    }
    table = []
    for model in args.models:
        for threads in args.threads:
            rows = measure(model, threads, args.seconds, sizes)
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
