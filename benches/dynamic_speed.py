"""Dynamic quantization: speed, memory and accuracy of mnnq's ``memory="low"`` beside its peers.

    python -m benches.dynamic_speed [MODEL.onnx ...] [--threads 1 2] [--seconds 6] [--json FILE]
    python -m benches.dynamic_speed --blocks 32 128 [--rows 1 128]     # int4 weights, a stack of decoder layers

Every engine works in a process of its own and is asked in turn, so that all see the same machine. Printed:
median and least time, median processor time (what counts on a machine with other work, for one thread), growth of the resident memory by loading and running, size of the file, and the signal-to-noise ratio of
the output against onnxruntime's on the float model. "resnet50" stands for a network that is built on the spot.

| engine | weights |
| --- | --- |
| `float` | mnnq on the float model |
| `mnnq` | the `.mnn` file that mnnq writes, ``memory="low"`` |
| `mnn` | the same file in the real MNN, ``Memory_Low`` |
| `ort` | `quantize_dynamic`, or `MatMulNBits` with accuracy level 4 |
| `openvino` | `nncf.compress_weights`, int8 (give ``--openvino PYTHON`` if it lives in another environment) |
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benches.turns import burst

Run = Callable[[], list[Any]]
Feeds = dict[str, np.ndarray]

#: Fewest turns of a measurement.
TURNS = 5


def _ours(model: str, feeds: Feeds, threads: int, memory: str) -> Run:
    import mnnq

    session = mnnq.InferenceSession(model, {"threads": threads, "memory": memory})
    names = [port.name for port in session.get_inputs()]
    feeds = {name: feeds[name] for name in names}
    return lambda: list(session.run(None, feeds))


def _mnn(model: str, feeds: Feeds, threads: int) -> Run:
    from mnnq import _engine_worker

    signature = json.loads(Path(model + ".json").read_text())
    module = _engine_worker.load_module(
        model, signature["inputs"], signature["outputs"], memory_low=True, threads=threads
    )
    arrays = [feeds[name] for name in signature["inputs"]]
    return lambda: _engine_worker.forward(module, arrays)


def _ort(model: str, feeds: Feeds, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: list(session.run(None, feeds))


def _openvino(model: str, feeds: Feeds, threads: int) -> Run:
    import nncf
    import openvino

    core = openvino.Core()
    network = core.read_model(model)
    if not model.endswith(".xml"):
        network = nncf.compress_weights(network, mode=nncf.CompressWeightsMode.INT8_ASYM)
    network.reshape({name: array.shape for name, array in feeds.items()})
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    compiled = core.compile_model(network, "CPU", settings)
    return lambda: [np.asarray(value) for value in compiled(feeds).values()]


def _resident() -> int:
    fields = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()
    return int(fields[0]) * 1024


def _worker(engine: str, model: str, feeds_file: str, threads: int, result: str) -> None:
    """Serve one engine: a line "go" for a turn, answered by the seconds of its runs and those of the processor."""
    feeds = dict(np.load(feeds_file))
    if engine in ("float", "mnnq"):
        import mnnq

        def start() -> Run:
            return _ours(model, feeds, threads, "low" if engine == "mnnq" else "normal")

        _ = mnnq.InferenceSession  # imports count for nobody
    else:
        kinds: dict[str, Callable[[str, Feeds, int], Run]] = {
            "mnn": _mnn,
            "ort": _ort,
            "reference": _ort,
            "openvino": _openvino,
        }
        importer = {"mnn": "MNN", "openvino": "openvino"}.get(engine, "onnxruntime")
        __import__(importer)

        def start() -> Run:
            return kinds[engine](model, feeds, threads)

    before = _resident()
    run = start()
    outputs = run()
    run()
    np.save(result, np.asarray(outputs[0]))
    print(json.dumps({"resident": _resident() - before}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(burst(run)), flush=True)


class Engine:
    """A worker process."""

    def __init__(self, name: str, model: Path, feeds: Path, threads: int, python: str, folder: Path) -> None:
        self.name = name
        self.size = sum(p.stat().st_size for p in (model, Path(f"{model}.data")) if p.exists())
        self.result = folder / f"{name}.npy"
        command = [python, "-m", "benches.dynamic_speed", "--worker", name, str(model), str(feeds)]
        self.process = subprocess.Popen(
            [*command, str(threads), str(self.result)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ
            | {"PYTHONPATH": str(Path.cwd()), "PIP_NO_INDEX": "1", "OMP_NUM_THREADS": str(threads)},
        )
        self.times: list[float] = []
        self.used: list[float] = []
        self.resident = 0

    def ready(self) -> bool:
        """Wait until it has run once; False if it cannot."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith('{"resident"'):
                self.resident = json.loads(line)["resident"]
                return True
        return False

    def turn(self) -> None:
        """A few runs."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        for elapsed, used in json.loads(self.process.stdout.readline()):
            self.times.append(elapsed)
            self.used.append(used)

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


def _sample(model: Path, sizes: dict[str, list[int]]) -> Feeds:
    import onnxruntime

    rng = np.random.default_rng(0)
    feeds = {}
    for spec in onnxruntime.InferenceSession(model).get_inputs():
        shape = sizes.get(spec.name) or [d if isinstance(d, int) else 1 for d in spec.shape]
        floating = "float" in spec.type
        values = rng.standard_normal(shape) if floating else rng.integers(0, 2, shape)
        feeds[spec.name] = values.astype(np.float32 if floating else np.int64)
    return feeds


def _write_mnn(model: Path, path: Path, bits: int, block: int) -> None:
    import mnnq

    # As onnxruntime's: symmetric in blocks, else its own default.
    quantized = mnnq.quantize_weights(mnnq.load(model), bits=bits, block=block, symmetric=bits == 4)
    quantized.save(path)
    names = {"inputs": list(quantized.inputs), "outputs": list(quantized.outputs)}
    Path(f"{path}.json").write_text(json.dumps(names))


def _write_ort(model: Path, path: Path, bits: int, block: int) -> None:
    import onnx

    if bits == 4:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        logging.disable(logging.INFO)
        quantizer = MatMulNBitsQuantizer(
            onnx.load(model), block_size=block, is_symmetric=True, accuracy_level=4
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(path), use_external_data_format=False)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Integer convolutions of onnxruntime take unsigned weights only.
    convolutions = any(
        node.op_type == "Conv" for node in onnx.load(model, load_external_data=False).graph.node
    )
    kind = QuantType.QUInt8 if convolutions else QuantType.QInt8
    quantize_dynamic(model, path, weight_type=kind, per_channel=not convolutions)


def _snr(got: np.ndarray, want: np.ndarray) -> float:
    error = np.sum((got.astype(np.float64).ravel() - want.astype(np.float64).ravel()) ** 2)
    return float(10 * np.log10(np.sum(want.astype(np.float64) ** 2) / max(error, 1e-300)))


def prepare(model: Path, folder: Path, bits: int, block: int, engines: list[str]) -> dict[str, Path]:
    """Write what each engine reads; engines that cannot are left out."""
    files = {"float": model, "reference": model, "openvino": model}
    _write_mnn(model, folder / "model.mnn", bits, block)
    files["mnnq"] = files["mnn"] = folder / "model.mnn"
    if "ort" in engines:
        try:
            _write_ort(model, folder / "ort.onnx", bits, block)
            files["ort"] = folder / "ort.onnx"
        except Exception as error:  # whatever the peer's tool raises: it does not take part
            print(f"ort: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
    return files


def measure(
    files: dict[str, Path], feeds: Feeds, threads: int, args: argparse.Namespace, folder: Path
) -> dict[str, dict[str, float]]:
    """Median time, memory, file size and accuracy per engine."""
    np.savez(folder / "feeds.npz", **feeds)
    running: dict[str, Engine] = {}
    for name in ["reference", *args.engines]:
        if name not in files:
            continue
        python = args.openvino if name == "openvino" else sys.executable
        engine = Engine(name, files[name], folder / "feeds.npz", threads, python, folder)
        if engine.ready():
            running[name] = engine
        else:
            print(f"{name}: does not run", file=sys.stderr)
            engine.close()
    want = np.load(running["reference"].result)
    running.pop("reference").close()
    end = time.perf_counter() + args.seconds
    try:
        while time.perf_counter() < end or any(len(e.times) < TURNS for e in running.values()):
            for engine in running.values():
                engine.turn()
    finally:
        for engine in running.values():
            engine.close()
    return {
        name: {
            "median_ms": 1e3 * statistics.median(engine.times),
            "min_ms": 1e3 * min(engine.times),
            "cpu_ms": 1e3 * statistics.median(engine.used),
            "resident_mb": engine.resident / 1e6,
            "file_mb": engine.size / 1e6,
            "snr_db": _snr(np.load(engine.result), want),
        }
        for name, engine in running.items()
    }


def report(what: str, threads: int, rows: dict[str, dict[str, float]]) -> None:
    """Print a table."""
    key = "cpu_ms" if threads == 1 else "median_ms"
    best = min(
        (row[key] for name, row in rows.items() if name not in ("float", "mnnq")), default=float("nan")
    )
    print(f"\n{what}, {threads} thread(s)")
    print(
        f"{'engine':<10} {'median ms':>10} {'min ms':>10} {'cpu ms':>10} {'to best':>8} {'resident MB':>12} {'file MB':>9} {'SNR dB':>8}"
    )
    for name, row in rows.items():
        print(
            f"{name:<10} {row['median_ms']:>10.2f} {row['min_ms']:>10.2f} {row['cpu_ms']:>10.2f} "
            f"{row[key] / best:>8.2f} {row['resident_mb']:>12.1f} {row['file_mb']:>9.1f} {row['snr_db']:>8.1f}",
            flush=True,
        )


def _cases(args: argparse.Namespace, folder: Path) -> list[tuple[str, Path, int, int, dict[str, list[int]]]]:
    from benches import networks

    sizes = {
        item.partition("=")[0]: [int(d) for d in item.partition("=")[2].split("x")] for item in args.size
    }
    cases = []
    for name in args.models:
        path = Path(name)
        if name == "resnet50":
            path = folder / "resnet50.onnx"
            networks.resnet50(path)
        cases.append((path.stem, path, 8, 0, sizes))
    if args.blocks:
        stack = folder / "decoder.onnx"
        networks.decoder_stack(stack, layers=args.layers)
        for block in args.blocks:
            for rows in args.rows:
                what = f"decoder stack, int4 block {block}, {rows} row(s)"
                cases.append((what, stack, 4, block, {"x": [rows, 2048]}))
    return cases


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        engine, model, feeds, threads, result = sys.argv[2:]
        _worker(engine, model, feeds, int(threads), result)
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help='ONNX files, or "resnet50"')
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=6.0, help="time per case and number of threads")
    parser.add_argument("--size", action="append", default=[], metavar="NAME=DxD", help="shape of an input")
    parser.add_argument(
        "--blocks", nargs="*", type=int, default=[], help="block lengths of the decoder stack"
    )
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 128], help="rows of the decoder stack")
    parser.add_argument("--layers", type=int, default=4, help="layers of the decoder stack")
    parser.add_argument("--engines", nargs="+", default=["float", "mnnq", "mnn", "ort", "openvino"])
    parser.add_argument("--openvino", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    table = []
    with tempfile.TemporaryDirectory() as temporary:
        written: tuple[Any, ...] = ()
        files: dict[str, Path] = {}
        for what, model, bits, block, sizes in _cases(args, Path(temporary)):
            if written != (model, bits, block):
                files = prepare(model, Path(temporary), bits, block, args.engines)
                written = (model, bits, block)
            feeds = _sample(model, sizes)
            for threads in args.threads:
                rows = measure(files, feeds, threads, args, Path(temporary))
                report(what, threads, rows)
                table.append({"case": what, "threads": threads, "engines": rows})
    if args.json:
        args.json.write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
