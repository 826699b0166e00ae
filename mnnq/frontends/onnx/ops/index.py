"""Operators that compute or use positions: scatter, sort, arg-extrema, unique, non-maximum suppression."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mnnq.frontends.onnx.lowering import INT_LIMIT, Lowering, Unsupported
from mnnq.frontends.onnx.ops import _dims as dims
from mnnq.frontends.onnx.ops._dims import Size
from mnnq.frontends.onnx.ops.data import pad_with
from mnnq.frontends.onnx.registry import lowers
from mnnq.ir.graph import Node, ValueInfo

#: Largest [updates, positions] mask built for a scatter that the runtime cannot reduce.
_MAX_SCATTER_MASK = 1 << 22

#: Look for ties in the result of a float ``TopK`` when the comparison matrix has at most this many entries.
_MAX_TIE_SEARCH = 1 << 20

_REDUCTIONS = {"none": None, "add": "ADD", "mul": "MUL", "max": "MAXIMUM", "min": "MINIMUM"}


def _reduction(node: Node) -> str | None:
    name = str(node.attrs.get("reduction", "none"))
    if name not in _REDUCTIONS:
        msg = f"reduction {name!r}; known: {', '.join(_REDUCTIONS)}"
        raise Unsupported(msg)
    return _REDUCTIONS[name]


@lowers("ScatterND")
def scatter_nd(b: Lowering, node: Node) -> None:
    """Write (or add, multiply, ...) slices of the updates to positions given by index tuples."""
    b.check_attributes(node, "reduction")
    data, indices, updates = node.inputs[:3]
    out, kind = node.outputs[0], _reduction(node)
    shape = b.shape(indices)
    depth = shape[-1] if shape else None
    if not isinstance(depth, int):
        msg = "the length of the index tuples must be known"
        raise Unsupported(msg)
    sizes = dims.sizes_of(b, data)
    wrapped = dims.wrap_indices(b, indices, sizes[:depth])
    if kind is None or (kind in ("ADD", "MUL") and b.is_float(data)):
        scatter_slices(b, data, wrapped, updates, depth, kind, out)
        return
    known, tuples = b.static_shape(data), b.static_shape(indices)
    if known is None or tuples is None:
        msg = f"reduction {node.attrs['reduction']!r} on these types needs known shapes"
        raise Unsupported(msg)
    rows, inner, count = math.prod(known[:depth]), math.prod(known[depth:]), math.prod(tuples[:-1])
    position = _flat_positions(b, wrapped, list(known[:depth]))
    _scatter_by_mask(b, data, position, updates, (rows, inner, count), kind, out)


def scatter_slices(
    b: Lowering, data: str, indices: str, updates: str, depth: int, kind: str | None, out: str | None = None
) -> str:
    """``ScatterNd`` of slices ``data[indices]``; `kind` (None, ADD, MUL) says how they are combined.

    The runtime misplaces slices chosen by more than one index: they are chosen by one of a flattened tensor.
    """
    params: dict[str, Any] = {} if kind is None else {"param_type": "BinaryOp", "opType": kind}
    sizes = dims.sizes_of(b, data)
    if depth in (1, len(sizes)):
        return b.emit(
            "ScatterNd", [indices, updates, dims.shape_of(b, data), data], out, info=b.info(data), **params
        )  # fmt: skip
    rows, inner = dims.product(b, sizes[:depth]), dims.product(b, sizes[depth:])
    position = dims.unsqueeze(b, _flat_positions(b, indices, sizes[:depth]), [1])
    flat = dims.reshape_to(b, data, [rows, inner])
    parts = dims.reshape_to(b, updates, [-1, inner])
    made = b.emit("ScatterNd", [position, parts, dims.shape_tensor(b, [rows, inner]), flat], **params)
    return dims.reshape_to(b, made, sizes, out)


def _flat_positions(b: Lowering, indices: str, sizes: list[Size]) -> str:
    """Positions ``[count]`` in the flattened first axes of the index tuples ``[..., depth]``."""
    depth = len(sizes)
    strides = [dims.product(b, sizes[i + 1 :]) for i in range(depth)]
    weighted = b.binary("MUL", b.reshape(indices, [-1, depth]), dims.shape_tensor(b, strides))
    return b.emit(
        "Reduction", [weighted], param_type="ReductionParam", operation="SUM", dim=np.asarray([1], np.int32),
        keepDims=False, dType="DT_INT32", info=ValueInfo(dims.INT, (None,)),
    )  # fmt: skip


@lowers("ScatterElements")
def scatter_elements(b: Lowering, node: Node) -> None:
    """Write (or add, multiply, ...) the updates to positions given along one axis."""
    b.check_attributes(node, "axis", "reduction")
    data, indices, updates = node.inputs[:3]
    out, kind = node.outputs[0], _reduction(node)
    axis = dims.normal_axis(dims.int_attr(node, "axis", 0), b.rank(data))
    wrapped = dims.wrap_indices(b, indices, [dims.size_of(b, data, axis)])
    if kind is None or (kind in ("ADD", "MUL") and b.is_float(data)):
        # The number -1 says "no reduction".
        b.emit(
            "ScatterElements", [data, wrapped, updates, dims.scalar(b, axis)], out, param_type="BinaryOp",
            opType=kind or -1,
        )  # fmt: skip
        return
    known, where = b.static_shape(data), b.static_shape(indices)
    if known is None or where is None:
        msg = f"reduction {node.attrs['reduction']!r} on these types needs known shapes"
        raise Unsupported(msg)
    strides = [math.prod(known[i + 1 :]) for i in range(len(known))]
    base = sum(
        (np.arange(n) * (0 if i == axis else strides[i])).reshape(
            [-1 if i == j else 1 for j in range(len(where))]
        )
        for i, n in enumerate(where)
    )
    base = np.broadcast_to(np.asarray(base), where)
    along = b.binary("MUL", wrapped, dims.scalar(b, strides[axis]))
    position = b.binary("ADD", along, b.const(base.astype(np.int32), "base"))
    count = math.prod(where)
    _scatter_by_mask(b, data, b.reshape(position, [count]), updates, (math.prod(known), 1, count), kind, out)


def _scatter_by_mask(
    b: Lowering, data: str, position: str, updates: str, sizes: tuple[int, int, int], kind: str, out: str
) -> None:
    """Reduce the updates of every row with a [count, rows] mask: the runtime's own reductions are wrong here."""
    rows, inner, count = sizes
    if rows * inner * count > _MAX_SCATTER_MASK:
        msg = f"a reduction of {count} updates into {rows * inner} positions is too large for this type"
        raise Unsupported(msg)
    floating = b.is_float(data)
    neutral: dict[str, float] = {"ADD": 0, "MUL": 1, "MAXIMUM": -3.0e38, "MINIMUM": 3.0e38}
    value = neutral[kind] if floating else int(np.clip(neutral[kind], -(1 << 31) + 1, (1 << 31) - 1))
    operation = {"ADD": "SUM", "MUL": "PROD", "MAXIMUM": "MAXIMUM", "MINIMUM": "MINIMUM"}[kind]
    dtype = np.float32 if floating else np.int32
    hit = b.binary(
        "EQUAL",
        b.reshape(position, [count, 1, 1]),
        b.const(np.arange(rows, dtype=np.int32).reshape(1, rows, 1)),
    )
    spread = dims.broadcast_to(b, b.reshape(updates, [count, 1, inner]), [count, rows, inner])
    chosen = dims.select(b, hit, spread, _raw_scalar(b, value, dtype))
    merged = b.emit(
        "Reduction", [chosen], param_type="ReductionParam", operation=operation, dim=np.asarray([0], np.int32),
        keepDims=False, dType="DT_FLOAT" if floating else "DT_INT32",
        info=ValueInfo(b.info(data).dtype, (rows, inner)),
    )  # fmt: skip
    whole = b.binary(kind, b.reshape(data, [rows, inner]), merged)
    b.reshape(whole, list(b.static_shape(data) or ()), out)


def _raw_scalar(b: Lowering, value: float, dtype: type[np.generic]) -> str:
    """A scalar constant that may exceed the bound of integer constants."""
    if dtype is np.float32 or abs(value) <= INT_LIMIT:
        return b.const(np.asarray(value, dtype), "neutral")
    half = b.const(np.asarray(int(value / 2), np.int32), "neutral")
    return b.binary("ADD", half, half)


@lowers("TopK")
def top_k(b: Lowering, node: Node) -> None:
    """The `k` largest (smallest) along an axis in order; equal values in order of their index.

    The runtime lists equal values in any order. Indices are therefore searched for again where ties are
    likely (integers) or the search is cheap; elsewhere only the order of exactly equal floats is open.
    """
    b.check_attributes(node, "axis", "largest", "sorted")
    x, rank = node.inputs[0], b.rank(node.inputs[0])
    axis = dims.normal_axis(dims.int_attr(node, "axis", -1), rank)
    k = dims.constant_ints(b, node.inputs[1])
    count = node.inputs[1] if k is None else dims.int_list(b, k, "k")
    exact = node.has_output(1) and _search_is_worthwhile(b, x, axis, k)
    order = [*(i for i in range(rank) if i != axis), axis]
    moved = exact and axis != rank - 1
    source = b.permute(x, order) if moved else x
    shape = b.shape(source) or ()
    at = rank - 1 if moved else axis
    picked = tuple((k[0] if k else None) if i == at else d for i, d in enumerate(shape))
    outs = [
        node.outputs[i] if node.has_output(i) and not moved and not (exact and i) else b.fresh(stem)
        for i, stem in enumerate(("values", "indices"))
    ]
    b.emit_many(
        "TopKV2", [source, count, dims.scalar(b, at)], outs, param_type="TopKV2", sorted=True,
        largest=bool(node.attrs.get("largest", 1)), T="DT_FLOAT" if b.is_float(x) else "DT_INT32",
        infos=[ValueInfo(b.info(x).dtype, picked), ValueInfo(dims.INT, picked)],
    )  # fmt: skip
    if not exact:
        return
    back = [order.index(i) for i in range(rank)]
    found = _first_positions(b, source, outs[0], None if moved else node.outputs[1])
    if moved:
        b.permute(found, back, node.outputs[1])
        if node.has_output(0):
            b.permute(outs[0], back, node.outputs[0])


def _search_is_worthwhile(b: Lowering, x: str, axis: int, k: list[int] | None) -> bool:
    if k is not None and k[0] == 1:
        return False
    if not b.is_float(x):
        return True
    shape = b.shape(x) or ()
    size = shape[axis] if shape else None
    if k is None or not isinstance(size, int):
        return False
    return math.prod(d for d in shape if isinstance(d, int)) * k[0] <= _MAX_TIE_SEARCH


def _first_positions(b: Lowering, x: str, values: str, out: str | None) -> str:
    """Where sorted `values` ``[..., k]`` lie in `x` ``[..., n]``, the i-th of equal values at its i-th occurrence."""
    rank = b.rank(x)
    column, known = dims.unsqueeze(b, values, [rank]), b.shape(values) or ()
    equal = b.binary("EQUAL", column, dims.unsqueeze(b, values, [rank - 1]))
    k = known[-1] if known else None
    if isinstance(k, int):
        earlier = b.const(np.tri(k, k, 0, np.int32), "earlier")
    else:
        place = dims.iota(b, 0, dims.size_of(b, values, rank - 1))
        earlier = b.binary("GREATER_EQUAL", dims.unsqueeze(b, place, [1]), dims.unsqueeze(b, place, [0]))
    number = b.emit(
        "Reduction", [b.binary("MUL", equal, earlier)], param_type="ReductionParam", operation="SUM",
        dim=np.asarray([rank], np.int32), keepDims=True, dType="DT_INT32",
    )  # fmt: skip
    hits = b.binary("EQUAL", column, dims.unsqueeze(b, x, [rank - 1]))
    running = b.emit(
        "CumSum", [hits, dims.scalar(b, rank)], param_type="CumSum", exclusive=False, reverse=False
    )
    reached = b.binary("EQUAL", running, number)
    return b.emit(
        "ArgMax", [reached], out, param_type="ArgMax", axis=rank, topK=1, outMaxVal=0, softmaxThreshold=0,
        info=ValueInfo(dims.INT, tuple(known)),
    )  # fmt: skip


@lowers("ArgMax", "ArgMin")
def arg_extremum(b: Lowering, node: Node) -> None:
    """Index of the first (last) largest or smallest element along an axis."""
    b.check_attributes(node, "axis", "keepdims", "select_last_index")
    x, out = node.inputs[0], node.outputs[0]
    axis = dims.normal_axis(dims.int_attr(node, "axis", 0), b.rank(x))
    keep, last = dims.int_attr(node, "keepdims", 1), dims.int_attr(node, "select_last_index", 0)
    shape = b.shape(x) or ()
    kind = node.op_type
    if kind == "ArgMin" and not b.is_float(x):
        # The runtime compares integers as floats there.
        x, kind = b.unary("NEG", x), "ArgMax"
    source = dims.backward(b, x, -1, -INT_LIMIT, axis, -1) if last else x
    found = b.emit(
        kind, [source], out if not keep and not last else None, param_type="ArgMax", axis=axis, topK=1,
        outMaxVal=0, softmaxThreshold=0,
        info=ValueInfo(dims.INT, tuple(d for i, d in enumerate(shape) if i != axis)),
    )  # fmt: skip
    if last:
        end = dims.as_scalar(b, dims.arithmetic(b, "SUB", dims.size_of(b, x, axis), 1))
        reduced = b.info(found)
        found = b.binary("SUB", end, found, None if keep else out)
        b.note(found, reduced)
    if keep:
        dims.unsqueeze(b, found, [axis], out)


@lowers("Unique")
def unique(b: Lowering, node: Node) -> None:
    """Distinct elements with first positions, inverse and counts; sorted, or in order of first appearance."""
    b.check_attributes(node, "axis", "sorted")
    x = node.inputs[0]
    if "axis" in node.attrs and b.rank(x) != 1:
        msg = "unique slices along an axis"
        raise Unsupported(msg)
    if b.rank(x) != 1:
        x = b.reshape(x, [-1])
    by_value = dims.int_attr(node, "sorted", 1)
    # The runtime orders floats by their bits, negative ones the wrong way round.
    ready = by_value and not b.is_float(x)
    names = ["values", "first", "inverse", "counts"]
    wanted = [i for i in range(4) if node.has_output(i)]
    outs = [node.outputs[i] if ready and i in wanted else b.fresh(names[i]) for i in range(4)]
    some = ValueInfo(dims.INT, (None,))
    b.emit_many("Unique", [x], outs, infos=[ValueInfo(b.info(x).dtype, (None,)), some, some, some])
    if ready:
        return
    count = b.emit("Shape", [outs[0]], default_format="NCHW", info=ValueInfo(dims.INT, (1,)))
    order = _argsort(b, outs[0 if by_value else 1], count)
    for i in wanted:
        if i == 2:
            dims.gather(b, _argsort(b, order, count), outs[2], 0, node.outputs[2])
        else:
            dims.gather(b, outs[i], order, 0, node.outputs[i])


def _argsort(b: Lowering, x: str, count: str) -> str:
    """Indices that sort a vector of distinct values in ascending order."""
    some = ValueInfo(dims.INT, (None,))
    return b.emit_many(
        "TopKV2", [x, count, dims.scalar(b, 0)], [b.fresh("sorted"), b.fresh("order")], param_type="TopKV2",
        sorted=True, largest=False, T="DT_FLOAT" if b.is_float(x) else "DT_INT32", infos=[some, some],
    )[1]  # fmt: skip


@lowers("NonMaxSuppression")
def non_max_suppression(b: Lowering, node: Node) -> None:
    """Per batch and class: boxes by falling score, without those that overlap a chosen one too much."""
    b.check_attributes(node, "center_point_box")
    boxes, scores = node.inputs[:2]
    shape, classes = b.shape(boxes), b.shape(scores)
    batch = shape[0] if shape else None
    count = classes[1] if classes and len(classes) > 1 else None
    if not isinstance(batch, int) and classes and isinstance(classes[0], int):
        batch = classes[0]
    if not isinstance(batch, int) or not isinstance(count, int):
        msg = "the numbers of batches and classes must be known"
        raise Unsupported(msg)
    limit = dims.constant_ints(b, node.input(2)) if node.has_input(2) else [0]
    if limit is not None and limit[0] <= 0:
        msg = "max_output_boxes_per_class 0: no box is ever selected"
        raise Unsupported(msg)
    if dims.int_attr(node, "center_point_box", 0):
        boxes = _corner_boxes(b, boxes)
    most = node.inputs[2]
    overlap = node.inputs[3] if node.has_input(3) else b.const(np.zeros(1, np.float32), "iou_threshold")
    least = (
        node.inputs[4] if node.has_input(4) else b.const(np.full(1, -3.4e38, np.float32), "score_threshold")
    )
    found = []
    for n in range(batch):
        boxes_n = (
            dims.squeeze(b, dims.strided_slice(b, boxes, [n], [n + 1], [0]), [0])
            if batch > 1
            else b.reshape(boxes, [-1, 4])
        )
        for c in range(count):
            one = dims.strided_slice(b, scores, [n, c], [n + 1, c + 1], [0, 1])
            kept = b.emit(
                "NonMaxSuppressionV2", [boxes_n, b.reshape(one, [-1]), most, overlap, least],
                param_type="NonMaxSuppressionV2", info=ValueInfo(dims.INT, (None,)),
            )  # fmt: skip
            column = dims.unsqueeze(b, kept, [1])
            pads: list[tuple[Size, Size]] = [(0, 0), (2, 0)]
            tagged = pad_with(b, column, pads, None)
            found.append(b.binary("ADD", tagged, dims.int_list(b, [n, c, 0])))
    if len(found) == 1:
        b.identity(found[0], node.outputs[0])
    else:
        dims.concat(b, found, 0, node.outputs[0])


def _corner_boxes(b: Lowering, boxes: str) -> str:
    """From [x_center, y_center, width, height] to [y1, x1, y2, x2]."""
    x, y, w, h = (dims.strided_slice(b, boxes, [i], [i + 1], [2]) for i in range(4))
    half = b.const(np.float32(0.5), "half")
    half_w, half_h = b.binary("MUL", w, half), b.binary("MUL", h, half)
    corners = [
        b.binary("SUB", y, half_h), b.binary("SUB", x, half_w), b.binary("ADD", y, half_h), b.binary("ADD", x, half_w),
    ]  # fmt: skip
    return dims.concat(b, corners, 2, info=b.info(boxes))


@lowers("CenterCropPad")
def center_crop_pad(b: Lowering, node: Node) -> None:
    """Crop or zero-pad axes around their centre to given sizes."""
    b.check_attributes(node, "axes")
    x, out = node.inputs[0], node.outputs[0]
    rank = b.rank(x)
    axes = [dims.normal_axis(int(a), rank) for a in node.attrs.get("axes", range(rank))]
    known = dims.constant_ints(b, node.inputs[1])
    starts: list[Size] = []
    ends: list[Size] = []
    pads: list[tuple[Size, Size]] = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        have = dims.size_of(b, x, axis)
        want: Size = (
            known[i] if known is not None else dims.strided_slice(b, node.inputs[1], [i], [i + 1], [0])
        )
        cut = dims.arithmetic(b, "MAXIMUM", dims.arithmetic(b, "SUB", have, want), 0)
        start = dims.arithmetic(b, "FLOORDIV", cut, 2)
        starts.append(start)
        ends.append(dims.arithmetic(b, "ADD", start, dims.arithmetic(b, "MINIMUM", have, want)))
        missing = dims.arithmetic(b, "MAXIMUM", dims.arithmetic(b, "SUB", want, have), 0)
        before = dims.arithmetic(b, "FLOORDIV", missing, 2)
        pads[axis] = (before, dims.arithmetic(b, "SUB", missing, before))
    cropped = dims.strided_slice(b, x, dims.shape_tensor(b, starts), dims.shape_tensor(b, ends), axes)
    pad_with(b, cropped, pads, None, out)


@lowers("TensorScatter")
def tensor_scatter(b: Lowering, node: Node) -> None:
    """Write an update into a cache along the sequence axis, from a position per batch on (wrapping if circular)."""
    b.check_attributes(node, "axis", "mode")
    cache, update, out = node.inputs[0], node.inputs[1], node.outputs[0]
    mode = str(node.attrs.get("mode", "linear"))
    if mode not in ("linear", "circular"):
        msg = f"mode {mode!r}; known: linear, circular"
        raise Unsupported(msg)
    rank = b.rank(cache)
    axis = dims.normal_axis(dims.int_attr(node, "axis", -2), rank)
    order = [0, axis, *(i for i in range(1, rank) if i != axis)]
    batch, steps = dims.size_of(b, cache, 0), dims.size_of(b, update, axis)
    length = dims.size_of(b, cache, axis)
    offset = dims.reshape_to(b, dims.iota(b, 0, steps), [1, -1])
    position = dims.broadcast_to(b, offset, [batch, steps])
    if node.has_input(2):
        position = b.binary("ADD", b.reshape(node.inputs[2], [-1, 1]), position)
    if mode == "circular":
        position = b.binary("MOD", position, dims.as_scalar(b, length))
    row = dims.broadcast_to(b, dims.reshape_to(b, dims.iota(b, 0, batch), [-1, 1]), [batch, steps])
    pair = dims.concat(b, [dims.unsqueeze(b, t, [2]) for t in (row, _as_matrix(b, position, row))], 2)
    moved, fresh = (b.permute(t, order) if order != [*range(rank)] else t for t in (cache, update))
    back = [order.index(i) for i in range(rank)]
    written = scatter_slices(b, moved, pair, fresh, 2, None, None if order != [*range(rank)] else out)
    if order != [*range(rank)]:
        b.permute(written, back, out)


def _as_matrix(b: Lowering, x: str, like: str) -> str:
    b.note(x, ValueInfo(dims.INT, b.shape(like)))
    return x
