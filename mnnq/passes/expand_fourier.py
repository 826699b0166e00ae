"""``STFT`` and ``DFT`` of a known length become a convolution and a matrix product with a constant matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.ir.graph import Graph, Node

#: Longer transforms stay as they are: their matrix would have more than 2 * MAX_LENGTH ** 2 entries.
MAX_LENGTH = 4096


def expand_fourier(graph: Graph) -> int:
    """Rewrite in place, nested graphs included; return the number of operators rewritten.

    Before: ``STFT(signal, step, window, length)`` with constants but for the signal ``[B, L, 1 or 2]``; ``DFT(x,
    length, axis)`` with constant length and axis, along an axis of known length. After: one-dimensional convolution
    with stride ``step``; MatMul with a constant. Both compute ``X[k] = sum_n x[n] exp(-2 pi i k n / N)``.
    """
    count = sum(expand_fourier(sub) for node in graph.nodes for sub in node.subgraphs())
    nodes: list[Node] = []
    for node in graph.nodes:
        made = None
        if node.domain == "" and node.op_type == "STFT":
            made = _short_time(graph, node)
        elif node.domain == "" and node.op_type == "DFT":
            made = _discrete(graph, node)
        nodes.extend([node] if made is None else made)
        count += made is not None
    graph.nodes = nodes
    return count


def _matrix(rows: int, length: int, bins: int, channels: int, *, inverse: bool) -> npt.NDArray[np.float64]:
    """``[rows, channels, bins, 2]``: what real and imaginary parts of the input add to those of the output."""
    turns = np.outer(np.arange(rows), np.arange(bins)) % length
    angle = 2 * np.pi * turns / length * (1 if inverse else -1)
    matrix = np.empty((rows, channels, bins, 2))
    matrix[:, 0, :, 0], matrix[:, 0, :, 1] = np.cos(angle), np.sin(angle)
    if channels == 2:
        matrix[:, 1, :, 0], matrix[:, 1, :, 1] = -np.sin(angle), np.cos(angle)
    return matrix / length if inverse else matrix


def _scalar(graph: Graph, name: str) -> int | None:
    value = graph.constant(name)
    return int(value.reshape(-1)[0]) if value is not None and value.size == 1 else None


def _ints(graph: Graph, stem: str, values: list[int]) -> str:
    return graph.add_constant(stem, np.asarray(values, np.int64))


def _short_time(graph: Graph, node: Node) -> list[Node] | None:
    signal, info = node.inputs[0], graph.info(node.inputs[0])
    step, window = _scalar(graph, node.inputs[1]), graph.constant(node.input(2))
    if step is None or step < 1 or (node.has_input(2) and window is None) or info.dtype != np.float32:
        return None
    length = _scalar(graph, node.input(3)) if node.has_input(3) else None
    if length is None:
        length = None if window is None or node.has_input(3) else window.size
    channels = info.shape[-1] if info.rank == 3 and info.shape else 1
    if length is None or not 1 <= length <= MAX_LENGTH or info.rank not in (2, 3) or channels not in (1, 2):
        return None
    onesided = bool(node.attrs.get("onesided", 1))
    if (window is not None and window.size != length) or (onesided and channels == 2):
        return None
    bins = length // 2 + 1 if onesided else length
    weight = _matrix(length, length, bins, int(channels), inverse=False)
    if window is not None:
        weight *= window.reshape(-1, 1, 1, 1)
    # [rows, channels, bins, 2] -> [bins * 2, channels, rows]
    kernel = np.ascontiguousarray(
        weight.transpose(2, 3, 1, 0).reshape(2 * bins, channels, length), np.float32
    )
    out = node.outputs[0]
    planar, spectrum, turned = (graph.fresh(out) for _ in range(3))
    first = (
        Node("Transpose", [signal], [planar], {"perm": [0, 2, 1]})
        if info.rank == 3
        else Node("Unsqueeze", [signal, _ints(graph, f"{out}_axes", [1])], [planar])
    )
    attrs: dict[str, Any] = {"kernel_shape": [length], "strides": [step]}
    return [
        first,
        Node("Conv", [planar, graph.add_constant(f"{out}_fourier", kernel)], [spectrum], attrs, node.name),
        Node("Transpose", [spectrum], [turned], {"perm": [0, 2, 1]}),
        Node("Reshape", [turned, _ints(graph, f"{out}_shape", [0, 0, bins, 2])], [out]),
    ]


def _discrete(graph: Graph, node: Node) -> list[Node] | None:
    x, info = node.inputs[0], graph.info(node.inputs[0])
    axis = _scalar(graph, node.input(2)) if node.has_input(2) else -2
    if info.shape is None or info.dtype != np.float32 or axis is None or len(info.shape) < 2:
        return None
    rank = len(info.shape)
    axis = axis + rank if axis < 0 else axis
    rows, channels = info.shape[axis], info.shape[-1]
    length = _scalar(graph, node.input(1)) if node.has_input(1) else rows
    inverse, onesided = bool(node.attrs.get("inverse", 0)), bool(node.attrs.get("onesided", 0))
    if not isinstance(rows, int) or not isinstance(length, int) or channels not in (1, 2):
        return None
    if not 1 <= length <= MAX_LENGTH or rows > MAX_LENGTH or (onesided and (inverse or channels == 2)):
        return None
    bins = length // 2 + 1 if onesided else length
    weight = _matrix(rows, length, bins, int(channels), inverse=inverse)
    weight[length:] = 0
    matrix = np.asarray(weight.reshape(rows * int(channels), bins * 2), np.float32)
    out = node.outputs[0]
    order = [i for i in range(rank - 1) if i != axis] + [axis, rank - 1]
    keep = [0] * (rank - 2)
    moved, flat, product, apart = (graph.fresh(out) for _ in range(4))
    return [
        Node("Transpose", [x], [moved], {"perm": order}),
        Node("Reshape", [moved, _ints(graph, f"{out}_rows", [*keep, rows * int(channels)])], [flat]),
        Node("MatMul", [flat, graph.add_constant(f"{out}_fourier", matrix)], [product], {}, node.name),
        Node("Reshape", [product, _ints(graph, f"{out}_bins", [*keep, bins, 2])], [apart]),
        Node("Transpose", [apart], [out], {"perm": [int(i) for i in np.argsort(order)]}),
    ]
