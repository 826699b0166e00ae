"""Small ONNX models built in code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

#: Newest IR version that the peers read.
IR_VERSION = 10


def value_info(name: str, array: np.ndarray, shape: Sequence[Any] | None = None) -> onnx.ValueInfoProto:
    """Type of `array`, with its shape or the given (symbolic) one."""
    elem = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, elem, list(array.shape) if shape is None else shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, np.ndarray],
    outputs: Sequence[str],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 17,
    shapes: Mapping[str, Sequence[Any]] | None = None,
    output_types: Mapping[str, int] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[tuple[str, int]] = (),
) -> onnx.ModelProto:
    """A checked model from nodes, sample inputs (for types and shapes) and constants."""
    shapes, output_types = shapes or {}, output_types or {}
    graph = helper.make_graph(
        list(nodes),
        "test",
        [value_info(name, array, shapes.get(name)) for name, array in inputs.items()],
        [
            helper.make_tensor_value_info(name, output_types.get(name, TensorProto.UNDEFINED), None)
            for name in outputs
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(*pair) for pair in domains)]
    proto = helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=IR_VERSION)
    return onnx.shape_inference.infer_shapes(proto)


def single(
    op_type: str,
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    n_outputs: int = 1,
    order: Sequence[str] | None = None,
    opset: int = 17,
    shapes: Mapping[str, Sequence[Any]] | None = None,
    **attrs: Any,
) -> onnx.ModelProto:
    """One node over `inputs` followed by `constants` (or in `order`; "" = absent); outputs y, y1, ..."""
    names = list(order) if order is not None else [*inputs, *(constants or {})]
    outputs = ["y", *(f"y{i}" for i in range(1, n_outputs))]
    node = helper.make_node(op_type, names, outputs, **attrs)
    return model([node], inputs, outputs, constants, opset=opset, shapes=shapes)
