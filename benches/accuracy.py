"""Accuracy and file size of weight quantization on trained models: mnnq against mnnconvert, same options.

Both files run in the real MNN runtime; the reference is the float ONNX in onnxruntime.

    python -m benches.accuracy --data DIR [--task squeezenet ...] [--bits 8] [--block 32] [--method hqq] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import onnxruntime

import mnnq
from benches.tasks import TASKS, Outputs, Task
from tests.peers.mnn_runtime import MnnRuntime


def float_outputs(task: Task) -> tuple[list[str], Outputs]:
    """Output names and values of the float model in onnxruntime."""
    session = onnxruntime.InferenceSession(task.model)
    names = [output.name for output in session.get_outputs()]
    return names, [session.run(names, feeds) for feeds in task.evaluate]


def mnn_outputs(path: Path, task: Task, names: list[str]) -> Outputs:
    """Values of a `.mnn` file in the real runtime."""
    with MnnRuntime() as runtime:
        results = [runtime.run(path, feeds, names) for feeds in task.evaluate]
    return [[result[name] for name in names] for result in results]


def mnnconvert(source: Path, target: Path, args: argparse.Namespace) -> None:
    """Write the peer's file with the same options."""
    flags = ["-f", "ONNX", "--modelFile", source.resolve(), "--MNNModel", target, "--bizCode", "bench"]
    if args.bits:
        flags += ["--weightQuantBits", args.bits]
    if args.block:
        flags += ["--weightQuantBlock", args.block]
    if args.method == "hqq":
        flags.append("--hqq")
    subprocess.run(
        [sys.executable, "-m", "MNN.tools.mnnconvert", *map(str, flags)],
        check=True,
        capture_output=True,
        cwd=target.parent,
        env={**os.environ, "PIP_NO_INDEX": "1"},
    )


def evaluate(task: Task, args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Metrics and bytes per tool."""
    names, reference = float_outputs(task)
    ours, theirs = folder / f"{task.name}.mnnq.mnn", folder / f"{task.name}.mnnconvert.mnn"
    model = mnnq.load(task.model)
    if args.bits:
        model = mnnq.quantize_weights(model, bits=args.bits, block=args.block, method=args.method)
    model.save(ours)
    mnnconvert(task.model, theirs, args)
    rows: dict[str, dict[str, float]] = {"float": task.metric(reference, reference)}
    for tool, path in (("mnnq", ours), ("mnnconvert", theirs)):
        rows[tool] = {**task.metric(mnn_outputs(path, task, names), reference), "bytes": path.stat().st_size}
    rows["mnnq"]["size_ratio"] = rows["mnnq"]["bytes"] / rows["mnnconvert"]["bytes"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with models/, images/, text/")
    parser.add_argument("--task", action="append", choices=sorted(TASKS))
    parser.add_argument("--bits", type=int, default=8, help="0: float")
    parser.add_argument("--block", type=int)
    parser.add_argument("--method", default="rtn")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    table = {}
    with tempfile.TemporaryDirectory() as name:
        for task in args.task or TASKS:
            rows = evaluate(TASKS[task](args.data), args, Path(name))
            table[task] = rows
            if not args.json:
                for tool, row in rows.items():
                    print(
                        f"{task:<12} {tool:<11}",
                        "  ".join(f"{key} {value:.4g}" for key, value in row.items()),
                    )
    if args.json:
        print(
            json.dumps(
                {"bits": args.bits, "block": args.block, "method": args.method, "tasks": table}, indent=2
            )
        )


if __name__ == "__main__":
    main()
