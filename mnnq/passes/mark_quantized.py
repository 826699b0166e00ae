"""Quantization of a source model, kept: activations become `FAKE_QUANT` nodes, weights float with their grid remembered.

Three forms are read: pairs of ``QuantizeLinear`` and ``DequantizeLinear`` around float operators (QAT exports, QDQ files),
whole quantized layers (``QLinearConv``, ``com.microsoft::QGemm``), and operators that only move codes between those.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.ir.graph import FAKE_QUANT, MNNQ_DOMAIN, Graph, Node
from mnnq.passes.expand_quantized import CONTRIB, QLINEAR, expand_concat, expand_qlinear
from mnnq.passes.infer_shapes import infer_shapes
from mnnq.passes.rewriting import int_list

_Array = npt.NDArray[Any]

#: Types of codes that fit a byte.
_BYTES = frozenset({"int8", "uint8"})

#: Operators that move codes or choose among them: done on floats of the same grid they give the same codes.
_MOVERS = frozenset(
    {
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "MaxPool",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)

#: Position of the weights of operators that have some.
_WEIGHTED = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1)}


@dataclass
class WeightGrids:
    """Scales of the weights that were codes in the source, found again by the values of a channel.

    Passes transpose weights and give them to other operators; a channel keeps its number of weights and its extremes.
    """

    scales: dict[tuple[int, float, float], list[np.float32]] = field(default_factory=dict)
    activations: int = 0

    def add(self, weights: _Array, scale: _Array, axis: int) -> None:
        """Remember float weights whose scale is one number, or one per index of `axis`."""
        axes = range(min(2, weights.ndim)) if scale.size == 1 else (axis,)
        for along in axes:
            rows = np.moveaxis(weights, along, 0).reshape(weights.shape[along], -1)
            if not rows.size:
                continue
            keys = zip(rows.min(axis=1), rows.max(axis=1), strict=True)
            for (low, high), step in zip(keys, np.broadcast_to(scale.reshape(-1), len(rows)), strict=True):
                known = self.scales.setdefault((rows.shape[1], float(low), float(high)), [])
                if step not in known:
                    known.append(step)

    def codes(self, weights: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], _Array] | None:
        """Codes and scales whose products are the rows of `weights`; None when some row has none within int8.

        Rows that a pass has multiplied by a factor are recognized as multiples of one number.
        """
        codes = np.zeros(weights.shape, np.int8)
        scales = np.ones(len(weights), np.float32)
        open_rows = []
        for i, row in enumerate(weights):
            known = self.scales.get((row.size, float(row.min()), float(row.max())), ())
            for scale in known:
                ratio = np.rint(row / scale)
                if ratio.min() >= -128 and ratio.max() <= 127 and np.array_equal(ratio * scale, row):
                    codes[i], scales[i] = ratio, scale
                    break
            else:
                open_rows.append(i)
        if open_rows:
            found = _lattice(weights[open_rows])
            if found is None:
                return None
            codes[open_rows], scales[open_rows] = found
        return codes, scales


#: Distance from whole numbers up to which ratios of rounded products lie.
_CLOSE = 6e-5


def _lattice(rows: npt.NDArray[np.float32]) -> tuple[_Array, _Array] | None:
    """Codes and scales of rows that are whole multiples, to float32 precision, of one number each; None if one is not."""
    wide = rows.astype(np.float64)
    largest = np.abs(wide).max(axis=1)
    if not np.isfinite(largest).all():
        return None
    codes, scales = np.zeros(rows.shape), np.ones(len(rows))
    left = np.flatnonzero(largest > 0)
    for top in range(1, 129):
        if not left.size:
            break
        step = largest[left] / top
        ratio = wide[left] / step[:, None]
        whole = np.rint(ratio)
        fits = (np.abs(ratio - whole) < _CLOSE).all(axis=1) & (whole.max(axis=1) <= 127)
        codes[left[fits]], scales[left[fits]] = whole[fits], step[fits]
        left = left[~fits]
    return None if left.size else (codes, scales.astype(np.float32))


def quantizing_ops(graph: Graph) -> tuple[tuple[str, int], ...]:
    """Kinds of operators that quantize or compute on codes, with their numbers, most first."""
    found = Counter(
        node.op_type for node in graph.nodes if "quantize" in node.op_type.lower() or node.op_type.endswith("Integer")
        or (node.domain == CONTRIB and node.op_type in (*QLINEAR, "QLinearConcat", "QGemm"))
        or node.op_type.startswith("QLinear")
    )  # fmt: skip
    return tuple(found.most_common())


def mark_quantized(graph: Graph) -> WeightGrids:
    """Rewrite the main graph in place and return what its weights were.

    Whatever is not of these forms (16-bit codes, activations with a scale per channel, scales computed at run time)
    stays for `mnnq.passes.expand_quantized.expand_quantized`.
    """
    grids = WeightGrids()
    _float_layers(graph)
    infer_shapes(graph)
    _float_movers(graph)
    infer_shapes(graph)
    _mark_activations(graph, grids)
    _fold_weights(graph, grids)
    return grids


# -- operators on codes


def _float_layers(graph: Graph) -> None:
    nodes: list[Node] = []
    for node in graph.nodes:
        made = None
        if node.domain == CONTRIB and node.op_type in QLINEAR:
            made = expand_qlinear(graph, node)
        elif node.domain == CONTRIB and node.op_type == "QLinearConcat":
            made = expand_concat(graph, node)
        elif node.domain == CONTRIB and node.op_type == "QGemm":
            made = _gemm(graph, node)
        elif node.domain == "" and node.op_type == "QLinearConv":
            made = _product(graph, node, "Conv")
        elif node.domain == "" and node.op_type == "QLinearMatMul":
            made = _product(graph, node, "MatMul")
        nodes.extend([node] if made is None else made)
    graph.nodes = nodes


def _product(graph: Graph, node: Node, op_type: str) -> list[Node] | None:
    """``QLinearConv``, ``QLinearMatMul``: dequantized operands, the float operator, its result quantized."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = node.inputs[:8]
    bias = graph.constant(node.input(8)) if node.has_input(8) else None
    if graph.constant(w) is None or (node.has_input(8) and bias is None):
        return None
    return _layer(
        graph, node, op_type, (x, x_scale, x_zero), (w, w_scale, w_zero), bias, (y_scale, y_zero), 0
    )


def _gemm(graph: Graph, node: Node) -> list[Node] | None:
    a, a_scale, a_zero, w, w_scale, w_zero = node.inputs[:6]
    bias = graph.constant(node.input(6)) if node.has_input(6) else None
    if graph.constant(w) is None or (node.has_input(6) and bias is None) or not node.has_input(8):
        return None
    if float(node.attrs.get("alpha", 1.0)) != 1.0 or node.attrs.get("transA"):
        return None
    axis = 0 if node.attrs.get("transB") else 1
    result = (node.inputs[7], node.inputs[8])
    return _layer(graph, node, "Gemm", (a, a_scale, a_zero), (w, w_scale, w_zero), bias, result, axis)


def _layer(
    graph: Graph,
    node: Node,
    op_type: str,
    source: tuple[str, str, str],
    weight: tuple[str, str, str],
    bias: _Array | None,
    result: tuple[str, str],
    axis: int,
) -> list[Node] | None:
    scales = [graph.constant(name) for name in (source[1], weight[1])]
    if scales[0] is None or scales[1] is None or scales[0].size != 1:
        return None
    if op_type == "MatMul":
        rank = graph.info(weight[0]).rank or 0
        axis = rank - 1
    out = node.outputs[0]
    data, floats, total = graph.fresh(f"{out}_x"), graph.fresh(f"{out}_w"), graph.fresh(f"{out}_float")
    inputs = [data, floats]
    if bias is not None:
        step = scales[0].reshape(-1).astype(np.float32) * scales[1].reshape(-1).astype(np.float32)
        inputs.append(graph.add_constant(f"{out}_bias", bias.astype(np.float32) * step))
    return [
        Node("DequantizeLinear", [name for name in source if name], [data]),
        Node("DequantizeLinear", [name for name in weight if name], [floats], {"axis": axis}),
        Node(op_type, inputs, [total], dict(node.attrs), node.name),
        Node("QuantizeLinear", [total, *result], [out]),
    ]


def _float_movers(graph: Graph) -> None:
    """Operators that move codes work between a dequantization and a quantization of the same grid."""
    grid: dict[str, list[str]] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.domain == "" and node.op_type == "QuantizeLinear" and not _blocked(node):
            grid[node.outputs[0]] = list(node.inputs[1:])
        count = len(node.inputs) if node.op_type == "Concat" else 1
        moved = node.inputs[:count]
        single = node.op_type != "MaxPool" or not node.has_output(1)
        if node.domain or not _moves(node) or not single or not moved or any(n not in grid for n in moved):
            nodes.append(node)
            continue
        parameters = grid[moved[0]]
        if any(grid[name] != parameters for name in moved):
            nodes.append(node)
            continue
        floats = [graph.fresh(f"{name}_float") for name in moved]
        results = [graph.fresh(f"{name}_float") if name else "" for name in node.outputs]
        nodes += [Node("DequantizeLinear", [a, *parameters], [b]) for a, b in zip(moved, floats, strict=True)]
        nodes.append(
            Node(node.op_type, [*floats, *node.inputs[count:]], results, dict(node.attrs), node.name)
        )
        for name, result in zip(node.outputs, results, strict=True):
            if name:
                nodes.append(Node("QuantizeLinear", [result, *parameters], [name]))
                grid[name] = parameters
    graph.nodes = nodes


def _moves(node: Node) -> bool:
    if node.op_type in ("Resize", "Upsample"):
        return node.attrs.get("mode", "nearest") in ("nearest", b"nearest")
    return node.op_type in _MOVERS


# -- activations


@dataclass(frozen=True)
class _Grid:
    """``real = (code - zero) * scale`` with codes of -128 to 127, clamped to `low` and `high`."""

    scale: float
    zero: int
    low: int
    high: int


def _blocked(node: Node) -> bool:
    return bool(node.attrs.get("block_size") or node.attrs.get("output_dtype") or node.attrs.get("precision"))


def _mark_activations(graph: Graph, grids: WeightGrids) -> None:
    producers = graph.producers()
    nodes: list[Node] = []
    for node in graph.nodes:
        made = _fake_quant(graph, producers, node) if node.op_type == "DequantizeLinear" else None
        grids.activations += made is not None
        nodes.append(made or node)
    graph.nodes = nodes


def _fake_quant(graph: Graph, producers: dict[str, Node], node: Node) -> Node | None:
    """The node for a dequantization whose input is a quantization with the same parameters, perhaps clamped."""
    source = producers.get(node.inputs[0])
    limits = None
    if source is not None and source.op_type == "Clip" and source.domain == "":
        limits = _limits(graph, source)
        source = producers.get(source.inputs[0]) if limits is not None else None
    if source is None or source.op_type != "QuantizeLinear" or source.domain or node.domain:
        return None
    x = source.inputs[0]
    if (
        graph.constant(x) is not None
        or graph.info(x).dtype != np.float32
        or _blocked(source)
        or _blocked(node)
    ):
        return None
    grid, back = _grid(graph, source, limits), _grid(graph, node, limits)
    if grid is None or grid != back:
        return None
    attrs = {"scale": grid.scale, "zero": grid.zero, "low": grid.low, "high": grid.high}
    graph.values[node.outputs[0]] = graph.info(x)
    return Node(FAKE_QUANT, [x], list(node.outputs), attrs, node.name, MNNQ_DOMAIN)


def _limits(graph: Graph, clip: Node) -> tuple[int, int] | None:
    """Bounds of a Clip of codes."""
    if "min" in clip.attrs or "max" in clip.attrs:
        return int(clip.attrs.get("min", -(2**31))), int(clip.attrs.get("max", 2**31))
    bounds = [graph.constant(clip.input(i)) if clip.has_input(i) else None for i in (1, 2)]
    if any(bound is None and clip.has_input(i) for i, bound in enumerate(bounds, 1)):
        return None
    low, high = bounds
    return (
        -(2**31) if low is None else int(low.reshape(-1)[0]),
        2**31 if high is None else int(high.reshape(-1)[0]),
    )


def _grid(graph: Graph, node: Node, limits: tuple[int, int] | None) -> _Grid | None:
    """Grid of a Quantize- or DequantizeLinear with one scale and codes of a byte."""
    scale = graph.constant(node.inputs[1])
    zero = graph.constant(node.inputs[2]) if node.has_input(2) else np.uint8(0)
    if scale is None or zero is None or scale.size != 1 or scale.dtype != np.float32:
        return None
    zero = np.asarray(zero)
    step = float(scale.reshape(-1)[0])
    if zero.size != 1 or zero.dtype.name not in _BYTES or not (np.isfinite(step) and step > 0):
        return None
    kind = np.iinfo(zero.dtype)
    shift = 128 if zero.dtype == np.uint8 else 0
    low, high = (kind.min, kind.max) if limits is None else limits
    low, high = max(low, kind.min), min(high, kind.max)
    point = int(zero.reshape(-1)[0])
    if not low <= point <= high:
        return None
    return _Grid(step, point - shift, low - shift, high - shift)


# -- weights


def _fold_weights(graph: Graph, grids: WeightGrids) -> None:
    """Dequantized weights become float constants."""
    readers = graph.consumers()
    producers = graph.producers()
    dead = []
    for node in graph.nodes:
        if node.op_type != "DequantizeLinear" or node.domain or _blocked(node):
            continue
        out = node.outputs[0]
        if out in graph.outputs or not _is_weight(out, readers):
            continue
        codes = _codes(graph, producers, node.inputs[0])
        scale = graph.constant(node.inputs[1])
        zero = graph.constant(node.inputs[2]) if node.has_input(2) else None
        if codes is None or codes.dtype.name not in _BYTES or scale is None or scale.dtype != np.float32:
            continue
        if node.has_input(2) and zero is None:
            continue
        axis = int(node.attrs.get("axis", 1)) % max(codes.ndim, 1)
        weights = _dequantize(codes, scale, zero, axis)
        grids.add(weights, scale, axis)
        graph.constants[out] = weights
        dead.append(node)
    graph.remove(dead)


def _is_weight(name: str, readers: dict[str, list[Node]]) -> bool:
    found = readers.get(name, [])
    for node in found:
        if node.op_type == "Transpose" and _is_weight(node.outputs[0], readers):
            continue
        if not any(node.input(i) == name for i in _WEIGHTED.get(node.op_type, ())):
            return False
    return bool(found)


def _spread(values: _Array, rank: int, axis: int) -> _Array:
    return (
        values.reshape([-1 if i == axis else 1 for i in range(rank)])
        if values.size > 1
        else values.reshape(())
    )


def _dequantize(codes: _Array, scale: _Array, zero: _Array | None, axis: int) -> _Array:
    centred = codes.astype(np.int32)
    if zero is not None:
        centred = centred - _spread(zero.astype(np.int32), codes.ndim, axis)
    return centred.astype(np.float32) * _spread(scale, codes.ndim, axis)


def _codes(graph: Graph, producers: dict[str, Node], name: str) -> _Array | None:
    """Constant codes, or those that constant floats are quantized to."""
    known = graph.constant(name)
    if known is not None:
        return known
    node, limits = producers.get(name), None
    if node is not None and node.op_type == "Clip":
        limits = _limits(graph, node)
        node = producers.get(node.inputs[0]) if limits is not None else None
    if node is None or node.op_type != "QuantizeLinear" or _blocked(node):
        return None
    values, scale = graph.constant(node.inputs[0]), graph.constant(node.inputs[1])
    zero = graph.constant(node.inputs[2]) if node.has_input(2) else np.uint8(0)
    if values is None or scale is None or zero is None:
        return None
    zero = np.asarray(zero)
    if values.dtype != np.float32 or scale.dtype != np.float32 or zero.dtype.name not in _BYTES:
        return None
    axis = int_list(node.attrs.get("axis", 1))[0] % max(values.ndim, 1)
    kind = np.iinfo(zero.dtype)
    low, high = limits or (kind.min, kind.max)
    codes = np.rint(values / _spread(scale, values.ndim, axis)) + _spread(
        zero.astype(np.float32), values.ndim, axis
    )
    clipped: np.ndarray = np.clip(codes, max(low, kind.min), min(high, kind.max)).astype(zero.dtype)
    return clipped
