"""Static int8 inference speed: mnnq against OpenVINO, onnxruntime and the real MNN runtime, interleaved in one run.

    python -m benches.int8_speed MODEL.onnx ... [--threads 1 2] [--seconds 3] [--engines mnnq mnn ...] [--json]

mnnq and MNN run the same offline-quantized `.mnn` file; onnxruntime and OpenVINO run what onnxruntime's static quantizer
(QDQ, unsigned activations, signed weights per channel) makes of the same ONNX model. Ranges are those of a few random inputs: this
measures speed, not accuracy. Engines that are not installed are left out. In turn; medians, and ratios to
the fastest peer.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

import mnnq
from benches.turns import in_turn
from mnnq import _native
from mnnq.ir.model import Model, Op
from mnnq.quantization.int8 import round_half_away
from mnnq.quantization.stored import float_weights

Run = Callable[[], Any]
Feeds = dict[str, np.ndarray]

#: Operators whose outputs get a scale of their own.
SCALED = {"Convolution", "ConvolutionDepthwise", "BinaryOp", "UnaryOp", "Concat", "Scale", "Eltwise", "ReLU6"}

#: Operators whose outputs have the codes of their first input.
SAME = {
    "ConvertTensor",
    "Reshape",
    "Flatten",
    "Pooling",
    "Pooling3D",
    "ReLU",
    "Identity",
    "Permute",
    "Squeeze",
}

FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "SIGMOID": lambda x: 1 / (1 + np.exp(-x)),
    "TANH": np.tanh,
    "SILU": lambda x: x / (1 + np.exp(-x)),
    "HARDSWISH": lambda x: x * np.clip(x + 3, 0, 6) / 6,
}


def static_int8(model: Model, path: Path, batches: Iterable[Feeds]) -> None:
    """Write an offline-quantized model: every float tensor described by its largest magnitude over the batches."""
    model = model.copy()
    ranges: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "model.mnn"
        model.save(plain)
        session = mnnq.InferenceSession(plain)

        def see(name: str, values: np.ndarray) -> None:
            if values.dtype == np.float32 and values.size:
                ranges[name] = max(ranges.get(name, 0.0), float(np.abs(values).max()))

        for feeds in batches:
            session.observe(feeds, see)
    constants = {op.outputs[0] for op in model.ops if op.type == "Const"}
    for op in model.ops:
        for name in op.outputs:
            source = op.inputs[0] if op.inputs else ""
            if op.type in SAME and source in model.tensor_quant:
                model.tensor_quant[name] = dict(model.tensor_quant[source])
            elif name in ranges and (op.type in SCALED or op.type == "Input"):
                if op.type == "BinaryOp" and constants & set(op.inputs):
                    continue
                model.tensor_quant[name] = _info(ranges[name])
        if op.type in ("Convolution", "ConvolutionDepthwise") and len(op.inputs) == 1:
            _quantize_weights(op, model.tensor_quant)
        if op.type == "UnaryOp":
            _tabulate(op, model.tensor_quant)
    model.save(path)


def _info(largest: float) -> dict[str, Any]:
    scale = np.float32(max(largest, 1e-6) / 127)
    return {"scale": float(scale), "zero": 0.0, "min": -127.0, "max": 127.0, "type": "DT_INT8"}


def _quantize_weights(op: Op, quant: dict[str, dict[str, Any]]) -> None:
    if op.inputs[0] not in quant or op.outputs[0] not in quant:
        return
    values = np.asarray(float_weights(op), np.float32)
    scales = np.maximum(np.abs(values).max(axis=1), 1e-8).astype(np.float32) / np.float32(127)
    codes = np.clip(round_half_away(values / scales[:, None]), -127, 127).astype(np.int8)
    stored = _native.encode_weights(codes, scales, None, 8)
    stored["scaleIn"], stored["scaleOut"] = quant[op.inputs[0]]["scale"], quant[op.outputs[0]]["scale"]
    op.params["quanParameter"] = stored
    op.params["symmetricQuan"] = {"nbits": 8, "clampMin": -127, "clampMax": 127, "outputDataType": "DT_INT8"}
    op.params.pop("weight", None)


def _tabulate(op: Op, quant: dict[str, dict[str, Any]]) -> None:
    function = FUNCTIONS.get(str(op.params.get("opType")))
    if function is None or op.inputs[0] not in quant or op.outputs[0] not in quant:
        return
    source, target = quant[op.inputs[0]]["scale"], quant[op.outputs[0]]["scale"]
    values = function(np.arange(-127, 128, dtype=np.float64) * source) / target
    op.params["tableInt8"] = np.clip(np.round(values), -127, 127).astype(np.int8)


def sample(model: Path, seed: int = 0) -> Feeds:
    """Random inputs of a model; symbolic axes are 1."""
    import onnx

    graph = onnx.load(model, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in graph.input:
        if value.name not in constants:
            shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    return feeds


def qdq(model: Path, path: Path, batches: list[Feeds]) -> None:
    """Quantize with onnxruntime's static quantizer."""
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    preparing: Any = importlib.import_module("onnxruntime.quantization.shape_inference")
    reading: Any = importlib.import_module("tests.peers.sample_reader")
    prepared = path.with_suffix(".prepared.onnx")
    preparing.quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(prepared),
        str(path),
        reading.SampleReader(batches),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
    )


def mnnq_run(model: Path, feeds: Feeds, threads: int) -> Run:
    """mnnq's runtime on a `.mnn` or ONNX file."""
    session = mnnq.InferenceSession(model, mnnq.SessionOptions(threads=threads))
    return lambda: session.run(None, feeds)


def onnxruntime_run(model: Path, feeds: Feeds, threads: int) -> Run:
    """Onnxruntime on an ONNX file."""
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feeds)


def openvino_run(model: Path, feeds: Feeds, threads: int) -> Run:
    """OpenVINO on an ONNX file, for latency."""
    openvino: Any = importlib.import_module("openvino")
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(str(model), "CPU", config).create_infer_request()
    return lambda: request.infer(feeds)


def mnn_run(model: Path, feeds: Feeds, threads: int) -> Run:
    """The real MNN runtime on a `.mnn` file."""
    os.environ.setdefault("PIP_NO_INDEX", "1")
    runtime: Any = importlib.import_module("MNN")
    manager = runtime.nn.create_runtime_manager(({"backend": 0, "numThread": threads},))
    outputs = mnnq.load(model).outputs
    module = runtime.nn.load_module_from_file(str(model), list(feeds), list(outputs), runtime_manager=manager)
    inputs = []
    for array in feeds.values():
        value = runtime.expr.placeholder(array.shape, runtime.expr.NCHW, runtime.expr.float)
        value.write(array)
        inputs.append(value)
    return lambda: [np.array(out.read(), copy=True) for out in module.onForward(inputs)]


#: Engine, package it needs, which file it runs, how.
ENGINES: dict[str, tuple[str, str, Callable[[Path, Feeds, int], Run]]] = {
    "mnnq int8": ("mnnq", "mnn", mnnq_run),
    "mnnq float": ("mnnq", "onnx", mnnq_run),
    "openvino int8": ("openvino", "qdq", openvino_run),
    "onnxruntime int8": ("onnxruntime", "qdq", onnxruntime_run),
    "mnn int8": ("MNN", "mnn", mnn_run),
}


def measure(
    files: dict[str, Path], feeds: Feeds, threads: int, seconds: float, engines: Iterable[str]
) -> dict[str, tuple[float, float]]:
    """Median and smallest latency of each engine in milliseconds, in turn."""
    runs: dict[str, Run] = {}
    for name in engines:
        package, kind, make = ENGINES[name]
        if importlib.util.find_spec(package) is None or kind not in files:
            continue
        runs[name] = make(files[kind], feeds, threads)
        for _ in range(3):
            runs[name]()
    times = in_turn(runs, seconds)
    return {name: (1e3 * statistics.median(values), 1e3 * min(values)) for name, values in times.items()}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument(
        "--keep", type=Path, help="Folder for the quantized files; existing ones are used again."
    )
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    report = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for model in chosen.models:
            feeds = sample(model)
            batches = [sample(model, seed) for seed in range(2)]
            files = {name: folder / f"{model.stem}.int8.{name}" for name in ("mnn", "qdq")}
            if not files["mnn"].exists():
                static_int8(mnnq.load(model), files["mnn"], batches)
            if any(ENGINES[name][1] == "qdq" for name in chosen.engines):
                files["qdq"] = files["qdq"].with_suffix(".qdq.onnx")
                if not files["qdq"].exists():
                    qdq(model, files["qdq"], batches)
            for threads in chosen.threads:
                times = measure(files | {"onnx": model}, feeds, threads, chosen.seconds, chosen.engines)
                report.append({"model": model.name, "threads": threads, "milliseconds": times})
                if not chosen.json:
                    _print(report[-1])
    if chosen.json:
        print(json.dumps(report, indent=1))


def _print(entry: dict[str, Any]) -> None:
    times = entry["milliseconds"]
    peers = [values for name, values in times.items() if not name.startswith("mnnq")]
    best = [min(column) for column in zip(*peers, strict=True)] or [float("nan")] * 2
    print(
        f"{entry['model']}, {entry['threads']} threads: median and smallest, each over that of the best peer"
    )
    for name, (median, least) in times.items():
        print(
            f"    {name:18s} {median:9.3f} ms {median / best[0]:6.2f}   {least:9.3f} ms {least / best[1]:6.2f}"
        )


if __name__ == "__main__":
    main()
