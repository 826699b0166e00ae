"""One floating type in the graph: float32, which is what MNN computes in."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from mnnq.ir.graph import Graph, ValueInfo
from mnnq.passes.rewriting import all_graphs

_NUMBERS = {
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float64": TensorProto.DOUBLE,
}

#: Attributes that hold the number of an element type.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


def widen_halves(graph: Graph) -> int:
    """Make float16 and bfloat16 float32 throughout; every value stays exact. Returns the changes."""
    return _to_float32(graph, ("float16", "bfloat16"))


def narrow_doubles(graph: Graph) -> int:
    """Make float64 float32 throughout, rounding constants to nearest. Returns the changes."""
    return _to_float32(graph, ("float64",))


def _to_float32(graph: Graph, names: tuple[str, ...]) -> int:
    numbers = {_NUMBERS[name] for name in names}
    count = 0
    for part in all_graphs(graph):
        shared: dict[int, Any] = {}
        for key, array in part.constants.items():
            if array.dtype.name in names:
                if id(array) not in shared:
                    with np.errstate(over="ignore"):
                        shared[id(array)] = array.astype(np.float32)
                part.constants[key] = shared[id(array)]
                count += 1
        for key, info in part.values.items():
            if info.dtype is not None and info.dtype.name in names:
                part.values[key] = ValueInfo(np.dtype(np.float32), info.shape)
                count += 1
        for node in part.nodes:
            for key, value in node.attrs.items():
                if isinstance(value, np.ndarray) and value.dtype.name in names:
                    node.attrs[key] = value.astype(np.float32)
                    count += 1
                elif key in _TYPE_ATTRIBUTES and isinstance(value, int) and value in numbers:
                    node.attrs[key] = int(TensorProto.FLOAT)
                    count += 1
    return count
