"""Operators that move data: joining, splitting, slicing, gathering, padding, masks, repeating."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mnnq.frontends.onnx.lowering import INT_LIMIT, Lowering, Unsupported
from mnnq.frontends.onnx.ops import _dims as dims
from mnnq.frontends.onnx.ops._dims import Size
from mnnq.frontends.onnx.registry import lowers
from mnnq.ir.graph import Node, ValueInfo


@lowers("Concat")
def concat(b: Lowering, node: Node) -> None:
    """Join along an axis; parts known to be empty are left out."""
    b.check_attributes(node, "axis")
    axis = dims.int_attr(node, "axis", 0)
    ranks = [len(s) for s in map(b.shape, node.inputs) if s is not None]
    if axis < 0 and ranks:
        axis = dims.normal_axis(axis, ranks[0])
    parts = []
    for name in node.inputs:
        shape = b.shape(name)
        if shape is None or axis >= len(shape) or shape[axis] != 0:
            parts.append(name)
    if len(parts) == 1:
        b.identity(parts[0], node.outputs[0])
    else:
        dims.concat(b, parts or node.inputs, axis, node.outputs[0])


@lowers("Split")
def split(b: Lowering, node: Node) -> None:
    """Cut along an axis into parts of given sizes, or into equal ones (with ``num_outputs`` the last may be smaller)."""
    b.check_attributes(node, "axis", "num_outputs")
    x = node.inputs[0]
    axis = dims.int_attr(node, "axis", 0)
    if axis < 0:
        axis = dims.normal_axis(axis, b.rank(x))
    outs = [name or b.fresh("Slice") for name in node.outputs]
    sizes = dims.constant_ints(b, node.input(1))
    shape = b.shape(x)
    known = shape[axis] if shape is not None else None
    if sizes is None and not node.has_input(1) and isinstance(known, int):
        each = -(-known // len(outs))
        sizes = [min(each, known - i * each) for i in range(len(outs))]
    if sizes is not None and min(sizes) <= 0:
        outs, sizes = _empty_parts(b, node, outs, sizes)
    if len(outs) == 1:
        b.identity(x, outs[0])
    elif sizes is not None:
        b.emit_many(
            "Slice", [x], outs, param_type="Slice", axis=axis, sourceType="TORCH",
            slicePoints=np.asarray(sizes, np.int32),
        )  # fmt: skip
    elif node.has_input(1):
        b.emit_many("Slice", [x, node.inputs[1]], outs, param_type="Slice", axis=axis, sourceType="TORCH")
    elif "num_outputs" in node.attrs:
        _split_uneven(b, x, axis, outs)
    else:
        b.emit_many(
            "Slice", [x], outs, param_type="Slice", axis=axis, sourceType="TENSORFLOW",
            slicePoints=np.asarray([len(outs)], np.int32),
        )  # fmt: skip


def _empty_parts(
    b: Lowering, node: Node, outs: Sequence[str], sizes: Sequence[int]
) -> tuple[list[str], list[int]]:
    """Produce the parts of size 0 as constants; what is left to cut."""
    for out, size, name in zip(outs, sizes, node.outputs, strict=True):
        shape = b.static_shape(name) if name else None
        if size < 0 or (size == 0 and name and shape is None):
            msg = f"a part of size {size} among {list(sizes)}, of a tensor of unknown shape"
            raise Unsupported(msg)
        if size == 0 and shape is not None:
            b.emit_const(np.zeros(shape, np.float32 if b.is_float(node.inputs[0]) else np.int32), out)
    left = [(out, size) for out, size in zip(outs, sizes, strict=True) if size > 0]
    return [out for out, _ in left], [size for _, size in left]


def _split_uneven(b: Lowering, x: str, axis: int, outs: Sequence[str]) -> None:
    """Parts of ``ceil(size / n)`` elements of an axis whose size is known at run time only."""
    size = dims.size_of(b, x, axis)
    each = dims.arithmetic(b, "FLOORDIV", dims.arithmetic(b, "ADD", size, len(outs) - 1), len(outs))
    for i, out in enumerate(outs):
        start, end = dims.arithmetic(b, "MUL", each, i), dims.arithmetic(b, "MUL", each, i + 1)
        dims.strided_slice(b, x, dims.as_vector(b, start), dims.as_vector(b, end), [axis], out=out)


@lowers("Slice")
def slice_(b: Lowering, node: Node) -> None:
    """``x[start:end:step]`` along some axes."""
    b.check_attributes(node)
    x, out = node.inputs[0], node.outputs[0]
    starts, ends = (dims.constant_ints(b, node.inputs[i]) for i in (1, 2))
    axes, steps = (dims.constant_ints(b, node.input(i)) for i in (3, 4))
    if (
        starts is not None
        and ends is not None
        and not _missing(node, 3, axes)
        and not _missing(node, 4, steps)
    ):
        axes = axes if axes is not None else list(range(len(starts)))
        _constant_slice(b, x, out, starts, ends, axes, steps or [1] * len(starts))
        return
    inputs = list(node.inputs[:3])
    if node.has_input(3):
        inputs.append(node.inputs[3])
    else:
        count = next((s[0] for s in (b.static_shape(n) for n in inputs[1:]) if s), None)
        if count is None:
            msg = "the number of sliced axes is unknown"
            raise Unsupported(msg)
        inputs.append(dims.int_list(b, range(count), "axes"))
    if axes is not None and any(a < 0 for a in axes):
        rank = b.rank(x)
        axes = [dims.normal_axis(a, rank) for a in axes]
        inputs[3] = dims.int_list(b, axes, "axes")
    at = axes if axes is not None else dims.constant_ints(b, inputs[3])
    if at is not None:
        sizes = dims.shape_tensor(b, [dims.size_of(b, x, a) for a in at])
    else:
        axis = dims.wrap_indices(b, inputs[3], [b.rank(x)])
        sizes = dims.gather(b, dims.shape_of(b, x), axis, 0)
    inputs[1] = _not_before_start(b, inputs[1], sizes)
    if node.has_input(4):
        if (steps is None or min(steps) < 0) and b.rank(x) > 3:
            msg = "negative or run-time steps with bounds that are not constant, on a tensor of rank above 3"
            raise Unsupported(msg)
        inputs.append(node.inputs[4])
    b.emit("StridedSlice", inputs, out, param_type="StridedSliceParam", fromType=1)


def _not_before_start(b: Lowering, starts: str, sizes: str) -> str:
    """``max(starts, -sizes)``: the runtime does not stop a start at the first element."""
    fixed, known = b.constant(starts), b.constant(sizes)
    if fixed is not None and ((fixed >= -1).all() or (known is not None and (fixed >= -known).all())):
        return starts
    least = b.const(-known.astype(np.int32), "least") if known is not None else b.unary("NEG", sizes)
    return b.binary("MAXIMUM", starts, least)


def _missing(node: Node, index: int, values: list[int] | None) -> bool:
    """Whether an optional input is given but not constant."""
    return node.has_input(index) and values is None


def _constant_slice(
    b: Lowering, x: str, out: str, starts: list[int], ends: list[int], axes: list[int], steps: list[int]
) -> None:
    shape = b.shape(x)
    kept: list[tuple[int, int, int, int]] = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        at = dims.normal_axis(axis, len(shape)) if shape is not None else axis
        size = shape[at] if shape is not None else None
        if isinstance(size, int):
            bounds = range(*slice(start, end, step).indices(size))
            if not bounds:
                msg = f"the slice of axis {at} (size {size}) is empty"
                raise Unsupported(msg)
            if len(bounds) == size and step == 1:
                continue
            end = bounds.stop if bounds.stop >= 0 else -INT_LIMIT
            start = bounds.start
        elif start == 0 and end >= INT_LIMIT and step == 1:
            continue
        kept.append((start, end, at, step))
    if not kept:
        b.identity(x, out)
        return
    reverse = [entry for entry in kept if entry[3] < 0]
    kept = [entry for entry in kept if entry[3] > 0]
    for index, entry in enumerate(reverse):
        x = dims.backward(b, x, *entry, out if not kept and index == len(reverse) - 1 else None)
    if not kept:
        return
    begin, stop, at_axes, by = (list(column) for column in zip(*kept, strict=True))
    first: list[int] | str = begin
    if any(start < -1 for start in begin):
        sizes = dims.shape_tensor(b, [dims.size_of(b, x, at) for at in at_axes])
        first = _not_before_start(b, dims.int_list(b, begin), sizes)
    dims.strided_slice(b, x, first, stop, at_axes, by if any(s != 1 for s in by) else None, out)


@lowers("Gather")
def gather(b: Lowering, node: Node) -> None:
    """``take`` along an axis, negative indices counting from the end."""
    b.check_attributes(node, "axis")
    x = node.inputs[0]
    axis = dims.int_attr(node, "axis", 0)
    if axis < 0:
        axis = dims.normal_axis(axis, b.rank(x))
    indices = b.constant(node.inputs[1])
    wrapped = node.inputs[1]
    if indices is None or (indices < 0).any():
        wrapped = dims.wrap_indices(b, node.inputs[1], [dims.size_of(b, x, axis)])
    dims.gather(b, x, wrapped, axis, node.outputs[0])


@lowers("GatherElements")
def gather_elements(b: Lowering, node: Node) -> None:
    """``take_along_axis``, negative indices counting from the end."""
    b.check_attributes(node, "axis")
    x = node.inputs[0]
    axis = dims.normal_axis(dims.int_attr(node, "axis", 0), b.rank(x))
    indices = dims.wrap_indices(b, node.inputs[1], [dims.size_of(b, x, axis)])
    b.emit("GatherElements", [x, indices, dims.scalar(b, axis)], node.outputs[0])


@lowers("GatherND")
def gather_nd(b: Lowering, node: Node) -> None:
    """Gather by index tuples, the first ``batch_dims`` axes being common to data and indices."""
    b.check_attributes(node, "batch_dims")
    x, out, batch = node.inputs[0], node.outputs[0], dims.int_attr(node, "batch_dims", 0)
    rank = b.rank(x)
    depth = b.shape(node.inputs[1])
    if depth is None or not isinstance(depth[-1], int):
        msg = "the length of the index tuples must be known"
        raise Unsupported(msg)
    sizes = dims.sizes_of(b, x)
    indices = dims.wrap_indices(b, node.inputs[1], sizes[batch : batch + depth[-1]])
    if batch == 0:
        b.emit("GatherND", [x, indices], out)
        return
    count = dims.product(b, sizes[:batch])
    inner = dims.sizes_of(b, indices)[batch:]
    if batch > 1:
        x = dims.reshape_to(b, x, [count, *sizes[batch:]])
        indices = dims.reshape_to(b, indices, [count, *inner])
    row = dims.iota(b, 0, count)
    row = dims.reshape_to(b, row, [-1, *[1] * len(inner)])
    rows = dims.broadcast_to(b, row, [count, *inner[:-1], 1])
    tuples = dims.concat(b, [rows, indices], len(inner), info=ValueInfo(dims.INT, (None,) * (len(inner) + 1)))
    if batch == 1:
        b.emit("GatherND", [x, tuples], out)
        return
    made = b.emit("GatherND", [x, tuples])
    tail: list[Size] = [*sizes[:batch], *inner[:-1], *sizes[batch + depth[-1] :]]
    dims.reshape_to(b, made, tail, out)
    assert rank >= batch


def pad_with(
    b: Lowering,
    x: str,
    pads: Sequence[tuple[Size, Size]],
    value: str | None,
    out: str | None = None,
    mode: str = "CONSTANT",
) -> str:
    """Add (before, after) elements to every axis; negative amounts crop.

    Known crops are slices of their own: the runtime's ``Padding`` does nothing when the shape stays.
    """
    crops = [i for i, pair in enumerate(pads) if any(isinstance(size, int) and size < 0 for size in pair)]
    if crops:
        x, pads = _crop(b, x, pads, crops)
        if not any(size for pair in pads for size in pair):
            return b.identity(x, out or b.fresh("crop"))
    amounts = dims.shape_tensor(b, [size for pair in pads for size in pair])
    inputs = [x, amounts, *([value] if value is not None else [])]
    shape = b.shape(x)
    made = tuple(
        d + lo + hi if isinstance(d, int) and isinstance(lo, int) and isinstance(hi, int) else None
        for d, (lo, hi) in zip(shape or (), pads, strict=False)
    )
    return b.emit(
        "Padding",
        inputs,
        out,
        param_type="PadParam",
        mode=mode,
        info=ValueInfo(b.info(x).dtype, made or None),
    )


def _crop(
    b: Lowering, x: str, pads: Sequence[tuple[Size, Size]], crops: Sequence[int]
) -> tuple[str, list[tuple[Size, Size]]]:
    """Slice off the negative amounts of the axes `crops` and return what is left to add."""
    rest, starts, ends = list(pads), [], []
    for axis in crops:
        low, high = (size if isinstance(size, int) else 0 for size in pads[axis])
        starts.append(max(-low, 0))
        ends.append(high if high < 0 else INT_LIMIT)
        first, last = (max(size, 0) if isinstance(size, int) else size for size in pads[axis])
        rest[axis] = (first, last)
    return dims.strided_slice(b, x, starts, ends, crops), rest


@lowers("Pad")
def pad(b: Lowering, node: Node) -> None:
    """Extend (or crop, by negative amounts) the axes: constant, reflect, edge or wrap."""
    b.check_attributes(node, "mode")
    mode = str(node.attrs.get("mode", "constant"))
    x, out = node.inputs[0], node.outputs[0]
    if mode not in ("constant", "reflect", "edge", "wrap"):
        msg = f"mode {mode!r}; known: constant, reflect, edge, wrap"
        raise Unsupported(msg)
    value = node.input(2) if mode == "constant" else ""
    if value and b.shape(value) not in ((), None):
        value = b.reshape(value, [])
    amounts = dims.constant_ints(b, node.inputs[1])
    if amounts is None:
        _dynamic_pad(b, node, mode, value)
        return
    rank = b.rank(x)
    axes = list(range(rank))
    if node.has_input(3):
        given = dims.constant_ints(b, node.inputs[3])
        if given is None:
            msg = "axes must be constant"
            raise Unsupported(msg)
        axes = [dims.normal_axis(a, rank) for a in given]
    pairs = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        pairs[axis] = (amounts[i], amounts[i + len(axes)])
    if not any(lo or hi for lo, hi in pairs):
        b.identity(x, out)
    elif mode == "constant":
        pad_with(b, x, pairs, value or None, out)
    else:
        _mirror_pad(b, x, pairs, mode, out)


def _dynamic_pad(b: Lowering, node: Node, mode: str, value: str) -> None:
    """Amounts computed at run time: brought to [2, rank], then interleaved."""
    x, out = node.inputs[0], node.outputs[0]
    amounts = b.reshape(node.inputs[1], [2, -1])
    if node.has_input(3):
        amounts = _spread_pads(b, amounts, node.inputs[3], b.rank(x))
    if mode != "wrap":
        paired = b.reshape(b.permute(amounts, [1, 0]), [-1])
        inputs = [x, paired, *([value] if value else [])]
        key = {"constant": "CONSTANT", "reflect": "REFLECT", "edge": "EDGE"}[mode]
        b.emit("Padding", inputs, out, param_type="PadParam", mode=key)
        return
    flat, rank = b.reshape(amounts, [-1]), b.rank(x)
    for axis in range(rank):
        before, after = (dims.strided_slice(b, flat, [i], [i + 1], [0]) for i in (axis, axis + rank))
        size = dims.size_of(b, x, axis)
        start = dims.arithmetic(b, "SUB", 0, before)
        positions = dims.iota(b, start, dims.arithmetic(b, "ADD", size, after))
        index = b.binary("MOD", positions, dims.as_vector(b, size))
        x = dims.gather(b, x, index, axis, out if axis == rank - 1 else None)


def _spread_pads(b: Lowering, amounts: str, axes: str, rank: int) -> str:
    """From amounts ``[2, n]`` of some axes to ``[2, rank]``, 0 for the others."""
    wrapped = b.reshape(dims.wrap_indices(b, axes, [rank]), [-1, 1])
    chosen = b.binary("EQUAL", wrapped, dims.int_list(b, [*range(rank)]))
    spread = b.binary("MUL", b.reshape(amounts, [2, -1, 1]), chosen)
    return b.emit(
        "Reduction", [spread], param_type="ReductionParam", operation="SUM", dim=np.asarray([1], np.int32),
        keepDims=False, dType="DT_INT32", info=ValueInfo(dims.INT, (2, rank)),
    )  # fmt: skip


def _mirror_pad(b: Lowering, x: str, pairs: list[tuple[int, int]], mode: str, out: str) -> None:
    """Reflect, edge or wrap: crop first, then pad; by index lists where the runtime's own modes do not reach."""
    crops = [i for i, pair in enumerate(pairs) if min(pair) < 0]
    todo = [(max(lo, 0), max(hi, 0)) for lo, hi in pairs]
    if crops:
        x, _ = _crop(b, x, pairs, crops)
    shape = b.shape(x) or ()
    padded = [i for i, pair in enumerate(todo) if any(pair)]
    if not padded:
        b.identity(x, out)
        return
    fits = all(isinstance(shape[i], int) and max(todo[i]) < int(shape[i] or 0) for i in padded)
    if (mode == "edge" or (mode == "reflect" and fits)) and b.is_float(x):
        pad_with(b, x, todo, None, out, mode.upper())
        return
    for axis in padded:
        index = _pad_indices(b, x, axis, todo[axis], mode)
        x = dims.gather(b, x, index, axis, out if axis == padded[-1] else None)


def _pad_indices(b: Lowering, x: str, axis: int, pair: tuple[int, int], mode: str) -> str:
    """The source index of every position of a padded axis."""
    size = dims.size_of(b, x, axis)
    if isinstance(size, int):
        places = np.arange(size)
        if mode == "reflect":
            padded = np.pad(places, pair, mode="reflect")
        elif mode == "edge":
            padded = np.pad(places, pair, mode="edge")
        else:
            padded = np.pad(places, pair, mode="wrap")
        return dims.int_list(b, [int(v) for v in padded], "pad_index")
    positions = dims.iota(b, -pair[0], dims.arithmetic(b, "ADD", size, pair[1]))
    if mode == "wrap":
        return b.binary("MOD", positions, dims.as_vector(b, size))
    last = dims.arithmetic(b, "SUB", size, 1)
    if mode == "edge":
        return b.binary(
            "MINIMUM", b.binary("MAXIMUM", positions, dims.int_list(b, [0])), dims.as_vector(b, last)
        )
    # A triangle wave of period 2 * (size - 1).
    period = dims.as_vector(b, dims.arithmetic(b, "MAXIMUM", dims.arithmetic(b, "MUL", last, 2), 1))
    phase = b.binary("MOD", positions, period)
    return b.binary("MINIMUM", phase, b.binary("SUB", period, phase))


@lowers("Trilu")
def trilu(b: Lowering, node: Node) -> None:
    """Keep the upper (lower) triangle from diagonal `k` on, zero the rest."""
    b.check_attributes(node, "upper")
    x, out, upper = node.inputs[0], node.outputs[0], dims.int_attr(node, "upper", 1)
    rank, k = b.rank(x), dims.constant_ints(b, node.input(1))
    shape = b.shape(x) or ()
    rows, cols = shape[-2:]
    if isinstance(rows, int) and isinstance(cols, int) and (k is not None or not node.has_input(1)):
        ones = np.ones((rows, cols), np.int32)
        mask = np.triu(ones, k[0] if k else 0) if upper else np.tril(ones, k[0] if k else 0)
        dims.select(b, b.const(mask, "triangle"), x, dims.zero_like(b, x), out)
        return
    row = dims.unsqueeze(b, dims.iota(b, 0, dims.size_of(b, x, rank - 2)), [1])
    col = dims.unsqueeze(b, dims.iota(b, 0, dims.size_of(b, x, rank - 1)), [0])
    offset = dims.scalar(b, k[0] if k else 0) if not node.has_input(1) or k is not None else node.inputs[1]
    kept = b.binary("GREATER_EQUAL" if upper else "LESS_EQUAL", b.binary("SUB", col, row), offset)
    dims.select(b, kept, x, dims.zero_like(b, x), out)


@lowers("OneHot")
def one_hot(b: Lowering, node: Node) -> None:
    """`on` where the index (counted from the end if negative) equals the position, `off` elsewhere."""
    b.check_attributes(node, "axis")
    indices, values = node.inputs[0], node.inputs[2]
    depth = b.constant(node.inputs[1])
    size: Size
    if depth is not None:
        size = int(depth.reshape(-1)[0])
    else:
        name = node.inputs[1] if not b.is_float(node.inputs[1]) else b.cast(node.inputs[1], "DT_INT32")
        size = b.reshape(name, [1])
    if b.is_float(indices):
        indices = b.cast(indices, "DT_INT32")
    rank = b.rank(indices)
    axis = dims.normal_axis(dims.int_attr(node, "axis", -1), rank + 1)
    negative = b.binary("GREATER", dims.scalar(b, 0), indices)
    wrapped = b.binary("ADD", indices, b.binary("MUL", negative, dims.as_scalar(b, size)))
    b.note(wrapped, ValueInfo(dims.INT, b.shape(indices)))
    positions = dims.reshape_to(b, dims.iota(b, 0, size), [-1, *[1] * (rank - axis)])
    hit = b.binary("EQUAL", dims.unsqueeze(b, wrapped, [axis]), positions)
    constants = b.constant(values)
    if constants is not None:
        off, on = (
            b.const(v, "value")
            for v in constants.reshape(-1).astype(np.float32 if b.is_float(values) else np.int32)
        )
    else:
        off, on = (dims.squeeze(b, dims.strided_slice(b, values, [i], [i + 1], [0]), [0]) for i in (0, 1))
    b.emit("Select", [hit, on, off], node.outputs[0])


@lowers("NonZero")
def non_zero(b: Lowering, node: Node) -> None:
    """Indices of the elements that are not zero, ``[rank, n]``."""
    b.check_attributes(node)
    found = where(b, _nonzero_mask(b, node.inputs[0]))
    b.permute(found, [1, 0], node.outputs[0])


def where(b: Lowering, mask: str) -> str:
    """``Where``: indices of the positive entries, ``[n, rank]`` (the parameter asks for the exact count)."""
    rank = len(b.shape(mask) or ()) or None
    return b.emit("Where", [mask], param_type="Extra", info=ValueInfo(dims.INT, (None, rank)))


def _nonzero_mask(b: Lowering, x: str) -> str:
    if b.info(x).dtype == np.dtype(bool):
        return x
    return b.binary("NOTEQUAL", x, dims.zero_like(b, x))


@lowers("Compress")
def compress(b: Lowering, node: Node) -> None:
    """The slices of an axis (the elements of the flattened input) that a condition selects."""
    b.check_attributes(node, "axis")
    x, axis = node.inputs[0], node.attrs.get("axis")
    if axis is None:
        x, axis = b.reshape(x, [-1]), 0
    axis = dims.normal_axis(int(axis), b.rank(x))
    condition = b.constant(node.inputs[1])
    if condition is not None:
        index = dims.int_list(b, [int(i) for i in np.flatnonzero(condition)], "selected")
    else:
        index = b.reshape(where(b, node.inputs[1]), [-1])
    dims.gather(b, x, index, axis, node.outputs[0])


@lowers("CumSum")
def cum_sum(b: Lowering, node: Node) -> None:
    """Running sum along an axis, without the element itself when exclusive, from the end when reversed."""
    b.check_attributes(node, "exclusive", "reverse")
    x = node.inputs[0]
    axis = dims.constant_ints(b, node.inputs[1])
    if axis is None:
        index = node.inputs[1] if b.shape(node.inputs[1]) in ((), None) else b.reshape(node.inputs[1], [])
    else:
        index = dims.scalar(b, dims.normal_axis(axis[0], b.rank(x)))
    b.emit(
        "CumSum", [x, index], node.outputs[0], param_type="CumSum",
        exclusive=bool(node.attrs.get("exclusive", 0)), reverse=bool(node.attrs.get("reverse", 0)),
    )  # fmt: skip


@lowers("CumProd")
def cum_prod(b: Lowering, node: Node) -> None:
    """Running product along an axis, by doubling: in step i every element takes in the one 2**i before it.

    The runtime has no working operator for it.
    """
    b.check_attributes(node, "exclusive", "reverse")
    x, out = node.inputs[0], node.outputs[0]
    rank = b.rank(x)
    given = [0] if rank == 1 else dims.constant_ints(b, node.inputs[1])
    if given is None:
        msg = "the axis must be constant"
        raise Unsupported(msg)
    axis = dims.normal_axis(given[0], rank)
    size = dims.size_of(b, x, axis)
    if not isinstance(size, int):
        msg = f"the size of axis {axis} must be known"
        raise Unsupported(msg)
    reverse = bool(node.attrs.get("reverse", 0))
    if node.attrs.get("exclusive", 0):
        x = _shifted(b, x, axis, 1, reverse)
    distance = 1
    while distance < size:
        x = b.binary("MUL", x, _shifted(b, x, axis, distance, reverse))
        b.note(x, b.info(node.inputs[0]))
        distance *= 2
    b.identity(x, out)


def _shifted(b: Lowering, x: str, axis: int, distance: int, reverse: bool) -> str:
    """`x` moved along an axis by `distance` (towards the end, or the start when reversed), ones moving in."""
    pads: list[tuple[Size, Size]] = [(0, 0)] * b.rank(x)
    pads[axis] = (-distance, distance) if reverse else (distance, -distance)
    one = b.const(np.float32(1) if b.is_float(x) else np.int32(1), "one")
    return pad_with(b, x, pads, one)


@lowers("ReverseSequence")
def reverse_sequence(b: Lowering, node: Node) -> None:
    """Reverse the first ``lengths[i]`` steps of every sequence."""
    b.check_attributes(node, "batch_axis", "time_axis")
    x, out = node.inputs[0], node.outputs[0]
    rank = b.rank(x)
    batch = dims.normal_axis(dims.int_attr(node, "batch_axis", 1), rank)
    time = dims.normal_axis(dims.int_attr(node, "time_axis", 0), rank)
    fixed = b.constant(node.inputs[1])
    # A length of 0 reverses nothing, as does 1, which the runtime can do.
    if fixed is None:
        lengths = b.binary("MAXIMUM", node.inputs[1], dims.scalar(b, 1))
    else:
        lengths = dims.int_list(b, [max(int(n), 1) for n in fixed], "lengths")
    if (time, batch) == (0, 1):
        _reverse(b, x, lengths, out)
        return
    # The runtime reverses along axis 0 with the batch in axis 1 only.
    order = [time, batch, *(i for i in range(rank) if i not in (time, batch))]
    moved = _reverse(b, b.permute(x, order), lengths)
    b.permute(moved, [order.index(i) for i in range(rank)], out)


def _reverse(b: Lowering, x: str, lengths: str, out: str | None = None) -> str:
    return b.emit(
        "ReverseSequence", [x, lengths], out, param_type="ReverseSequenceParam", batchDim=1, seqDim=0,
        info=b.info(x),
    )  # fmt: skip
