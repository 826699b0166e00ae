"""Models of one operator, built in code."""

from __future__ import annotations

from typing import Any

import numpy as np

from mnnq.ir.model import Model, Op
from mnnq.runtime import InferenceSession, SessionOptions
from mnnq.writer.to_mnn import to_bytes


def session_of(
    op_type: str,
    inputs: list[np.ndarray],
    param: str | None,
    params: dict[str, Any],
    outputs: int,
    threads: int = 1,
) -> InferenceSession:
    """A session of one operator with inputs `x0`, `x1` ... and outputs `y0`, `y1` ..."""
    names = [f"x{i}" for i in range(len(inputs))]
    ops = [
        Op("Input", name, [], [name], "Input", {
            "dims": np.asarray(array.shape, np.int32), "dformat": "NCHW",
            "dtype": "DT_FLOAT" if array.dtype == np.float32 else "DT_INT32",
        })
        for name, array in zip(names, inputs, strict=True)
    ]  # fmt: skip
    made = [f"y{i}" for i in range(outputs)]
    ops.append(Op(op_type, "node", names, made, param, params))
    model = Model(ops=ops, outputs=made, net={"sourceType": "ONNX"})
    return InferenceSession(to_bytes(model), SessionOptions(threads=threads, allow_nan=True))


def run_op(
    op_type: str,
    inputs: list[np.ndarray],
    param: str | None = None,
    *,
    outputs: int = 1,
    threads: int = 1,
    **params: Any,
) -> list[np.ndarray]:
    """The outputs of one operator."""
    session = session_of(op_type, inputs, param, params, outputs, threads)
    return session.run(None, {f"x{i}": array for i, array in enumerate(inputs)})
