"""Small MNN subgraphs that several lowerings share: shapes at run time, slices, reductions, selection, rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.frontends.onnx.lowering import (
    INT_LIMIT,
    Lowering,
    Unsupported,
    broadcast_dims,
    is_float,
    mnn_type,
)
from mnnq.ir.graph import Dim, Node, ValueInfo

#: "To the end" in a slice.
END = 1 << 30

#: A size: known, or the name of an INT32 tensor of shape [1].
Size = int | str

#: One axis of a reshape target: a number (-1 infers), or an axis of a tensor.
DimSource = int | tuple[str, int]

FLOAT_MAX = float(np.finfo(np.float32).max)

#: Adding and subtracting it rounds |x| < 2**22 to the nearest integer, halves to even.
_ROUNDING = np.float32(1.5 * 2.0**23)


def attributes(node: Node, **defaults: Any) -> dict[str, Any]:
    """Attributes of a node over their defaults; one that is not listed is refused.

    Raises
    ------
    Unsupported
        The node has an attribute that the operator does not define.
    """
    unknown = sorted(set(node.attrs) - set(defaults))
    if unknown:
        msg = f"attribute {unknown[0]!r} is not known"
        raise Unsupported(msg)
    return {**defaults, **node.attrs}


def refuse(reason: str) -> Unsupported:
    """An `Unsupported` to raise."""
    return Unsupported(reason)


def norm_axis(axis: int, rank: int) -> int:
    """`axis` counted from the front."""
    if not -rank <= axis < rank:
        msg = f"axis {axis} is out of range for rank {rank}"
        raise Unsupported(msg)
    return axis % rank


def dtype_of(b: Lowering, name: str) -> np.dtype[Any]:
    """Type of a value; unknown counts as float32."""
    return b.info(name).dtype or np.dtype(np.float32)


def scalar_like(b: Lowering, x: str, value: float) -> str:
    """Rank-0 constant of the type that `x` has in the MNN graph."""
    return b.const(np.float32(value) if b.is_float(x) else np.int32(value))


def int_list(b: Lowering, values: npt.ArrayLike, stem: str = "ints") -> str:
    """INT32 vector constant; what is too large for it stands for "to the end" and the like and is clipped."""
    return b.const(np.asarray(values, np.int64).reshape(-1).clip(-INT_LIMIT, INT_LIMIT), stem, np.int32)


def shape_tensor(b: Lowering, sizes: Sequence[Size]) -> str:
    """The vector of `sizes`: a constant, or a ``Concat`` of known runs and run-time entries."""
    parts: list[str] = []
    run: list[int] = []
    for size in sizes:
        if isinstance(size, int):
            run.append(size)
            continue
        if run:
            parts.append(int_list(b, run))
            run = []
        parts.append(size)
    if run:
        parts.append(int_list(b, run))
    if not parts:
        return int_list(b, [])
    if len(parts) == 1:
        return parts[0]
    return concat(b, parts, 0, info=ValueInfo(np.dtype(np.int32), (len(sizes),)))


def with_shape(b: Lowering, x: str, shape: Sequence[Dim] | None) -> ValueInfo:
    """Type of `x` with another shape."""
    return ValueInfo(b.info(x).dtype, None if shape is None else tuple(shape))


# -- shapes at run time


def shape_of(b: Lowering, x: str) -> str:
    """Dims of `x` as an INT32 vector: a constant when all are known, else ``Shape``, written once."""
    static = b.static_shape(x)
    if static is not None:
        return int_list(b, static)
    info = ValueInfo(np.dtype(np.int32), (b.info(x).rank,))
    return b.once(("Shape", x), lambda: b.emit("Shape", [x], default_format="NCHW", info=info))


def dim_of(b: Lowering, x: str, axis: int) -> str:
    """One dim of `x` as an INT32 vector of one element."""
    return slice_axis(b, shape_of(b, x), 0, axis, axis + 1 if axis != -1 else END)


def known_dim(b: Lowering, source: DimSource) -> int | None:
    """The number behind a `DimSource` when it is known."""
    if isinstance(source, int):
        return source
    shape = b.shape(source[0])
    if shape is None or not -len(shape) <= source[1] < len(shape):
        return None
    dim = shape[source[1]]
    return dim if isinstance(dim, int) else None


def reshape_to(b: Lowering, x: str, dims: Sequence[DimSource], out: str | None = None) -> str:
    """Reshape to dims of which some are dims of other tensors.

    A constant target is written when at most one dim is unknown at conversion, else it is put together at
    run time.
    """
    known = [known_dim(b, d) for d in dims]
    unknown = [i for i, d in enumerate(known) if d is None]
    if 0 in known:
        msg = "a tensor without elements"
        raise Unsupported(msg)
    if len(unknown) <= 1 and not (unknown and -1 in known):
        target = int_list(b, [-1 if d is None else d for d in known])
        info = with_shape(b, x, _inferred(b, x, known))
        return b.emit("Reshape", [x, target], out, param_type="Reshape", dimType="NCHW", info=info)
    parts = [int_list(b, d) if isinstance(d, int) else dim_of(b, *d) for d in dims]
    target = concat(b, parts, 0)
    return b.emit(
        "Reshape", [x, target], out, param_type="Reshape", dimType="NCHW",
        info=with_shape(b, x, [d if d != -1 else None for d in known]),
    )  # fmt: skip


def _inferred(b: Lowering, x: str, dims: Sequence[int | None]) -> list[Dim]:
    """Reshape target with its one open dim computed when the size of `x` is known."""
    shape = b.static_shape(x)
    rest = int(np.prod([d for d in dims if d is not None and d > 0]))
    size = None if shape is None or rest == 0 else int(np.prod(shape)) // rest
    return [d if d is not None and d > 0 else size for d in dims]


# -- moving data


def unsqueeze(b: Lowering, x: str, axes: Sequence[int], out: str | None = None) -> str:
    """Insert axes of size 1; `axes` are positions in the result, not negative."""
    shape = b.shape(x)
    info = with_shape(b, x, None)
    if shape is not None:
        dims = list(shape)
        for axis in sorted(axes):
            dims.insert(axis, 1)
        info = with_shape(b, x, dims)
    return b.emit(
        "Unsqueeze", [x], out, param_type="SqueezeParam",
        squeezeDims=np.asarray(sorted(axes), np.int32), info=info,
    )  # fmt: skip


def squeeze(b: Lowering, x: str, axes: Sequence[int], out: str | None = None) -> str:
    """Remove axes of size 1 (not negative)."""
    shape = b.shape(x)
    info = with_shape(b, x, None)
    if shape is not None:
        info = with_shape(b, x, [d for i, d in enumerate(shape) if i not in axes])
    return b.emit(
        "Squeeze", [x], out, param_type="SqueezeParam", squeezeDims=np.asarray(axes, np.int32), info=info
    )


def concat(
    b: Lowering, parts: Sequence[str], axis: int, out: str | None = None, info: ValueInfo | None = None
) -> str:
    """``Concat`` along an axis (not negative); `info` is the result's type and shape if the caller knows it."""
    if info is not None:
        return b.emit("Concat", list(parts), out, param_type="Axis", axis=axis, info=info)
    shapes = [b.shape(part) for part in parts]
    info = with_shape(b, parts[0], None)
    if all(shape is not None for shape in shapes):
        dims: list[Dim] = list(shapes[0] or ())
        sizes = [shape[axis] for shape in shapes if shape is not None]
        numbers = [d for d in sizes if isinstance(d, int)]
        dims[axis] = sum(numbers) if len(numbers) == len(sizes) else None
        info = with_shape(b, parts[0], dims)
    return b.emit("Concat", list(parts), out, param_type="Axis", axis=axis, info=info)


def split(b: Lowering, x: str, axis: int, sizes: Sequence[int], stem: str) -> list[str]:
    """``Slice``: parts of the given sizes along an axis (not negative)."""
    if len(sizes) == 1:
        return [x]
    shape = b.shape(x)
    outs = [b.fresh(f"{stem}__{i}") for i in range(len(sizes))]
    infos: list[ValueInfo | None] = [None] * len(sizes)
    if shape is not None:
        infos = [with_shape(b, x, [*shape[:axis], size, *shape[axis + 1 :]]) for size in sizes]
    points = int_list(b, sizes)
    return b.emit_many(
        "Slice", [x, points], outs, param_type="Slice", axis=axis, sourceType="TORCH", infos=infos
    )


def slice_axis(
    b: Lowering, x: str, axis: int, begin: int, end: int = END, step: int = 1, out: str | None = None
) -> str:
    """``x[..., begin:end:step, ...]`` along an axis (not negative), with Python's meaning of the bounds."""
    shape = b.shape(x)
    info = None
    if shape is not None:
        dims = list(shape)
        size = dims[axis]
        dims[axis] = len(range(*slice(begin, end, step).indices(size))) if isinstance(size, int) else None
        info = with_shape(b, x, dims)
    bounds = [int_list(b, [value]) for value in (begin, end, axis, step)]
    return b.emit(
        "StridedSlice", [x, *bounds], out, param_type="StridedSliceParam", fromType=1,
        Index="DT_INT32", T=mnn_type(b.info(x).dtype), info=info,
    )  # fmt: skip


def gather(b: Lowering, x: str, indices: npt.ArrayLike | str, axis: int, out: str | None = None) -> str:
    """``GatherV2``: positions (not negative; a constant or the name of a tensor) along an axis (not negative)."""
    where = indices if isinstance(indices, str) else b.const(np.asarray(indices, np.int32))
    shape, picked = b.shape(x), b.shape(where)
    made = None if shape is None or picked is None else (*shape[:axis], *picked, *shape[axis + 1 :])
    position = b.const(np.asarray(axis, np.int32), "int")
    return b.emit("GatherV2", [x, where, position], out, param_type="GatherV2", info=with_shape(b, x, made))


def pad(b: Lowering, x: str, begins: Sequence[int], ends: Sequence[int], value: float) -> str:
    """Constant padding of every axis; negative amounts crop."""
    shape = b.shape(x)
    info = None
    if shape is not None:
        dims = [
            d + begin + end if isinstance(d, int) else None
            for d, begin, end in zip(shape, begins, ends, strict=True)
        ]
        info = with_shape(b, x, dims)
    amounts = int_list(b, np.stack([begins, ends], axis=1))
    return b.emit(
        "Padding", [x, amounts, scalar_like(b, x, value)], param_type="PadParam", mode="CONSTANT", info=info
    )


def broadcast_to(b: Lowering, x: str, shape: Sequence[Size] | str, out: str | None = None) -> str:
    """``BroadcastTo`` sizes, known or computed, or a shape tensor."""
    if isinstance(shape, str):
        return b.emit("BroadcastTo", [x, shape], out, info=with_shape(b, x, None))
    info = with_shape(b, x, [size if isinstance(size, int) else None for size in shape])
    return b.emit("BroadcastTo", [x, shape_tensor(b, shape)], out, info=info)


# -- arithmetic


def reduce(
    b: Lowering, kind: str, x: str, axes: Sequence[int], *, keep: bool = True, out: str | None = None
) -> str:
    """``Reduction`` (key of ``ReductionType``) over axes (not negative)."""
    shape = b.shape(x)
    info = None
    if shape is not None:
        kept = [1 if i in axes else d for i, d in enumerate(shape) if keep or i not in axes]
        info = with_shape(b, x, kept)
    return b.emit(
        "Reduction", [x], out, param_type="ReductionParam", operation=kind,
        dim=np.asarray(axes, np.int32), keepDims=keep, dType=mnn_type(b.info(x).dtype), info=info,
    )  # fmt: skip


def matmul(
    b: Lowering, x: str, y: str, out: str | None = None, *, trans_x: bool = False, trans_y: bool = False
) -> str:
    """``MatMul`` of float tensors of rank 2 or more, batch axes broadcast."""
    info = None
    a, c = b.shape(x), b.shape(y)
    if a is not None and c is not None:
        batch = broadcast_dims(a[:-2], c[:-2]) or ()
        info = with_shape(b, x, [*batch, a[-1] if trans_x else a[-2], c[-2] if trans_y else c[-1]])
    return b.emit(
        "MatMul", [x, y], out, param_type="MatMul", T="DT_FLOAT", transposeA=trans_x, transposeB=trans_y,
        info=info,
    )  # fmt: skip


def compare(b: Lowering, kind: str, x: str, y: str, out: str | None = None) -> str:
    """Comparison to INT32 0 or 1, with IEEE meaning for NaN and -0.

    `kind` is EQUAL, GREATER, GREATER_EQUAL, LESS or LESS_EQUAL. The real runtime compares the bit patterns of
    floats in EQUAL and LESS: these are written with the comparisons it computes correctly.
    """
    if kind == "LESS":
        return compare(b, "GREATER", y, x, out)
    if kind == "EQUAL" and b.is_float(x):
        not_less, not_greater = (compare(b, k, x, y) for k in ("GREATER_EQUAL", "LESS_EQUAL"))
        return b.binary("MUL", not_less, not_greater, out)
    shape = broadcast_dims(b.shape(x), b.shape(y))
    if b.is_float(x):
        x = _one_sided(b, x, y, shape)
    return b.emit(
        "BinaryOp", [x, y], out, param_type="BinaryOp", opType=kind, T=mnn_type(b.info(x).dtype),
        info=ValueInfo(np.dtype(np.int32), shape),
    )  # fmt: skip


def _one_sided(b: Lowering, x: str, y: str, shape: tuple[Dim, ...] | None) -> str:
    """Spread `x` unless one operand has the full shape: float comparisons that broadcast both go wrong in the runtime."""
    if shape is not None:
        if None not in shape and shape in (b.shape(x), b.shape(y)):
            return x
        static = ValueInfo(None, shape).static_shape
        if static is not None:
            return broadcast_to(b, x, static)
    return broadcast_to(b, x, shape_of(b, b.binary("ADD", x, y)))


def logical_not(b: Lowering, x: str, out: str | None = None) -> str:
    """1 - x of an INT32 0/1 tensor."""
    return b.binary("SUB", b.const(np.int32(1)), x, out)


def to_bool(b: Lowering, x: str, out: str | None = None) -> str:
    """INT32 1 where `x` is not 0 (NaN is not 0)."""
    return logical_not(b, compare(b, "EQUAL", x, scalar_like(b, x, 0)), out)


def select(b: Lowering, cond: str, x: str, y: str, out: str | None = None) -> str:
    """``x if cond else y`` with broadcasting; `cond` is INT32.

    The real runtime reads past a last operand that has to be broadcast (unless it has one element), so that
    one is brought to the full shape first.
    """
    shape = broadcast_dims(b.shape(cond), b.shape(x), b.shape(y))
    static = None if shape is None else with_shape(b, x, shape).static_shape
    own = b.static_shape(y)
    single = own is not None and int(np.prod(own)) == 1 and (shape is None or len(own) <= len(shape))
    if not single and (own is None or own != static):
        if static is not None:
            y = broadcast_to(b, y, static)
        elif not (shape is not None and b.shape(y) == shape and None not in shape):
            whole = b.binary("ADD", cond, b.binary("GREATER", x, y))
            y = broadcast_to(b, y, shape_of(b, whole))
    return b.emit("Select", [cond, x, y], out, info=with_shape(b, x, shape))


def round_even(b: Lowering, x: str, out: str | None = None) -> str:
    """Nearest integer of a float, halves to even: ``sign(x) ((|x| + 2**23) - 2**23)`` below 2**23, x above."""
    big = b.const(np.float32(2.0**23))
    size = b.unary("ABS", x)
    rounded = b.binary("SUB", b.binary("ADD", size, big), big)
    signed = b.binary("MUL", rounded, b.unary("SIGN", x))
    return select(b, compare(b, "GREATER", big, size), signed, x, out)


def round_small(b: Lowering, x: str, out: str | None = None) -> str:
    """`round_even` for ``|x| < 2**22``, in two operations."""
    magic = b.const(_ROUNDING)
    return b.binary("SUB", b.binary("ADD", x, magic), magic, out)


def clip(b: Lowering, x: str, low: float | None, high: float | None, out: str | None = None) -> str:
    """``ReLU6``: clamp a float between constants."""
    return b.emit(
        "ReLU6", [x], out, param_type="Relu6", minValue=-FLOAT_MAX if low is None else low,
        maxValue=FLOAT_MAX if high is None else high, info=b.info(x),
    )  # fmt: skip


def wrap_integer(b: Lowering, x: str, dtype: np.dtype[Any] | None, out: str | None = None) -> str:
    """Bring INT32 results into the range of a narrow integer type as its own arithmetic would (modulo 2**bits)."""
    if dtype is None or is_float(dtype) or dtype.kind == "b" or dtype.itemsize >= 4:
        return x if out is None else rename(b, x, out)
    bits = 8 * dtype.itemsize
    mask = b.const(np.int32((1 << bits) - 1))
    if dtype.kind == "u":
        return b.binary("BITWISE_AND", x, mask, out)
    half = b.const(np.int32(1 << (bits - 1)))
    return b.binary("SUB", b.binary("BITWISE_AND", b.binary("ADD", x, half), mask), half, out)


def rename(b: Lowering, x: str, out: str) -> str:
    """Give the tensor that the last emitted operator made another name."""
    last = b.ops[-1] if b.ops else None
    if last is not None and last.outputs == [x] and x != out:
        last.outputs = [out]
        last.name = out if last.name == x else last.name
        b.adopt(x, out)
        return out
    return b.identity(x, out)
