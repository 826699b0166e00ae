"""Integer products and the quantized operators of onnxruntime, written in float operators.

Quantizing tools write two old forms besides pairs of ``QuantizeLinear`` and ``DequantizeLinear``: one operator
for a whole quantized layer (``QLinearConv``, ``com.microsoft::QLinearAdd``), and integer products that are scaled
afterwards. In float they need few operators, and the weights are ordinary weights again.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import TensorProto

from mnnq.ir.graph import Graph, Node
from mnnq.passes.rewriting import int_list

#: Domain of onnxruntime's own operators.
CONTRIB = "com.microsoft"

#: Operators of one or two quantized tensors: the number of tensors, and the float operator.
QLINEAR = {
    "QLinearAdd": (2, "Add"),
    "QLinearMul": (2, "Mul"),
    "QLinearAveragePool": (1, "AveragePool"),
    "QLinearGlobalAveragePool": (1, "GlobalAveragePool"),
    "QLinearLeakyRelu": (1, "LeakyRelu"),
    "QLinearSigmoid": (1, "Sigmoid"),
    "QLinearSoftmax": (1, "Softmax"),
}

#: Quantized types whose grids float32 holds with room for rounding.
_GRIDS = frozenset({"uint8", "int8", "uint16", "int16"})

_FLOAT_PRODUCTS = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}


def expand_quantized(graph: Graph) -> int:
    """Rewrite in place, nested graphs included; return the number of operators rewritten."""
    count = sum(expand_quantized(sub) for node in graph.nodes for sub in node.subgraphs())
    uses = graph.consumers()
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.domain == CONTRIB and node.op_type in QLINEAR:
            made = expand_qlinear(graph, node)
        elif node.domain == CONTRIB and node.op_type == "QLinearConcat":
            made = expand_concat(graph, node)
        elif node.domain == CONTRIB and node.op_type == "QGemm":
            made = _gemm(graph, node)
        elif node.domain == "" and node.op_type == "QLinearConv":
            made = _convolution(graph, node)
        elif node.domain == "" and node.op_type in _FLOAT_PRODUCTS:
            made = _product(graph, uses, node)
        else:
            made = None
        count += made is not None
        nodes.extend([node] if made is None else made)
    graph.nodes = nodes
    return count + _fuse_pairs(graph)


def _fuse_pairs(graph: Graph) -> int:
    """``DequantizeLinear(QuantizeLinear(x))`` with one scale s and zero point z: rounding to a grid, in float.

    ``Round(Clip(x / s, low - z, high - z)) * s``; adding and taking off 1.5 * 2**23 rounds what is below 2**22,
    halves to even.
    """
    producers = graph.producers()
    nodes: list[Node] = []
    count = 0
    for node in graph.nodes:
        source = producers.get(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
        pair = _pair(graph, source, node) if source is not None else None
        if source is None or pair is None:
            nodes.append(node)
            continue
        scale, low, high = pair
        out = node.outputs[0]
        step = graph.add_constant(f"{out}_scale", scale)
        magic = graph.add_constant(f"{out}_magic", np.float32(3 << 22))
        bounds = [graph.add_constant(f"{out}_bound", np.float32(bound)) for bound in (low, high)]
        ratio, clipped, raised, rounded = (graph.fresh(out) for _ in range(4))
        nodes += [
            Node("Div", [source.inputs[0], step], [ratio]),
            Node("Clip", [ratio, *bounds], [clipped]),
            Node("Add", [clipped, magic], [raised]),
            Node("Sub", [raised, magic], [rounded]),
            Node("Mul", [rounded, step], [out], name=node.name),
        ]
        count += 1
    graph.nodes = nodes
    return count


def _pair(graph: Graph, source: Node, node: Node) -> tuple[np.ndarray, int, int] | None:
    """Scale and bounds of a quantization that is undone with the same parameters of one value."""
    if source.op_type != "QuantizeLinear" or len(source.inputs) != 3 or len(node.inputs) != 3:
        return None
    if graph.info(source.inputs[0]).dtype != np.float32 or {*source.attrs, *node.attrs} - {
        "axis",
        "saturate",
    }:
        return None
    parameters = [graph.constant(name) for name in (*source.inputs[1:], *node.inputs[1:])]
    scale, zero, scale_back, zero_back = parameters
    if scale is None or zero is None or scale_back is None or zero_back is None:
        return None
    if scale.size != 1 or scale.dtype != np.float32 or zero.dtype.name not in _GRIDS:
        return None
    same = scale.tobytes() == scale_back.tobytes() and zero.tobytes() == zero_back.tobytes()
    if not same or zero.dtype != zero_back.dtype or scale_back.size != 1:
        return None
    point, limits = int(zero.reshape(-1)[0]), np.iinfo(zero.dtype)
    return scale.reshape(()), limits.min - point, limits.max - point


def _dequantized(graph: Graph, nodes: list[Node], x: str, scale: str, zero: str) -> str:
    out = graph.fresh(f"{x}_float")
    nodes.append(Node("DequantizeLinear", [x, scale, zero], [out]))
    return out


def expand_qlinear(graph: Graph, node: Node) -> list[Node] | None:
    """An operator of `QLINEAR`: dequantized operands, the float operator, its result quantized."""
    count, op_type = QLINEAR[node.op_type]
    attrs = dict(node.attrs)
    opset = int(attrs.pop("opset", 13))
    if attrs.pop("channels_last", 0) or (op_type == "Softmax" and opset < 13):
        return None
    nodes: list[Node] = []
    inputs = [node.input(i) for i in range(3 * count + 2)]
    parts = [_dequantized(graph, nodes, *inputs[3 * i : 3 * i + 3]) for i in range(count)]
    result = graph.fresh(f"{node.outputs[0]}_float")
    nodes.append(Node(op_type, parts, [result], attrs, node.name))
    nodes.append(Node("QuantizeLinear", [result, *inputs[3 * count :]], node.outputs))
    return nodes


def expand_concat(graph: Graph, node: Node) -> list[Node]:
    """``QLinearConcat`` in the same way."""
    nodes: list[Node] = []
    parts = [_dequantized(graph, nodes, *node.inputs[i : i + 3]) for i in range(2, len(node.inputs) - 2, 3)]
    result = graph.fresh(f"{node.outputs[0]}_float")
    nodes.append(Node("Concat", parts, [result], dict(node.attrs), node.name))
    nodes.append(Node("QuantizeLinear", [result, *node.inputs[:2]], node.outputs))
    return nodes


def _centred(graph: Graph, nodes: list[Node], x: str, zero: str) -> str:
    """Float tensor of ``x - zero``."""
    out = graph.fresh(f"{x}_float")
    nodes.append(Node("Cast", [x], [out], {"to": int(TensorProto.FLOAT)}))
    if not zero:
        return out
    point, shifted = graph.fresh(f"{zero}_float"), graph.fresh(f"{x}_centred")
    nodes.append(Node("Cast", [zero], [point], {"to": int(TensorProto.FLOAT)}))
    nodes.append(Node("Sub", [out, point], [shifted]))
    return shifted


def _weight(graph: Graph, name: str, zero: str) -> np.ndarray | None:
    """Constant integer weights of a convolution less their zero points, in float."""
    weight, point = graph.constant(name), graph.constant(zero)
    if weight is None or (zero and point is None):
        return None
    centred = weight.astype(np.float32)
    if point is not None:
        centred = centred - point.reshape(-1, *[1] * (weight.ndim - 1)).astype(np.float32)
    return centred


def _convolution(graph: Graph, node: Node) -> list[Node] | None:
    """``Round(Conv(x - x0, w - w0) + bias) * (x_scale * w_scale / y_scale)``, quantized.

    The sums are integers: rounding them takes the noise of a float convolution away.
    """
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = node.inputs[:8]
    weight = _weight(graph, w, w_zero)
    scales = [graph.constant(name) for name in (x_scale, w_scale, y_scale)]
    bias = graph.constant(node.input(8))
    if weight is None or any(s is None for s in scales) or (node.has_input(8) and bias is None):
        return None
    by_x, by_w, by_y = (np.asarray(s, np.float32).reshape(-1) for s in scales)
    out = node.outputs[0]
    nodes: list[Node] = []
    inputs = [_centred(graph, nodes, x, x_zero), graph.add_constant(f"{w}_float", weight)]
    if bias is not None:
        inputs.append(graph.add_constant(f"{out}_bias", bias.astype(np.float32)))
    factor = (by_x * by_w / by_y).reshape(-1, *[1] * (weight.ndim - 2))
    total = graph.fresh(f"{out}_sum")
    nodes.append(Node("Conv", inputs, [total], dict(node.attrs), node.name))
    return [*nodes, *_scaled(graph, total, factor, y_zero, out)]


def _scaled(graph: Graph, total: str, factor: np.ndarray, zero: str, out: str) -> list[Node]:
    """``QuantizeLinear(Round(total) * factor)`` with the zero point of the result."""
    exact, scaled = graph.fresh(f"{out}_exact"), graph.fresh(f"{out}_scaled")
    return [
        Node("Round", [total], [exact]),
        Node("Mul", [exact, graph.add_constant(f"{out}_factor", factor)], [scaled]),
        Node("QuantizeLinear", [scaled, graph.add_constant(f"{out}_unit", np.float32(1)), zero], [out]),
    ]


def _gemm(graph: Graph, node: Node) -> list[Node] | None:
    """``Round((A - a0) (B - b0) + C) * (alpha * a_scale * b_scale / y_scale)``, quantized."""
    a, a_scale, a_zero, w, w_scale, w_zero = node.inputs[:6]
    by_a, by_w, by_y = (graph.constant(name) for name in (a_scale, w_scale, node.input(7)))
    weight, point = graph.constant(w), graph.constant(w_zero)
    bias = graph.constant(node.input(6))
    if weight is None or by_a is None or by_w is None or by_y is None or (w_zero and point is None):
        return None
    if (node.has_input(6) and bias is None) or not node.has_input(8):
        return None
    attrs = dict(node.attrs)
    alpha = np.float32(attrs.pop("alpha", 1.0))
    centred = weight.astype(np.float32)
    if point is not None:
        centred = centred - point.reshape((-1, 1) if attrs.get("transB") else (1, -1)).astype(np.float32)
    out = node.outputs[0]
    nodes: list[Node] = []
    inputs = [_centred(graph, nodes, a, a_zero), graph.add_constant(f"{w}_float", centred)]
    if bias is not None:
        inputs.append(graph.add_constant(f"{out}_bias", bias.astype(np.float32)))
    factor = alpha * by_a.reshape(-1) * by_w.reshape(-1) / by_y.reshape(-1)
    total = graph.fresh(f"{out}_sum")
    nodes.append(Node("Gemm", inputs, [total], attrs, node.name))
    return [*nodes, *_scaled(graph, total, factor.astype(np.float32), node.inputs[8], out)]


def _product(graph: Graph, uses: Mapping[str, list[Node]], node: Node) -> list[Node] | None:
    """An integer product that is only read as float, with constant weights, becomes a float product."""
    out = node.outputs[0]
    readers = uses.get(out, [])
    if not readers or out in graph.outputs or not all(_to_float(reader) for reader in readers):
        return None
    w, zero = node.inputs[1], node.input(3)
    if node.op_type == "ConvInteger":
        weight = _weight(graph, w, zero)
    else:
        weight, point = graph.constant(w), graph.constant(zero)
        if weight is None or (zero and point is None):
            return None
        weight = weight.astype(np.float32)
        if point is not None:
            weight = weight - point.astype(np.float32)
    if weight is None:
        return None
    point_shape = graph.info(node.input(2)).shape if node.has_input(2) else ()
    if node.op_type == "MatMulInteger" and point_shape != () and point_shape != (1,):
        return None
    nodes: list[Node] = []
    data = _centred(graph, nodes, node.inputs[0], node.input(2))
    op_type = _FLOAT_PRODUCTS[node.op_type]
    name = graph.add_constant(f"{w}_float", weight)
    nodes.append(Node(op_type, [data, name], [out], dict(node.attrs), node.name))
    return nodes


def _to_float(node: Node) -> bool:
    return node.op_type == "Cast" and node.domain == "" and int_list(node.attrs["to"]) == [TensorProto.FLOAT]
