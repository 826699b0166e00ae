"""Time of quantizing one matrix: mnnq's methods, the package `hqq`, and mnnconvert ``--hqq``, interleaved in one run.

    python -m benches.hqq_speed [--size 4096] [--bits 4] [--block 64] [--repeat 3] [--threads 1] [--python PYTHON] [--json]

``--python`` names an interpreter that has the package ``hqq`` (and PyTorch); without it, this one is asked. Rows say
seconds (least of the repeats) and relative RMS error of the weights. mnnconvert is timed as a process; the time of the
same conversion without quantization is taken off, so that its row holds quantizing and packing only.
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
import onnx
from onnx import TensorProto, helper, numpy_helper

from mnnq import _native
from mnnq.quantization.calibrated import decode

_PACKAGE = """
import sys, time
import numpy as np, torch
from hqq.core.quantize import Quantizer
torch.set_num_threads(int(sys.argv[4]))
matrix = torch.from_numpy(np.load(sys.argv[1]))
start = time.perf_counter()
codes, meta = Quantizer.quantize(
    matrix, nbits=int(sys.argv[2]), group_size=int(sys.argv[3]), axis=1, optimize=True, round_zero=False,
    compute_dtype=torch.float32, device="cpu",
)
seconds = time.perf_counter() - start
error = (Quantizer.dequantize(codes, meta).reshape(matrix.shape) - matrix).norm() / matrix.norm()
print(seconds, float(error))
"""


def ours(matrix: np.ndarray, method: str, args: argparse.Namespace) -> tuple[float, float]:
    """Seconds and relative error of one of mnnq's methods."""
    start = time.perf_counter()
    found = _native.quantize_codes(
        matrix, bits=args.bits, symmetric=False, block=args.block, method=method, threads=args.threads
    )
    seconds = time.perf_counter() - start
    decoded = decode(found["codes"], found["scale"], found["min"], args.bits)
    return seconds, float(np.linalg.norm(decoded - matrix) / np.linalg.norm(matrix))


def package(file: Path, args: argparse.Namespace) -> tuple[float, float] | None:
    """The same of the package `hqq`; None where it is not installed."""
    command = [args.python, "-c", _PACKAGE, str(file), str(args.bits), str(args.block), str(args.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"hqq package: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    seconds, error = done.stdout.split()[-2:]
    return float(seconds), float(error)


def converter(model: Path, flags: list[str]) -> float:
    """Seconds of one run of mnnconvert."""
    target = model.with_suffix(".mnn")
    base = ["-f", "ONNX", "--modelFile", str(model), "--MNNModel", str(target), "--bizCode", "bench"]
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "MNN.tools.mnnconvert", *base, *flags],
        check=True,
        capture_output=True,
        cwd=model.parent,
        env={**os.environ, "PIP_NO_INDEX": "1"},
    )
    return time.perf_counter() - start


def save(matrix: np.ndarray, path: Path) -> None:
    """Write a model of one matrix product."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "matrix",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, matrix.shape[1]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, matrix.shape[0]])],
        [numpy_helper.from_array(np.ascontiguousarray(matrix.T), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """All rows."""
    rng = np.random.default_rng(0)
    matrix = (rng.standard_normal((args.size, args.size)) * 0.02).astype(np.float32)
    file, model = folder / "matrix.npy", folder / "matrix.onnx"
    np.save(file, matrix)
    save(matrix, model)
    flags = ["--weightQuantBits", str(args.bits), "--weightQuantBlock", str(args.block), "--hqq"]
    times: dict[str, list[float]] = {}
    errors: dict[str, float] = {}
    for _ in range(args.repeat):
        for method in ("hqq", "hqq_ref", "search"):
            seconds, errors[f"mnnq {method}"] = ours(matrix, method, args)
            times.setdefault(f"mnnq {method}", []).append(seconds)
        found = package(file, args)
        if found is not None:
            times.setdefault("package hqq", []).append(found[0])
            errors["package hqq"] = found[1]
        plain = converter(model, [])
        times.setdefault("mnnconvert --hqq", []).append(converter(model, flags) - plain)
    return {
        name: {"seconds": min(seconds), "relative_rms": errors.get(name)} for name, seconds in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the package hqq")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = measure(args, Path(name))
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    for name, row in rows.items():
        error = "" if row["relative_rms"] is None else f"  error {row['relative_rms']:.4f}"
        print(f"{name:<18} {row['seconds']:6.2f} s{error}")


if __name__ == "__main__":
    main()
