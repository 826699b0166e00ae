"""Sizes and indices inside the MNN graph: constants when they are known, INT32 tensors computed at run time else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mnnq.frontends.onnx.emit import Size as Size
from mnnq.frontends.onnx.emit import broadcast_to as broadcast_to
from mnnq.frontends.onnx.emit import concat as concat
from mnnq.frontends.onnx.emit import gather as gather
from mnnq.frontends.onnx.emit import int_list as int_list
from mnnq.frontends.onnx.emit import shape_of as shape_of
from mnnq.frontends.onnx.emit import shape_tensor as shape_tensor
from mnnq.frontends.onnx.emit import squeeze as squeeze
from mnnq.frontends.onnx.emit import unsqueeze as unsqueeze
from mnnq.frontends.onnx.lowering import INT_LIMIT, Lowering, Unsupported
from mnnq.ir.graph import Node, ValueInfo

INT = np.dtype(np.int32)


def normal_axis(axis: int, rank: int) -> int:
    """`axis` counted from the front; raises `Unsupported` when it is out of range."""
    if not -rank <= axis < max(rank, 1):
        msg = f"axis {axis} is out of range for rank {rank}"
        raise Unsupported(msg)
    return axis + rank if axis < 0 else axis


def int_attr(node: Node, name: str, default: int) -> int:
    """Value of an int attribute."""
    return int(node.attrs.get(name, default))


def constant_ints(b: Lowering, name: str) -> list[int] | None:
    """Values of a constant integer tensor as ints, or None when it is computed at run time."""
    array = b.constant(name) if name else None
    return None if array is None else [int(v) for v in array.reshape(-1)]


def scalar(b: Lowering, value: int) -> str:
    """An INT32 constant of rank 0."""
    return b.const(np.asarray(value, np.int32), "int")


def size_of(b: Lowering, x: str, axis: int) -> Size:
    """The size of one axis (counted from the front)."""
    shape = b.shape(x)
    known = shape[axis] if shape is not None else None
    if isinstance(known, int):
        return known
    return b.once(("size", x, axis), lambda: strided_slice(b, shape_of(b, x), [axis], [axis + 1], [0]))


def sizes_of(b: Lowering, x: str) -> list[Size]:
    """The sizes of all axes; needs the rank."""
    return [size_of(b, x, axis) for axis in range(b.rank(x))]


def as_vector(b: Lowering, size: Size) -> str:
    """A size as an INT32 tensor of shape [1]."""
    return int_list(b, [size]) if isinstance(size, int) else size


def as_scalar(b: Lowering, size: Size) -> str:
    """A size as an INT32 tensor of rank 0."""
    if isinstance(size, int):
        return scalar(b, size)
    return b.once(("scalar", size), lambda: squeeze(b, size, [0]))


def arithmetic(b: Lowering, kind: str, a: Size, c: Size) -> Size:
    """ADD, SUB, MUL, FLOORDIV, MAXIMUM or MINIMUM of two sizes, folded when both are known."""
    if isinstance(a, int) and isinstance(c, int):
        return {
            "ADD": a + c,
            "SUB": a - c,
            "MUL": a * c,
            "FLOORDIV": a // c if c else 0,
            "MAXIMUM": max(a, c),
            "MINIMUM": min(a, c),
        }[kind]
    made = b.binary(kind, as_vector(b, a), as_vector(b, c))
    b.note(made, ValueInfo(INT, (1,)))
    return made


def product(b: Lowering, sizes: Sequence[Size]) -> Size:
    """Product of sizes (1 for none)."""
    result: Size = 1
    for size in sizes:
        result = size if result == 1 else result if size == 1 else arithmetic(b, "MUL", result, size)
    return result


def reshape_to(b: Lowering, x: str, sizes: Sequence[Size], out: str | None = None) -> str:
    """``Reshape`` to `sizes`; one of them may be -1, and a single unknown size becomes -1."""
    unknown = [i for i, size in enumerate(sizes) if not isinstance(size, int)]
    if len(unknown) == 1 and all(isinstance(size, str) or size > 0 for size in sizes):
        sizes = [size if isinstance(size, int) else -1 for size in sizes]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) == len(sizes):
        return b.reshape(x, known, out)
    made = b.reshape(x, shape_tensor(b, sizes), out)
    b.note(
        made, ValueInfo(b.info(x).dtype, tuple(s if isinstance(s, int) and s > 0 else None for s in sizes))
    )
    return made


def strided_slice(
    b: Lowering,
    x: str,
    starts: Sequence[int] | str,
    ends: Sequence[int] | str,
    axes: Sequence[int],
    steps: Sequence[int] | str | None = None,
    out: str | None = None,
) -> str:
    """``StridedSlice`` with ONNX's meaning of starts, ends and steps, of which none may be negative (`backward`)."""
    inputs = [
        x,
        starts if isinstance(starts, str) else int_list(b, starts),
        ends if isinstance(ends, str) else int_list(b, ends),
        int_list(b, axes),
    ]
    if steps is not None:
        inputs.append(steps if isinstance(steps, str) else int_list(b, steps))
    info = ValueInfo(b.info(x).dtype, _sliced(b, x, starts, ends, axes, steps))
    return b.emit("StridedSlice", inputs, out, param_type="StridedSliceParam", fromType=1, info=info)


def backward(b: Lowering, x: str, start: int, end: int, axis: int, step: int, out: str | None = None) -> str:
    """``x[start:end:step]`` along one axis with a negative step, by gathering.

    The runtime's ``StridedSlice`` writes beyond its buffers for negative steps on tensors of rank 4.
    """
    size = size_of(b, x, axis)
    if isinstance(size, int):
        picked = int_list(b, range(*slice(start, end, step).indices(size)), "reversed")
        return gather(b, x, picked, axis, out)
    last = arithmetic(b, "SUB", size, 1)
    if start < 0:
        first = last if start == -1 else arithmetic(b, "MAXIMUM", arithmetic(b, "ADD", size, start), -1)
    else:
        first = last if start >= INT_LIMIT else arithmetic(b, "MINIMUM", last, start)
    limit: Size = end
    if end < 0:
        limit = -1 if end <= -INT_LIMIT else arithmetic(b, "MAXIMUM", arithmetic(b, "ADD", size, end), -1)
    return gather(b, x, iota(b, first, limit, step), axis, out)


def _sliced(
    b: Lowering,
    x: str,
    starts: Sequence[int] | str,
    ends: Sequence[int] | str,
    axes: Sequence[int],
    steps: Sequence[int] | str | None,
) -> tuple[int | str | None, ...] | None:
    shape = b.shape(x)
    if shape is None:
        return None
    made = list(shape)
    for i, axis in enumerate(axes):
        dim = shape[axis]
        if isinstance(starts, str) or isinstance(ends, str) or isinstance(steps, str):
            made[axis] = None
        elif isinstance(dim, int):
            made[axis] = len(range(*slice(starts[i], ends[i], steps[i] if steps else 1).indices(dim)))
        else:
            made[axis] = None
    return tuple(made)


def iota(b: Lowering, start: Size, limit: Size, step: int = 1) -> str:
    """The INT32 vector start, start + step, ... below `limit`."""
    if isinstance(start, int) and isinstance(limit, int):
        return int_list(b, range(start, limit, step), "range")
    return b.emit(
        "Range", [as_scalar(b, start), as_scalar(b, limit), scalar(b, step)],
        param_type="Range", Tidx="DT_INT32", info=ValueInfo(INT, (None,)),
    )  # fmt: skip


def select(b: Lowering, condition: str, yes: str, no: str, out: str | None = None) -> str:
    """``Select``; `no` must be a scalar or have the shape of the result (the runtime broadcasts it wrongly else)."""
    info = b.info(yes) if b.shape(yes) else b.info(no) if b.shape(no) else ValueInfo(b.info(yes).dtype)
    return b.emit("Select", [condition, yes, no], out, info=info)


def zero_like(b: Lowering, x: str) -> str:
    """A scalar zero of the type of `x`."""
    return b.const(np.float32(0) if b.is_float(x) else np.int32(0), "zero")


def wrap_indices(b: Lowering, indices: str, sizes: Sequence[Size]) -> str:
    """Count negative indices from the end.

    `sizes` has one entry, or one per entry of the last axis of `indices`. Constants are wrapped here when
    possible; MNN's integer MOD has the sign of the divisor, so ``MOD(i, size)`` does it at run time.
    """
    array = b.constant(indices)
    if array is not None:
        if (array >= 0).all():
            return indices
        known = [size for size in sizes if isinstance(size, int)]
        if len(known) == len(sizes):
            limit = np.asarray(known, np.int64) if len(known) > 1 else np.int64(known[0])
            return b.const(np.where(array < 0, array + limit, array).astype(np.int32), f"{indices}__wrapped")
    divisor = as_scalar(b, sizes[0]) if len(sizes) == 1 else shape_tensor(b, sizes)
    made = b.binary("MOD", indices, divisor)
    b.note(made, ValueInfo(INT, b.shape(indices)))
    return made
