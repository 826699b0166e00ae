"""A graph back to ONNX: for shape inference of nested graphs, for checks of rewrites, for looking at a graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from mnnq.ir.graph import FAKE_QUANT, LINEAR, MNNQ_DOMAIN, Graph, Node, ValueInfo

#: Constants of more elements than this are typed inputs in the light form.
LIGHT_LIMIT = 1024

#: Version of the file format: the newest that onnxruntime's releases of the last years read.
IR_VERSION = 10


def to_proto(graph: Graph, *, light: bool = False) -> onnx.ModelProto:
    """Write a graph as an ONNX model of the default domain.

    Operators of domain ``mnnq`` are expanded, and so is ``Swish``, which runtimes rarely know.

    Parameters
    ----------
    graph
        The graph; it is not changed. Constants that nothing reads are left out.
    light
        Make big constants inputs of their type and shape instead of storing them; `light_feeds` gives the
        values. The model then stays small whatever the weights are.
    """
    feeds = light_feeds(graph) if light else {}
    proto = _graph(graph, feeds)
    imports = [helper.make_opsetid("", graph.opset)]
    domains = {node.domain for node in proto.node} - {""}
    imports += [helper.make_opsetid(domain, 1) for domain in sorted(domains)]
    return helper.make_model(proto, opset_imports=imports, ir_version=IR_VERSION, producer_name="mnnq")


def light_feeds(graph: Graph) -> dict[str, npt.NDArray[Any]]:
    """The constants that the light form leaves out, by input name."""
    read = _read(graph)
    return {
        name: array for name, array in graph.constants.items() if array.size > LIGHT_LIMIT and name in read
    }


def node_proto(node: Node, opset_graphs: bool = True) -> onnx.NodeProto:
    """One node of the default domain as ONNX states it; subgraphs are left out without `opset_graphs`."""
    proto = onnx.NodeProto(op_type=node.op_type, name=node.name, domain=node.domain)
    proto.input.extend(node.inputs)
    proto.output.extend(node.outputs)
    for key, value in node.attrs.items():
        attribute = _attribute(key, value, opset_graphs)
        if attribute is not None:
            proto.attribute.append(attribute)
    return proto


def type_proto(info: ValueInfo) -> onnx.TypeProto:
    """Type and shape in ONNX's form; what is unknown is left out."""
    proto = onnx.TypeProto()
    tensor = proto.tensor_type
    tensor.elem_type = 0 if info.dtype is None else elem_type(info.dtype)
    if info.shape is not None:
        tensor.shape.SetInParent()
        for dim in info.shape:
            entry = tensor.shape.dim.add()
            if isinstance(dim, int):
                entry.dim_value = dim
            elif dim:
                entry.dim_param = dim
    return proto


def elem_type(dtype: np.dtype[Any]) -> int:
    """Number of an element type in ONNX."""
    return int(helper.np_dtype_to_tensor_dtype(dtype))


def _graph(graph: Graph, feeds: dict[str, npt.NDArray[Any]]) -> onnx.GraphProto:
    proto = onnx.GraphProto(name=graph.name or "graph")
    read = _read(graph)
    for name in graph.inputs:
        proto.input.append(_value(name, graph.info(name)))
    for name in feeds:
        proto.input.append(_value(name, graph.info(name)))
    for name, array in graph.constants.items():
        if name in read and name not in feeds:
            proto.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    for node in graph.nodes:
        proto.node.extend(_expand(graph, node))
    for name in graph.outputs:
        proto.output.append(_value(name, graph.info(name)))
    return proto


def _value(name: str, info: ValueInfo) -> onnx.ValueInfoProto:
    return onnx.ValueInfoProto(name=name, type=type_proto(info))


def _read(graph: Graph) -> set[str]:
    names = set(graph.outputs)
    for node in graph.nodes:
        names.update(node.inputs)
        for sub in node.subgraphs():
            names.update(sub.captured())
    return names


def _expand(graph: Graph, node: Node) -> Iterable[onnx.NodeProto]:
    if node.domain == MNNQ_DOMAIN and node.op_type == LINEAR:
        return _linear(node)
    if node.domain == MNNQ_DOMAIN and node.op_type == FAKE_QUANT:
        return _fake_quant(node)
    if node.domain == "" and node.op_type == "Swish":
        return _swish(graph, node)
    return [node_proto(node)]


def _linear(node: Node) -> list[onnx.NodeProto]:
    out, weight = node.outputs[0], node.inputs[1]
    nodes = []
    if node.attrs.get("transposed"):
        turned = f"{out}__weight"
        nodes.append(helper.make_node("Transpose", [weight], [turned], perm=[1, 0]))
        weight = turned
    product = f"{out}__product" if node.has_input(2) else out
    nodes.append(helper.make_node("MatMul", [node.inputs[0], weight], [product], name=node.name))
    if node.has_input(2):
        nodes.append(helper.make_node("Add", [product, node.inputs[2]], [out]))
    return nodes


def _fake_quant(node: Node) -> list[onnx.NodeProto]:
    out, zero = node.outputs[0], int(node.attrs["zero"])
    constants = {
        "scale": np.float32(node.attrs["scale"]),
        "zero": np.int8(zero),
        "low": np.int8(node.attrs["low"]),
        "high": np.int8(node.attrs["high"]),
    }
    nodes = [
        helper.make_node("Constant", [], [f"{out}__{key}"], value=numpy_helper.from_array(np.asarray(value)))
        for key, value in constants.items()
    ]
    scale, point, low, high = (f"{out}__{key}" for key in constants)
    codes, clamped = f"{out}__codes", f"{out}__clamped"
    return [
        *nodes,
        helper.make_node("QuantizeLinear", [node.inputs[0], scale, point], [codes]),
        helper.make_node("Clip", [codes, low, high], [clamped]),
        helper.make_node("DequantizeLinear", [clamped, scale, point], [out], name=node.name),
    ]


def _swish(graph: Graph, node: Node) -> list[onnx.NodeProto]:
    x, out, alpha = node.inputs[0], node.outputs[0], float(node.attrs.get("alpha", 1.0))
    nodes, scaled = [], x
    if alpha != 1.0:
        factor = numpy_helper.from_array(np.asarray(alpha, graph.info(x).dtype or np.float32))
        scaled = f"{out}__scaled"
        nodes.append(helper.make_node("Constant", [], [f"{out}__alpha"], value=factor))
        nodes.append(helper.make_node("Mul", [x, f"{out}__alpha"], [scaled]))
    nodes.append(helper.make_node("Sigmoid", [scaled], [f"{out}__sigmoid"]))
    nodes.append(helper.make_node("Mul", [x, f"{out}__sigmoid"], [out], name=node.name))
    return nodes


def _attribute(key: str, value: Any, with_graphs: bool) -> onnx.AttributeProto | None:
    kind = onnx.AttributeProto
    if isinstance(value, Graph):
        return kind(name=key, type=kind.GRAPH, g=_graph(value, {})) if with_graphs else None
    if isinstance(value, np.ndarray | np.generic):
        return kind(name=key, type=kind.TENSOR, t=numpy_helper.from_array(np.asarray(value)))
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return _list_attribute(key, value)
    if isinstance(value, bool | int | np.integer):
        return kind(name=key, type=kind.INT, i=int(value))
    return helper.make_attribute(key, value)


def _list_attribute(key: str, values: Sequence[Any]) -> onnx.AttributeProto:
    kind = onnx.AttributeProto
    if all(isinstance(v, int) for v in values):
        return kind(name=key, type=kind.INTS, ints=list(values))
    if all(isinstance(v, int | float) for v in values):
        return kind(name=key, type=kind.FLOATS, floats=list(values))
    return helper.make_attribute(key, list(values))
