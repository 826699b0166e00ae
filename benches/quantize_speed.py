"""Time and peak memory of weight quantization: mnnq against mnnconvert and onnxruntime, in one run.

Builds a stack of Llama-like layers (about 400 MB of float32), then quantizes it to 4 bit, block 64, with each tool in a
process of its own, interleaved, and prints medians, peak resident memory and ratios.

    python -m benches.quantize_speed [--layers 2] [--repeat 3] [--hqq] [--json]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HIDDEN, FFN, HEADS = 2048, 5632, 16


def build(path: Path, layers: int) -> None:
    """Write the stack of layers."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def matmul(x: str, rows: int, cols: int, name: str) -> str:
        array = rng.standard_normal((rows, cols), dtype=np.float32) * np.float32(0.02)
        weights.append(numpy_helper.from_array(array, f"{name}.weight"))
        nodes.append(helper.make_node("MatMul", [x, f"{name}.weight"], [name], name=f"/{name}"))
        return name

    def node(op: str, inputs: list[str], name: str, **attrs: object) -> str:
        nodes.append(helper.make_node(op, inputs, [name], name=f"/{name}", **attrs))
        return name

    weights.append(numpy_helper.from_array(np.array([0, 0, HEADS, HIDDEN // HEADS]), "split_heads"))
    weights.append(numpy_helper.from_array(np.array([0, 0, HIDDEN]), "merge_heads"))
    weights.append(numpy_helper.from_array(np.ones(HIDDEN, np.float32), "ones"))
    x = "x"
    for i in range(layers):
        p = f"layer{i}"
        h = node("LayerNormalization", [x, "ones"], f"{p}.norm1", axis=-1)
        heads = []
        for part, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
            y = node(
                "Reshape", [matmul(h, HIDDEN, HIDDEN, f"{p}.{part}"), "split_heads"], f"{p}.{part}.heads"
            )
            heads.append(node("Transpose", [y], f"{p}.{part}.t", perm=perm))
        scores = node("Softmax", [node("MatMul", heads[:2], f"{p}.scores")], f"{p}.softmax", axis=-1)
        mixed = node(
            "Transpose", [node("MatMul", [scores, heads[2]], f"{p}.mix")], f"{p}.mix.t", perm=[0, 2, 1, 3]
        )
        out = matmul(node("Reshape", [mixed, "merge_heads"], f"{p}.merge"), HIDDEN, HIDDEN, f"{p}.o")
        x = node("Add", [x, out], f"{p}.attn")
        h = node("LayerNormalization", [x, "ones"], f"{p}.norm2", axis=-1)
        gate = matmul(h, HIDDEN, FFN, f"{p}.gate")
        silu = node("Mul", [gate, node("Sigmoid", [gate], f"{p}.sigmoid")], f"{p}.silu")
        gated = node("Mul", [silu, matmul(h, HIDDEN, FFN, f"{p}.up")], f"{p}.gated")
        x = node("Add", [x, matmul(gated, FFN, HIDDEN, f"{p}.down")], f"{p}.out")
    shape = [1, "tokens", HIDDEN]
    graph = helper.make_graph(
        nodes,
        "llama_like",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape)],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


_ORT = """
import sys, onnx
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
model = onnx.load(sys.argv[1])
tool = MatMulNBitsQuantizer(model, block_size=64, is_symmetric=False, bits=4)
tool.process()
tool.model.save_model_to_file(sys.argv[2], False)
"""


def commands(source: Path, folder: Path, hqq: bool) -> dict[str, tuple[list[str], Path]]:
    """Command line and output file of each tool."""
    extra = ["--hqq"] if hqq else []
    ours, mnn, ort = folder / "mnnq.mnn", folder / "mnnconvert.mnn", folder / "onnxruntime.onnx"
    flags = ["-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(mnn), "--bizCode", "bench"]
    flags += ["--weightQuantBits", "4", "--weightQuantBlock", "64", *extra]
    method = ["--method", "hqq"] if hqq else []
    result = {
        "mnnq": (
            [
                sys.executable,
                "-m",
                "mnnq",
                "quant",
                str(source),
                "-o",
                str(ours),
                "--bits",
                "4",
                "--block",
                "64",
                *method,
            ],
            ours,
        ),
        "mnnconvert": ([sys.executable, "-m", "MNN.tools.mnnconvert", *flags], mnn),
    }
    if not hqq and importlib.util.find_spec("onnx_ir") is None:
        print("onnxruntime's quantizer is left out: it needs the package onnx-ir", file=sys.stderr)
    elif not hqq:
        result["onnxruntime"] = ([sys.executable, "-c", _ORT, str(source), str(ort)], ort)
    return result


def run(command: list[str], cwd: Path) -> tuple[float, int]:
    """Seconds and peak resident bytes of a command."""
    start = time.perf_counter()
    # mnnconvert tries to install a telemetry package when it runs; that must not happen here.
    env = {**os.environ, "PIP_NO_INDEX": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p) or "."}
    pid = os.fork()
    if pid == 0:
        os.chdir(cwd)
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(os.open(cwd / "stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.execve(command[0], command, env)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - start
    if status != 0:
        msg = f"{' '.join(command)} failed:\n{(cwd / 'stderr.txt').read_text()[-2000:]}"
        raise SystemExit(msg)
    return seconds, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--hqq", action="store_true", help="HQQ instead of round to nearest")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "stack.onnx"
        # In a process of its own: a child's peak memory counts from that of the process it was forked from.
        builder = multiprocessing.get_context("spawn").Process(target=build, args=(source, args.layers))
        builder.start()
        builder.join()
        size = source.stat().st_size
        tools = commands(source, folder, args.hqq)
        seconds: dict[str, list[float]] = {tool: [] for tool in tools}
        peak: dict[str, int] = {}
        for _ in range(args.repeat):
            for tool, (command, _) in tools.items():
                elapsed, memory = run(command, folder)
                seconds[tool].append(elapsed)
                peak[tool] = max(peak.get(tool, 0), memory)
        rows = {
            tool: {
                "median_s": statistics.median(times),
                "peak_bytes": peak[tool],
                "peak_over_model": peak[tool] / size,
                "output_bytes": tools[tool][1].stat().st_size,
                "ratio_to_mnnconvert": statistics.median(times) / statistics.median(seconds["mnnconvert"]),
            }
            for tool, times in seconds.items()
        }
    if args.json:
        print(json.dumps({"model_bytes": size, "hqq": args.hqq, "tools": rows}, indent=2))
        return
    print(
        f"model {size / 1e6:.0f} MB, 4 bit, block 64, {'HQQ' if args.hqq else 'round to nearest'}, median of {args.repeat}"
    )
    print(
        f"{'tool':<12} {'seconds':>8} {'vs mnnconvert':>14} {'peak MB':>8} {'x model':>8} {'output MB':>10}"
    )
    for tool, row in rows.items():
        print(
            f"{tool:<12} {row['median_s']:>8.2f} {row['ratio_to_mnnconvert']:>14.2f} {row['peak_bytes'] / 1e6:>8.0f}"
            f" {row['peak_over_model']:>8.2f} {row['output_bytes'] / 1e6:>10.1f}"
        )


if __name__ == "__main__":
    main()
