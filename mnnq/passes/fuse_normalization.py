"""Layer and RMS normalisation written in primitives become ``LayerNormalization`` and ``RMSNormalization``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mnnq.ir.graph import Dim, Graph, Node
from mnnq.passes.factors import plus_constant, product
from mnnq.passes.rewriting import int_list, scalar, single_use

_Producers = Mapping[str, Node]


@dataclass(frozen=True)
class _Norm:
    """What a match found: input, first normalised axis (negative), epsilon, and whether the mean is removed."""

    x: str
    axis: int
    epsilon: float
    centred: bool


def fuse_normalization(graph: Graph) -> int:
    """Rewrite in place, nested graphs included; return the number of rewrites.

    With d = x, or x - ReduceMean(x), over one or more trailing axes: ``d / Sqrt(ReduceMean(d^2) + eps)``, where
    the square is Pow or Mul and the division Div, or Mul with Reciprocal, 1 / Sqrt, or Pow(-0.5); then a constant
    ``* gamma`` and ``+ beta`` over the same axes, when present.
    """
    count = sum(fuse_normalization(sub) for node in graph.nodes for sub in node.subgraphs())
    producers, uses = graph.producers(), graph.consumers()
    for node in list(graph.nodes):
        if node.domain or node.op_type not in ("Div", "Mul"):
            continue
        norm = _match(graph, producers, node)
        if norm is None:
            continue
        shape = graph.info(norm.x).shape
        same = shape is not None and shape == graph.info(node.outputs[0]).shape
        if shape is None or not same or graph.info(norm.x).dtype != np.float32:
            continue
        if _replace(graph, uses, node, norm, shape[norm.axis :]):
            count += 1
    return count


def _match(graph: Graph, producers: _Producers, node: Node) -> _Norm | None:
    for index in (0, 1) if node.op_type == "Mul" else (0,):
        d, factor = node.inputs[index], node.inputs[1 - index]
        variance = _root(graph, producers, factor, inverse=node.op_type == "Mul")
        found = plus_constant(graph, producers, variance) if variance else None
        if found is None:
            continue
        mean = producers.get(found[0])
        if mean is None or mean.op_type != "ReduceMean" or mean.domain:
            continue
        if product(graph, producers, mean.inputs[0], 1).factors != (d, d):
            continue
        axis = _trailing_axes(graph, mean)
        if axis is not None:
            x = _centred(graph, producers, d, axis)
            return _Norm(x or d, axis, found[1], x is not None)
    return None


def _root(graph: Graph, producers: _Producers, name: str, *, inverse: bool) -> str | None:
    """For Sqrt(v), or with `inverse` for 1 / Sqrt(v) in its forms: v."""
    node = producers.get(name)
    if node is None or node.domain:
        return None
    if node.op_type == "Pow":
        exponent = scalar(graph.constant(node.inputs[1]))
        return node.inputs[0] if exponent == (-0.5 if inverse else 0.5) else None
    if not inverse:
        return node.inputs[0] if node.op_type == "Sqrt" else None
    if node.op_type == "Reciprocal":
        return _root(graph, producers, node.inputs[0], inverse=False)
    if node.op_type == "Div" and scalar(graph.constant(node.inputs[0])) == 1.0:
        return _root(graph, producers, node.inputs[1], inverse=False)
    return None


def _trailing_axes(graph: Graph, mean: Node) -> int | None:
    """First axis (negative) of a mean over the last axes that keeps the rank."""
    rank, axes = graph.info(mean.inputs[0]).rank, graph.constant(mean.input(1))
    if rank is None or axes is None or not int(mean.attrs.get("keepdims", 1)):
        return None
    places = sorted(axis - rank if axis >= 0 else axis for axis in int_list(axes))
    return places[0] if places and places == list(range(places[0], 0)) else None


def _centred(graph: Graph, producers: _Producers, d: str, axis: int) -> str | None:
    """For d = x - mean(x) over the same axes: x."""
    node = producers.get(d)
    if node is None or node.op_type != "Sub" or node.domain:
        return None
    mean = producers.get(node.inputs[1])
    if mean is None or mean.op_type != "ReduceMean" or mean.inputs[0] != node.inputs[0]:
        return None
    return node.inputs[0] if _trailing_axes(graph, mean) == axis else None


def _replace(
    graph: Graph, uses: Mapping[str, list[Node]], node: Node, norm: _Norm, dims: tuple[Dim, ...]
) -> bool:
    sizes = tuple(dim for dim in dims if isinstance(dim, int))
    if len(sizes) != len(dims):
        return False
    last, dead = node, []
    gamma, beta = np.ones(sizes, np.float32), None
    step = _operand(graph, uses, last, "Mul", sizes)
    if step is not None:
        dead.append(last)
        last, gamma = step
    if norm.centred:
        step = _operand(graph, uses, last, "Add", sizes)
        if step is not None:
            dead.append(last)
            last, beta = step
    out = last.outputs[0]
    scale = graph.add_constant(f"{out}_scale", gamma)
    last.op_type = "LayerNormalization" if norm.centred else "RMSNormalization"
    last.inputs = [norm.x, scale]
    if beta is not None:
        last.inputs.append(graph.add_constant(f"{out}_bias", beta))
    last.attrs = {"axis": norm.axis, "epsilon": norm.epsilon}
    graph.remove(dead)
    return True


def _operand(
    graph: Graph, uses: Mapping[str, list[Node]], node: Node, op_type: str, sizes: tuple[int, ...]
) -> tuple[Node, npt.NDArray[np.float32]] | None:
    """The only reader of `node` when it is `op_type` with a constant over the trailing axes, and that constant."""
    reader = single_use(graph, uses, node.outputs[0])
    if reader is None or reader.op_type != op_type or reader.domain or len(reader.inputs) != 2:
        return None
    array = graph.constant(reader.inputs[1 - reader.inputs.index(node.outputs[0])])
    if array is None or array.dtype != np.float32:
        return None
    kept = array
    while kept.ndim > len(sizes) and kept.shape[0] == 1:
        kept = kept[0]
    rank = graph.info(node.outputs[0]).rank
    if kept.ndim > len(sizes) or rank is None or array.ndim > rank:
        return None
    if any(have not in (1, want) for have, want in zip(kept.shape[::-1], sizes[::-1], strict=False)):
        return None
    return reader, np.ascontiguousarray(np.broadcast_to(kept, sizes))
