"""The process in which `mnnq.engines` runs a model: ``python -m mnnq._engine_worker FOLDER``."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def _onnxruntime(
    model: str, feeds: dict[str, Any], outputs: list[str], _options: dict[str, Any]
) -> list[Any]:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    return list(session.run(outputs, feeds))


def _mnn(model: str, feeds: dict[str, Any], outputs: list[str], options: dict[str, Any]) -> list[Any]:
    MNN: Any = importlib.import_module("MNN")
    config: dict[str, Any] = {
        "backend": 0,
        "numThread": options.get("threads", 1),
        "precision": options.get("precision", "normal"),
    }
    if options.get("memory_low"):
        config["memory"] = 2
    manager = MNN.nn.create_runtime_manager((config,))
    if Path(model + ".weight").exists():
        manager.set_external(model + ".weight")
    module = MNN.nn.load_module_from_file(model, list(feeds), outputs, runtime_manager=manager)
    if module is None:
        msg = "the runtime refused to load the model"
        raise RuntimeError(msg)
    expr = MNN.expr
    kinds = {"float32": expr.float, "int32": expr.int, "uint8": expr.uint8, "int8": expr.int8}
    values = []
    for array in (_narrow(array) for array in feeds.values()):
        value = expr.placeholder(array.shape, expr.NCHW, kinds[array.dtype.name])
        if array.size:
            # The binding takes numpy arrays of the other types only.
            value.write(array.tobytes() if array.dtype == np.int8 else array)
        values.append(value)
    found = []
    for result in module.onForward(values):
        plain = expr.convert(result, expr.NCHW) if result.data_format == expr.NC4HW4 else result
        found.append(np.array(plain.read(), copy=True))
    return found


def _narrow(array: Any) -> Any:
    """What the runtime takes: 64-bit and boolean arrays as int32, other floats as float32."""
    if array.dtype not in (np.uint8, np.int8, np.int32, np.float32):
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int32)
    # ascontiguousarray alone would give rank 0 an axis.
    return np.ascontiguousarray(array).reshape(array.shape)


def main(folder: Path) -> None:
    """Answer the request in `folder`."""
    request = json.loads((folder / "request.json").read_text())
    with np.load(folder / "in.npz") as arrays:
        feeds = {name: arrays[key] for key, name in request["feeds"].items()}
    run = {"onnxruntime": _onnxruntime, "mnn": _mnn}[request["engine"]]
    try:
        results = run(request["model"], feeds, request["outputs"], request["options"])
    except Exception as error:  # whatever a foreign program raises is its answer
        text = " ".join(str(error).split()) or type(error).__name__
        (folder / "answer.json").write_text(json.dumps({"error": text}))
        return
    np.savez(folder / "out.npz", **{f"a{i}": array for i, array in enumerate(results)})
    (folder / "answer.json").write_text("{}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
