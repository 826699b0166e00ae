"""``MatMul`` and ``Gemm`` with a constant matrix become ``mnnq.Linear``, a following constant Add its bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.ir.graph import LINEAR, MNNQ_DOMAIN, Graph, Node, ValueInfo
from mnnq.passes.rewriting import single_use

#: A matrix that more nodes than this multiply by stays one shared constant, read by MatMul.
MAX_SHARED = 4


def fuse_linear(graph: Graph) -> int:
    """Rewrite in place, nested graphs included; return the number of rewrites.

    Before: ``MatMul(x, W)``, ``Add(MatMul(x, W), b)``, ``Gemm(x, W[, C])`` with constant W of rank 2 (and b
    one value per column, or one value). After: ``Linear(x, W[, b])``. ``Gemm``'s alpha is multiplied into W, beta
    into a constant C, and ``transA`` becomes a Transpose.
    """
    count = sum(fuse_linear(sub) for node in graph.nodes for sub in node.subgraphs())
    uses = graph.consumers()
    nodes: list[Node] = []
    for node in graph.nodes:
        replacement = None
        if node.domain == "" and node.op_type == "MatMul":
            replacement = _from_matmul(graph, node, uses)
        elif node.domain == "" and node.op_type == "Gemm":
            replacement = _from_gemm(graph, node, uses)
        nodes.extend([node] if replacement is None else replacement)
        count += replacement is not None
    graph.nodes = nodes
    return count + _fuse_bias(graph)


def _shared_too_much(uses: Mapping[str, list[Node]], name: str) -> bool:
    return len([node for node in uses.get(name, []) if node.op_type in ("MatMul", "Gemm")]) > MAX_SHARED


def _is_float(array: npt.NDArray[Any]) -> bool:
    return array.dtype.kind == "f"


def _from_matmul(graph: Graph, node: Node, uses: Mapping[str, list[Node]]) -> list[Node] | None:
    weight, rank = graph.constant(node.inputs[1]), graph.info(node.inputs[0]).rank
    if weight is None or weight.ndim != 2 or not _is_float(weight) or rank is None or rank < 2:
        return None
    if _shared_too_much(uses, node.inputs[1]):
        return None
    return [Node(LINEAR, list(node.inputs), list(node.outputs), {}, node.name, MNNQ_DOMAIN)]


def _from_gemm(graph: Graph, node: Node, uses: Mapping[str, list[Node]]) -> list[Node] | None:
    weight = graph.constant(node.inputs[1])
    if weight is None or weight.ndim != 2 or not _is_float(weight):
        return None
    alpha, beta = float(node.attrs.get("alpha", 1.0)), float(node.attrs.get("beta", 1.0))
    if _shared_too_much(uses, node.inputs[1]) and alpha == 1.0:
        return None
    x, out, name = node.inputs[0], node.outputs[0], node.inputs[1]
    nodes = []
    if node.attrs.get("transA"):
        turned = graph.fresh(f"{out}_transposed")
        info = graph.info(x)
        graph.values[turned] = ValueInfo(info.dtype, None if info.shape is None else info.shape[::-1])
        nodes.append(Node("Transpose", [x], [turned], {"perm": [1, 0]}))
        x = turned
    if alpha != 1.0:
        name = graph.add_constant(name, (weight * np.float32(alpha)).astype(weight.dtype))
    transposed = bool(node.attrs.get("transB"))
    attrs = {"transposed": 1} if transposed else {}
    columns = weight.shape[0 if transposed else 1]
    linear = Node(LINEAR, [x, name], [out], attrs, node.name, MNNQ_DOMAIN)
    nodes.append(linear)
    if node.has_input(2) and beta != 0.0:
        nodes.extend(_add_c(graph, node, linear, columns, beta))
    return nodes


def _add_c(graph: Graph, node: Node, linear: Node, columns: int, beta: float) -> list[Node]:
    """Give a Linear made from Gemm its C: as a bias, or as an Add behind it."""
    c, out = node.inputs[2], node.outputs[0]
    array, after = graph.constant(c), []
    if array is not None:
        if beta != 1.0:
            array = (array * np.float32(beta)).astype(array.dtype)
            c = graph.add_constant(c, array)
        bias = _as_bias(array, columns, 2)
        if bias is not None:
            linear.inputs.append(_bias_name(graph, c, bias))
            return []
    elif beta != 1.0:
        factor = np.asarray(beta, graph.info(c).dtype or np.float32)
        scaled = graph.fresh(f"{out}_c")
        graph.values[scaled] = graph.info(c)
        after.append(Node("Mul", [c, graph.add_constant(f"{out}_beta", factor)], [scaled]))
        c = scaled
    product = graph.fresh(f"{out}_product")
    graph.values[product] = graph.info(out)
    linear.outputs = [product]
    return [*after, Node("Add", [product, c], [out])]


def _as_bias(array: npt.NDArray[Any], columns: int, rank: int) -> npt.NDArray[Any] | None:
    """A constant as one value per column, None when it varies along another axis or adds one."""
    if array.ndim > rank or array.size not in (1, columns) or (array.size > 1 and array.shape[-1] != columns):
        return None
    flat = array.reshape(-1)
    return flat if flat.size == columns else np.full(columns, flat[0], array.dtype)


def _bias_name(graph: Graph, name: str, bias: npt.NDArray[Any]) -> str:
    return name if graph.info(name).shape == bias.shape else graph.add_constant(name, bias)


def _fuse_bias(graph: Graph) -> int:
    producers, uses = graph.producers(), graph.consumers()
    dead: list[Node] = []
    for node in graph.nodes:
        if node.op_type != "Add" or node.domain:
            continue
        for index in (0, 1):
            linear, array = producers.get(node.inputs[index]), graph.constant(node.inputs[1 - index])
            if linear is None or linear.op_type != LINEAR or array is None or linear.has_input(2):
                continue
            rank, weight = graph.info(linear.inputs[0]).rank, graph.constant(linear.inputs[1])
            if rank is None or weight is None or single_use(graph, uses, linear.outputs[0]) is None:
                continue
            bias = _as_bias(array, weight.shape[0 if linear.attrs.get("transposed") else 1], rank)
            if bias is None or bias.dtype != weight.dtype:
                continue
            linear.inputs = [*linear.inputs[:2], _bias_name(graph, node.inputs[1 - index], bias)]
            linear.outputs = list(node.outputs)
            dead.append(node)
            break
    graph.remove(dead)
    return len(dead)
