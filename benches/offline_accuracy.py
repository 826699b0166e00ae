"""Accuracy of static int8 on trained models: our runtime and the real MNN runtime against the float model.

    python -m benches.offline_accuracy --data DIR [--task squeezenet ...] [--method mse] [--samples 100] [--json]

``--peers`` adds MNN's own quantizer (KL, EMA) and onnxruntime's ``quantize_static`` on the same samples.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import mnnq
from benches.tasks import TASKS, Outputs, Task
from mnnq.quantization.offline import OfflineConfig
from tests.peers.mnn_runtime import MnnRuntime


def float_outputs(task: Task) -> tuple[list[str], Outputs]:
    """Output names and values of the float model in onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(task.model, options)
    names = [output.name for output in session.get_outputs()]
    return names, [session.run(names, feeds) for feeds in task.evaluate]


def mnn_outputs(path: Path, task: Task, names: list[str], reference: Outputs) -> Outputs:
    """Values of a `.mnn` file in the real runtime."""
    outputs = []
    with MnnRuntime() as runtime:
        for feeds, wanted in zip(task.evaluate, reference, strict=True):
            found = runtime.run(path, feeds, names)
            outputs.append([found[name].reshape(w.shape) for name, w in zip(names, wanted, strict=True)])
    return outputs


def our_outputs(path: Path, task: Task, names: list[str]) -> Outputs:
    session = mnnq.InferenceSession(path, {"threads": 1})
    return [session.run(names, feeds) for feeds in task.evaluate]


def onnxruntime_outputs(
    task: Task, samples: list[dict[str, np.ndarray]], folder: Path, names: list[str], method: str
) -> Outputs:
    """Values of onnxruntime's static QDQ model, per-channel weights, asymmetric activations."""
    from onnxruntime import quantization as peer

    from tests.peers.sample_reader import SampleReader

    target = folder / f"{task.name}.{method}.onnx"
    peer.quantize_static(
        str(task.model),
        str(target),
        SampleReader(samples),
        per_channel=True,
        calibrate_method=peer.CalibrationMethod[method],
        activation_type=peer.QuantType.QUInt8,
        weight_type=peer.QuantType.QInt8,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(target, options)
    return [session.run(names, feeds) for feeds in task.evaluate]


_MNNQUANT = "import sys, _tools; _tools.mnnquant(['mnnquant', *sys.argv[1:]])"


def mnnquant(float_mnn: Path, target: Path, samples: list[dict[str, np.ndarray]], method: str) -> bool:
    """Quantize with MNN's own tool, samples as text; whether it gave a file."""
    folder = target.parent / f"{target.stem}.samples"
    for index, feeds in enumerate(samples):
        one = folder / f"input_{index}"
        one.mkdir(parents=True)
        record: dict[str, Any] = {"inputs": []}
        for name, array in feeds.items():
            record["inputs"].append({"name": name, "shape": list(array.shape)})
            np.savetxt(one / f"{name}.txt", array.reshape(-1), fmt="%.9g")
        (one / "input.json").write_text(json.dumps(record))
    settings = {
        "path": str(folder),
        "used_sample_num": len(samples),
        "feature_quantize_method": method,
        "weight_quantize_method": "MAX_ABS",
        "input_type": "sequence",
    }
    config = target.with_suffix(".json")
    config.write_text(json.dumps(settings))
    command = [sys.executable, "-c", _MNNQUANT, str(float_mnn), str(target), str(config)]
    environment = {**os.environ, "PIP_NO_INDEX": "1"}
    subprocess.run(command, capture_output=True, env=environment, timeout=600, check=False)
    return target.exists()


def evaluate(task: Task, args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Metrics per tool and runtime."""
    names, reference = float_outputs(task)
    model = mnnq.load(task.model)
    samples = task.calib[: args.samples]
    config = OfflineConfig(
        feature_method=args.method, fix=args.fix, force=True, min_sqnr_db=args.min_sqnr, threads=1
    )
    start = time.perf_counter()
    result = mnnq.quantize(model, samples, config)
    spent = time.perf_counter() - start
    path = folder / f"{task.name}.mnn"
    size = result.model.save(path)
    rows: dict[str, dict[str, float]] = {"float": task.metric(reference, reference)}
    extra = {"bytes": size, "seconds": spent, "left float": len(result.report.fixed)}
    rows["mnnq, own runtime"] = {**task.metric(our_outputs(path, task, names), reference), **extra}
    if not args.own_only:
        rows["mnnq, MNN runtime"] = task.metric(mnn_outputs(path, task, names, reference), reference)
    if args.peers:
        for method in ("MinMax", "Entropy"):
            found = onnxruntime_outputs(task, samples, folder, names, method)
            rows[f"onnxruntime {method}"] = task.metric(found, reference)
        plain = folder / f"{task.name}.float.mnn"
        model.save(plain)
        for method in ("KL", "EMA"):
            target = folder / f"{task.name}.{method}.mnn"
            if mnnquant(plain, target, samples, method):
                found = mnn_outputs(target, task, names, reference)
                rows[f"mnnquant {method}"] = task.metric(found, reference)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with models/, images/, text/")
    parser.add_argument("--task", action="append", choices=sorted(TASKS))
    parser.add_argument("--method", default="mse")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--fix", action="store_true")
    parser.add_argument("--min-sqnr", type=float, default=6.0)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--own-only", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    table = {}
    with tempfile.TemporaryDirectory() as name:
        for task in args.task or TASKS:
            table[task] = evaluate(TASKS[task](args.data), args, Path(name))
            if not args.json:
                for tool, row in table[task].items():
                    numbers = "  ".join(f"{key} {value:.4g}" for key, value in row.items())
                    print(f"{task:<12} {tool:<20} {numbers}", flush=True)
    if args.json:
        print(json.dumps({"method": args.method, "samples": args.samples, "tasks": table}, indent=2))


if __name__ == "__main__":
    main()
