"""Per-channel affine steps behind a convolution or a Linear go into its weights; zero padding before it into its pads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.ir.graph import LINEAR, Graph, Node
from mnnq.passes.rewriting import int_list, single_use

_WEIGHTED = frozenset({"Conv", "ConvTranspose", LINEAR})
_F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Affine:
    """y = x * scale + shift, one value per output channel; None where it is 1 or 0."""

    scale: _F64 | None
    shift: _F64 | None


def fuse_conv_bn(graph: Graph) -> int:
    """Rewrite in place, nested graphs included; return the number of rewrites.

    Before: ``BatchNormalization``, ``Mul``, ``Div``, ``Add`` or ``Sub`` with constants per output channel, directly behind
    ``Conv``, ``ConvTranspose`` or ``Linear`` with constant weights, the only reader of its output. After: weights
    times scale and bias times scale plus shift, computed in float64.
    """
    count = sum(fuse_conv_bn(sub) for node in graph.nodes for sub in node.subgraphs())
    producers, uses = graph.producers(), graph.consumers()
    dead: list[Node] = []
    for node in graph.nodes:
        if node.domain or node.op_type not in _STEPS:
            continue
        found = _match(graph, node, producers)
        if found is None:
            continue
        conv, affine = found
        if single_use(graph, uses, conv.outputs[0]) is None:
            continue
        _apply(graph, conv, affine)
        conv.result = conv.result or conv.outputs[0]
        conv.outputs = [node.outputs[0]]
        producers[node.outputs[0]] = conv
        dead.append(node)
    graph.remove(dead)
    return count + len(dead) + _fuse_pad(graph)


_STEPS = frozenset({"BatchNormalization", "Mul", "Div", "Add", "Sub"})


def _match(graph: Graph, node: Node, producers: dict[str, Node]) -> tuple[Node, _Affine] | None:
    for index in (0, 1) if node.op_type in ("Mul", "Add") else (0,):
        conv = producers.get(node.inputs[index])
        if conv is None or conv.op_type not in _WEIGHTED or not _foldable(graph, conv):
            continue
        channels = _channels(graph, conv)
        if node.op_type == "BatchNormalization":
            affine = _batch_norm(graph, node, conv)
        else:
            affine = _binary(graph, node, conv, channels, graph.constant(node.inputs[1 - index]))
        if affine is not None:
            return conv, affine
    return None


def _foldable(graph: Graph, conv: Node) -> bool:
    weight = graph.constant(conv.inputs[1])
    if weight is None or weight.dtype != np.float32:
        return False
    return not conv.has_input(2) or graph.constant(conv.inputs[2]) is not None


def _channels(graph: Graph, conv: Node) -> int:
    shape = graph.constants[conv.inputs[1]].shape
    if conv.op_type == "Conv":
        return int(shape[0])
    if conv.op_type == "ConvTranspose":
        return int(shape[1]) * int(conv.attrs.get("group", 1))
    return int(shape[0 if conv.attrs.get("transposed") else 1])


def _rank(graph: Graph, conv: Node) -> int | None:
    if conv.op_type == LINEAR:
        return graph.info(conv.inputs[0]).rank
    return graph.constants[conv.inputs[1]].ndim


def _batch_norm(graph: Graph, node: Node, conv: Node) -> _Affine | None:
    """With s = gamma / sqrt(var + eps): scale s, shift beta - mean * s."""
    arrays = [graph.constant(name) for name in node.inputs[1:5]]
    known = [np.asarray(array, np.float64) for array in arrays if array is not None]
    if len(known) != 4 or len(node.outputs) != 1 or node.attrs.get("training_mode"):
        return None
    if conv.op_type == LINEAR and _rank(graph, conv) != 2:
        return None  # axis 1 is not the axis of Linear's columns
    gamma, beta, mean, var = known
    scale = gamma / np.sqrt(var + float(node.attrs.get("epsilon", 1e-5)))
    return _Affine(scale, beta - mean * scale)


def _binary(
    graph: Graph, node: Node, conv: Node, channels: int, array: npt.NDArray[Any] | None
) -> _Affine | None:
    rank = _rank(graph, conv)
    if array is None or rank is None or array.dtype != np.float32:
        return None
    values = _per_channel(array, channels, rank, rank - 1 if conv.op_type == LINEAR else 1)
    if values is None:
        return None
    if node.op_type == "Mul":
        return _Affine(values, None)
    if node.op_type == "Div":
        return None if (values == 0).any() else _Affine(1 / values, None)
    return _Affine(None, values if node.op_type == "Add" else -values)


def _per_channel(array: npt.NDArray[Any], channels: int, rank: int, axis: int) -> _F64 | None:
    """A broadcast operand as one value per channel, None when it varies elsewhere or adds axes."""
    if array.ndim > rank:
        return None
    shape = (*[1] * (rank - array.ndim), *array.shape)
    if any(size != 1 for i, size in enumerate(shape) if i != axis) or shape[axis] not in (1, channels):
        return None
    return np.broadcast_to(array.reshape(-1).astype(np.float64), (channels,))


def _apply(graph: Graph, conv: Node, affine: _Affine) -> None:
    weight = graph.constants[conv.inputs[1]]
    bias = graph.constants[conv.inputs[2]].astype(np.float64) if conv.has_input(2) else None
    if affine.scale is not None:
        scaled = (weight * _spread(conv, weight, affine.scale)).astype(np.float32)
        conv.inputs[1] = graph.add_constant(conv.inputs[1], scaled)
        bias = None if bias is None else bias.reshape(-1) * affine.scale
    if affine.shift is not None:
        bias = affine.shift if bias is None else bias + affine.shift
    if bias is not None:
        name = graph.add_constant(f"{conv.outputs[0]}_bias", bias.astype(np.float32))
        conv.inputs = [*conv.inputs[:2], name]


def _spread(conv: Node, weight: npt.NDArray[Any], scale: _F64) -> _F64:
    """The scale in a shape that broadcasts over the weights."""
    if conv.op_type == "Conv":
        return scale.reshape(-1, *[1] * (weight.ndim - 1))
    if conv.op_type == LINEAR:
        return scale[:, None] if conv.attrs.get("transposed") else scale
    groups = int(
        conv.attrs.get("group", 1)
    )  # weight [ic, oc / group, ...]; rows of a group share its channels
    rows = np.repeat(scale.reshape(groups, -1), weight.shape[0] // groups, axis=0)
    return rows.reshape(*rows.shape, *[1] * (weight.ndim - 2))


def _fuse_pad(graph: Graph) -> int:
    """Pad with zeros on spatial axes before Conv is part of the convolution's own padding."""
    producers, count = graph.producers(), 0
    for conv in graph.nodes:
        if conv.op_type != "Conv" or conv.domain or conv.attrs.get("auto_pad", "NOTSET") != "NOTSET":
            continue
        pad = producers.get(conv.inputs[0])
        added = _zero_pads(graph, pad) if pad is not None and pad.op_type == "Pad" else None
        if pad is None or added is None:
            continue
        spatial = len(added) // 2
        own = conv.attrs.get("pads") or [0] * (2 * spatial)
        conv.attrs["pads"] = [int(a) + b for a, b in zip(own, added, strict=True)]
        conv.inputs[0] = pad.inputs[0]
        count += 1
    return count


def _zero_pads(graph: Graph, pad: Node) -> list[int] | None:
    pads, rank = graph.constant(pad.input(1)), graph.info(pad.inputs[0]).rank
    if pads is None or rank is None or pad.attrs.get("mode", "constant") != "constant":
        return None
    if pad.has_input(2):
        value = graph.constant(pad.inputs[2])
        if value is None or value.reshape(-1).any():
            return None
    axes = list(range(rank))
    if pad.has_input(3):
        given = graph.constant(pad.inputs[3])
        if given is None:
            return None
        axes = [axis % rank for axis in int_list(given)]
    sizes = int_list(pads)
    begin, end = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        begin[axis], end[axis] = sizes[i], sizes[i + len(axes)]
    if any(begin[:2] + end[:2]) or min(sizes) < 0:
        return None
    return [*begin[2:], *end[2:]]
