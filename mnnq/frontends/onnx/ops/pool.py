"""Pooling: max, average, Lp, over windows or everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mnnq.frontends.onnx import emit
from mnnq.frontends.onnx.emit import attributes
from mnnq.frontends.onnx.lowering import Lowering, Unsupported
from mnnq.frontends.onnx.ops.conv import Window, emit_tap, window
from mnnq.frontends.onnx.registry import lowers
from mnnq.ir.graph import Dim, Node, ValueInfo

_POOL_ATTRS: dict[str, Any] = {
    "auto_pad": "NOTSET",
    "ceil_mode": 0,
    "dilations": None,
    "kernel_shape": None,
    "pads": None,
    "strides": None,
}


@dataclass(frozen=True)
class _Pool:
    """One pooling: its window with every position resolved, or rounding up left to the runtime.

    Attributes
    ----------
    overhang
        How far the last window of each axis reaches past the padded input (ceil mode); part of ``window.ends``.
    ceil
        Rounding up is left to the runtime, because sizes are not known.
    """

    window: Window
    overhang: tuple[int, ...]
    ceil: bool = False


def _resolve(b: Lowering, x: str, attrs: dict[str, Any]) -> _Pool:
    """Window of a pooling node; ceil mode becomes padding at the end where sizes are known."""
    if attrs["kernel_shape"] is None:
        msg = "kernel_shape is missing"
        raise Unsupported(msg)
    kernel = [int(k) for k in attrs["kernel_shape"]]
    spatial = (b.shape(x) or ())[2:] or (None,) * len(kernel)
    if b.rank(x) != len(kernel) + 2:
        msg = f"kernel_shape {kernel} for an input of rank {b.rank(x)}"
        raise Unsupported(msg)
    win = window(attrs, kernel, spatial)
    none = (0,) * len(kernel)
    if not attrs["ceil_mode"] or attrs["auto_pad"] in ("SAME_UPPER", "SAME_LOWER"):
        return _Pool(win, none)
    over = [_overhang(win, axis, size) for axis, size in enumerate(spatial)]
    known = [o for o in over if o is not None]
    if len(known) < len(over):
        # The runtime does not drop a last window that starts in the padding: refuse where that can happen.
        if any(win.ends[a] + win.strides[a] > win.extent(a) for a in range(len(kernel))):
            msg = "ceil_mode over sizes that are not known: give the input shape"
            raise Unsupported(msg)
        return _Pool(win, none, ceil=True)
    ends = tuple(e + o for e, o in zip(win.ends, known, strict=True))
    return _Pool(replace(win, ends=ends), tuple(known))


def _overhang(win: Window, axis: int, size: Dim) -> int | None:
    """Elements that ceil mode adds after an axis (negative: the last ones are not read)."""
    if not isinstance(size, int):
        return None
    padded = size + win.begins[axis] + win.ends[axis]
    count = -(-(padded - win.extent(axis)) // win.strides[axis]) + 1
    if (count - 1) * win.strides[axis] >= size + win.begins[axis]:
        count -= 1
    return max((count - 1) * win.strides[axis] + win.extent(axis) - padded, 0)


def _emit_pool(
    b: Lowering, x: str, pool: _Pool, kind: str, outs: Sequence[str | None], *, include: bool = False
) -> list[str]:
    """``Pooling`` of a 4-D tensor; `kind` is MAXPOOL or AVEPOOL, `include` counts padding in averages."""
    win = pool.window
    shape = b.shape(x)
    info = None
    if shape is not None:
        sizes = [None if pool.ceil else win.out_dim(d, a) for a, d in enumerate(shape[2:])]
        info = emit.with_shape(b, x, [*shape[:2], *sizes])
    fields: dict[str, Any] = {
        "kernelX": win.kernel[1], "kernelY": win.kernel[0],
        "strideX": win.strides[1], "strideY": win.strides[0],
        "type": kind, "padType": "SAME" if win.same else "CAFFE",
        "ceilModel": pool.ceil, "isGlobal": False, "dataType": "DT_FLOAT",
        "countType": "INCLUDE_PADDING" if include else "EXCLUDE_PADDING",
    }  # fmt: skip
    if not win.same:
        fields |= {"padX": win.begins[1], "padY": win.begins[0]}
        fields["pads"] = np.asarray([*win.begins, *win.ends], np.int32)
    names = [b.fresh("Pooling") if o is None else o for o in outs]
    infos = [info, None if info is None else ValueInfo(np.dtype(np.int32), info.shape)]
    return b.emit_many("Pooling", [x], names, param_type="Pool", infos=infos[: len(names)], **fields)


def _fold_axes(b: Lowering, x: str, pool: _Pool, flat: Any, out: str | None) -> str:
    """Pool one or three spatial axes with 2-D poolings: windows are separable."""
    rank = len(pool.window.kernel)
    if rank == 1:
        wide = _Pool(pool.window.widened(), (*pool.overhang, 0), pool.ceil)
        return emit.squeeze(b, flat(b, emit.unsqueeze(b, x, [3]), wide, None), [3], out)
    if rank != 3:
        msg = f"{rank} spatial axes"
        raise Unsupported(msg)
    if pool.window.same:
        msg = "auto_pad over sizes that are not known: give the input shape"
        raise Unsupported(msg)
    planes = emit.reshape_to(b, x, [-1, (x, 2), (x, 3), (x, 4)])
    y = flat(b, planes, _Pool(pool.window.of([1, 2]), pool.overhang[1:], pool.ceil), None)
    rows = emit.reshape_to(b, y, [(y, 0), 1, (y, 1), -1])
    z = flat(b, rows, _Pool(pool.window.of([0]).widened(), (pool.overhang[0], 0), pool.ceil), None)
    return emit.reshape_to(b, z, [(x, 0), (x, 1), (z, 2), (y, 2), (y, 3)], out)


# -- maximum


@lowers("MaxPool")
def max_pool(b: Lowering, node: Node) -> None:
    """``MaxPool`` of one to three spatial axes, with dilation; indices for undilated 1-D and 2-D windows."""
    attrs = attributes(node, **_POOL_ATTRS, storage_order=0)
    x, out = node.input(0), node.outputs[0]
    integer = not b.is_float(x)
    if integer:
        x = b.cast(x, "DT_FLOAT")
    pool = _resolve(b, x, attrs)
    if node.has_output(1):
        _max_with_indices(b, x, pool, node, column_major=bool(attrs["storage_order"]), integer=integer)
        return
    result = _max(b, x, pool, None if integer else out)
    if integer:
        b.cast(result, "DT_INT32", out)


def _max(b: Lowering, x: str, pool: _Pool, out: str | None) -> str:
    if len(pool.window.kernel) != 2:
        return _fold_axes(b, x, pool, _max, out)
    if max(pool.window.dilations) > 1:
        return _dilated(b, x, pool, "MAXIMUM", -emit.FLOAT_MAX, out)
    return _emit_pool(b, x, pool, "MAXPOOL", [out])[0]


def _dilated(b: Lowering, x: str, pool: _Pool, combine: str, fill: float, out: str | None) -> str:
    """Combine the taps of a dilated window, one axis after the other, as strided slices of the padded input."""
    win = pool.window
    if win.same or pool.ceil:
        msg = "dilations over sizes that are not known: give the input shape"
        raise Unsupported(msg)
    if any(win.begins) or any(win.ends):
        x = emit.pad(b, x, [0, 0, *win.begins], [0, 0, *win.ends], fill)
    for axis in (0, 1):
        taps = [emit_tap(b, x, axis, k, win) for k in range(win.kernel[axis])]
        x = taps[0]
        for k, tap in enumerate(taps[1:], 1):
            last = axis == 1 and k == len(taps) - 1
            x = b.binary(combine, x, tap, out if last else None)
    if win.kernel[1] == 1 and out is not None:
        return b.identity(x, out)
    return x


def _max_with_indices(
    b: Lowering, x: str, pool: _Pool, node: Node, *, column_major: bool, integer: bool
) -> None:
    """Indices count over the whole input: the runtime's count within a plane, plus the plane's offset."""
    rank = len(pool.window.kernel)
    if max(pool.window.dilations) > 1 or rank == 3:
        msg = "the indices of a dilated or 3-D MaxPool"
        raise Unsupported(msg)
    source = emit.unsqueeze(b, x, [3]) if rank == 1 else x
    wide = _Pool(pool.window.widened(), (*pool.overhang, 0), pool.ceil) if rank == 1 else pool
    shape = b.static_shape(source)
    if shape is None:
        msg = "the indices of a MaxPool over sizes that are not known: give the input shape"
        raise Unsupported(msg)
    direct = rank == 2 and not integer
    before, after = wide.window.begins, wide.window.ends
    padded = any(before) or any(after)
    if padded:  # The runtime takes padding for zeros when it also returns indices.
        source = emit.pad(b, source, [0, 0, *before], [0, 0, *after], -emit.FLOAT_MAX)
        wide = replace(wide, window=replace(wide.window, begins=(0, 0), ends=(0, 0)))
    values, where = _emit_pool(b, source, wide, "MAXPOOL", [node.outputs[0] if direct else None, None])
    n, c, h, w = shape
    if column_major or padded:
        width = b.const(np.int32(w + before[1] + after[1]))
        row = b.binary("REALDIV", where, width)
        column = b.binary("SUB", where, b.binary("MUL", row, width))
        row = b.binary("SUB", row, b.const(np.int32(before[0])))
        column = b.binary("SUB", column, b.const(np.int32(before[1])))
        major, minor, size = (column, row, h) if column_major else (row, column, w)
        where = b.binary("ADD", b.binary("MUL", major, b.const(np.int32(size))), minor)
    offsets = (np.arange(n * c, dtype=np.int32) * (h * w)).reshape(n, c, 1, 1)
    where = b.binary("ADD", where, b.const(offsets), node.outputs[1] if rank == 2 else None)
    if rank == 1:
        emit.squeeze(b, where, [3], node.outputs[1])
        values = emit.squeeze(b, values, [3], None if integer else node.outputs[0])
    if integer:
        b.cast(values, "DT_INT32", node.outputs[0])


# -- average


@lowers("AveragePool")
def average_pool(b: Lowering, node: Node) -> None:
    """``AveragePool`` of one to three spatial axes, padding counted or not, with dilation."""
    attrs = attributes(node, **_POOL_ATTRS, count_include_pad=0)
    x = node.input(0)
    pool = _resolve(b, x, attrs)
    if attrs["count_include_pad"]:
        x, pool = _pad_explicitly(b, x, pool)
    _average(b, x, pool, node.outputs[0])


def _pad_explicitly(b: Lowering, x: str, pool: _Pool) -> tuple[str, _Pool]:
    """Make the padding that counts part of the input; what ceil mode adds stays padding, which does not count."""
    win = pool.window
    if win.same:
        msg = "count_include_pad and auto_pad over sizes that are not known: give the input shape"
        raise Unsupported(msg)
    ends = tuple(e - o for e, o in zip(win.ends, pool.overhang, strict=True))
    if any(win.begins) or any(ends):
        x = emit.pad(b, x, [0, 0, *win.begins], [0, 0, *ends], 0.0)
    zero = (0,) * len(win.kernel)
    return x, replace(pool, window=replace(win, begins=zero, ends=pool.overhang))


def _average(b: Lowering, x: str, pool: _Pool, out: str | None) -> str:
    win = pool.window
    if len(win.kernel) != 2:
        return _fold_axes(b, x, pool, _average, out)
    if max(win.dilations) == 1:
        return _emit_pool(b, x, pool, "AVEPOOL", [out])[0]
    total = _dilated(b, x, pool, "ADD", 0.0, None)
    counts = [_counts(b, x, win, axis) for axis in (0, 1)]
    divisor = np.multiply.outer(counts[0], counts[1]).astype(np.float32)[None, None]
    return b.binary("REALDIV", total, b.const(divisor), out)


def _counts(b: Lowering, x: str, win: Window, axis: int) -> np.ndarray[Any, Any]:
    """How many taps of each window lie inside the input, along one axis."""
    if not win.begins[axis] and not win.ends[axis]:
        return np.asarray([win.kernel[axis]])
    size = emit.known_dim(b, (x, axis + 2))
    count = win.out_dim(size, axis)
    if size is None or count is None:
        msg = "a dilated average with padding over sizes that are not known: give the input shape"
        raise Unsupported(msg)
    starts = np.arange(count) * win.strides[axis] - win.begins[axis]
    taps = starts[:, None] + np.arange(win.kernel[axis]) * win.dilations[axis]
    counts: np.ndarray[Any, Any] = ((taps >= 0) & (taps < size)).sum(axis=1)
    return counts


# -- Lp and global pooling


def _root(b: Lowering, x: str, p: int, out: str) -> str:
    if p == 1:
        return b.identity(x, out)
    return b.unary("SQRT", x, out) if p == 2 else b.binary("POW", x, b.const(np.float32(1 / p)), out)


def _power(b: Lowering, x: str, p: int) -> str:
    if p == 2:
        return b.unary("SQUARE", x)
    size = b.unary("ABS", x)
    return size if p == 1 else b.binary("POW", size, b.const(np.float32(p)))


@lowers("LpPool")
def lp_pool(b: Lowering, node: Node) -> None:
    """``(sum |x|^p)^(1/p)`` over windows: an average of the zero-padded powers times the window's size."""
    attrs = attributes(node, **_POOL_ATTRS, p=2)
    x, p = node.input(0), int(attrs["p"])
    pool = _resolve(b, x, attrs)
    win = pool.window
    if win.same or pool.ceil:
        msg = "padding that depends on sizes that are not known: give the input shape"
        raise Unsupported(msg)
    powers = _power(b, x, p)
    if any(win.begins) or any(win.ends):
        powers = emit.pad(b, powers, [0, 0, *win.begins], [0, 0, *win.ends], 0.0)
    zero = (0,) * len(win.kernel)
    plain = replace(pool, window=replace(win, begins=zero, ends=zero), overhang=zero)
    mean = _average(b, powers, plain, None)
    total = b.binary("MUL", mean, b.const(np.float32(np.prod(win.kernel))))
    _root(b, total, p, node.outputs[0])


@lowers("GlobalAveragePool", "GlobalMaxPool")
def global_pool(b: Lowering, node: Node) -> None:
    """Mean or maximum over all spatial axes."""
    attributes(node)
    x, out = node.input(0), node.outputs[0]
    shape = b.shape(x)
    maximum = node.op_type == "GlobalMaxPool"
    rank = b.rank(x)
    if rank == 4 and shape is not None:
        b.emit(
            "Pooling3D", [x], out, param_type="Pool3D", isGlobal=True,
            type="MAXPOOL" if maximum else "AVEPOOL", padType="CAFFE",
            info=emit.with_shape(b, x, [*shape[:2], 1, 1]),
        )  # fmt: skip
        return
    if rank < 3:
        msg = f"an input of rank {rank}"
        raise Unsupported(msg)
    emit.reduce(b, "MAXIMUM" if maximum else "MEAN", x, range(2, rank), out=out)


@lowers("GlobalLpPool")
def global_lp_pool(b: Lowering, node: Node) -> None:
    """``(sum |x|^p)^(1/p)`` over all spatial axes."""
    p = int(attributes(node, p=2)["p"])
    x = node.input(0)
    total = emit.reduce(b, "SUM", _power(b, x, p), range(2, b.rank(x)))
    _root(b, total, p, node.outputs[0])
