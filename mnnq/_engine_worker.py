"""The process in which `mnnq.engines` runs a model: ``python -m mnnq._engine_worker FOLDER``.

The tests run the MNN runtime through `load_module` and `forward` too, in a process of their own.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnnq.errors import UnsupportedError


def _onnxruntime(
    model: str, feeds: dict[str, Any], outputs: list[str], _options: dict[str, Any]
) -> list[Any]:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    return list(session.run(outputs, feeds))


def _mnn(model: str, feeds: dict[str, Any], outputs: list[str], options: dict[str, Any]) -> list[Any]:
    own = {key: value for key, value in options.items() if key not in ("dynamic", "int8")}
    return forward(load_module(model, list(feeds), outputs, **own), feeds.values())


def _mnnq(model: str, feeds: dict[str, Any], outputs: list[str], options: dict[str, Any]) -> list[Any]:
    from mnnq.runtime import InferenceSession

    chosen = {
        "threads": options.get("threads", 1),
        "precision": options.get("precision", "normal"),
        "memory": "low" if options.get("memory_low") else "normal",
        "dynamic": options.get("dynamic", "auto"),
        "int8": options.get("int8", "compat"),
        "allow_nan": True,
    }
    return list(InferenceSession(model, chosen).run(outputs, {name: _narrow(a) for name, a in feeds.items()}))


def load_module(
    path: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    memory_low: bool = False,
    precision: str = "normal",
    threads: int = 1,
) -> Any:
    """Load a `.mnn` file in the MNN runtime, CPU; external weights are those beside it.

    Raises
    ------
    RuntimeError
        The runtime refused the file.
    """
    MNN: Any = importlib.import_module("MNN")
    config: dict[str, Any] = {"backend": 0, "numThread": threads, "precision": precision}
    if memory_low:
        config["memory"] = 2
    manager = MNN.nn.create_runtime_manager((config,))
    if Path(path + ".weight").exists():
        manager.set_external(path + ".weight")
    module = MNN.nn.load_module_from_file(path, list(inputs), list(outputs), runtime_manager=manager)
    if module is None:
        msg = "the runtime refused to load the model"
        raise RuntimeError(msg)
    return module


def forward(module: Any, arrays: Iterable[Any]) -> list[Any]:
    """Run a module on arrays in the order of its inputs; the outputs are arrays in NCHW order.

    64-bit and boolean arrays are passed as int32, other floats as float32: the runtime has no others.
    """
    expr: Any = importlib.import_module("MNN").expr
    kinds = {"float32": expr.float, "int32": expr.int, "uint8": expr.uint8, "int8": expr.int8}
    values = []
    for array in map(_narrow, arrays):
        value = expr.placeholder(array.shape, expr.NCHW, kinds[array.dtype.name])
        if array.size:
            # The binding takes numpy arrays of the other types only.
            value.write(array.tobytes() if array.dtype == np.int8 else array)
        values.append(value)
    found = []
    for result in module.onForward(values):
        plain = expr.convert(result, expr.NCHW) if result.data_format == expr.NC4HW4 else result
        if 0 in plain.shape:  # the binding cannot read what has no elements
            kind = next(name for name, code in kinds.items() if code == plain.dtype)
            found.append(np.zeros(plain.shape, kind))
        else:
            found.append(np.array(plain.read(), copy=True))
    return found


def _narrow(array: Any) -> Any:
    array = np.asarray(array)
    if array.dtype not in (np.uint8, np.int8, np.int32, np.float32):
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int32)
    # ascontiguousarray alone would give rank 0 an axis.
    return np.ascontiguousarray(array).reshape(array.shape)


def main(folder: Path) -> None:
    """Answer the request in `folder`."""
    request = json.loads((folder / "request.json").read_text())
    with np.load(folder / "in.npz") as arrays:
        feeds = {name: arrays[key] for key, name in request["feeds"].items()}
    run = {"onnxruntime": _onnxruntime, "mnn": _mnn, "mnnq": _mnnq}[request["engine"]]
    try:
        results = run(request["model"], feeds, request["outputs"], request["options"])
    except UnsupportedError as error:
        (folder / "answer.json").write_text(json.dumps({"problems": error.problems}))
        return
    except Exception as error:  # whatever a foreign program raises is its answer
        text = " ".join(str(error).split()) or type(error).__name__
        (folder / "answer.json").write_text(json.dumps({"error": text}))
        return
    np.savez(folder / "out.npz", **{f"a{i}": array for i, array in enumerate(results)})
    (folder / "answer.json").write_text("{}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
