"""Unary functions as tables over codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.ir.model import Op

_Function = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def _sigmoid(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -700, 700))), np.float64)


def _gelu(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))), np.float64)


def _gelu_tanh(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), np.float64)


def _softplus(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.logaddexp(0, x), np.float64)


#: Functions by the key of ``UnaryOpOperation``.
_FUNCTIONS: dict[str, _Function] = {
    "SIGMOID": _sigmoid,
    "TANH": np.tanh,
    "HARDSWISH": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "SILU": lambda x: x * _sigmoid(x),
    "GELU": _gelu_tanh,
    "GELU_STANDARD": _gelu,
    "ERF": np.vectorize(math.erf, otypes=[np.float64]),
    "SOFTPLUS": _softplus,
}

#: Operators that are the same as a ``UnaryOp``.
_RENAMED = {"Sigmoid": "SIGMOID", "TanH": "TANH"}


def table_function(op: Op) -> _Function | None:
    """The function of an operator that may become a table, or None."""
    if op.type in _RENAMED:
        return _FUNCTIONS[_RENAMED[op.type]]
    return _FUNCTIONS.get(str(op.params.get("opType"))) if op.type == "UnaryOp" else None


def put_table(op: Op, source: dict[str, Any], target: dict[str, Any]) -> None:
    """Give an operator its table: entry i is the code of the function at code ``i - 127``."""
    function = table_function(op)
    assert function is not None
    if op.type in _RENAMED:
        op.params = {"opType": _RENAMED[op.type], "T": "DT_FLOAT"}
        op.type, op.param_type = "UnaryOp", "UnaryOp"
    values = function((np.arange(-127, 128) - source["zero"]) * np.float64(source["scale"]))
    ratio = values / np.float64(target["scale"])
    codes = np.trunc(ratio + np.copysign(0.5, ratio)) + target["zero"]
    op.params["tableInt8"] = np.clip(codes, target["min"], target["max"]).astype(np.int8)
