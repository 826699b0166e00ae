"""Operators on shapes: reshaping, broadcasting, sizes, constants of a given shape, transposition."""

from __future__ import annotations

import math

import numpy as np

from mnnq.frontends.onnx.lowering import Lowering, Unsupported, is_float, mnn_type
from mnnq.frontends.onnx.ops import _dims as dims
from mnnq.frontends.onnx.registry import lowers
from mnnq.ir.graph import Node

#: ``ConstantOfShape`` of at most this many elements is stored, larger ones are filled at run time.
_MAX_STORED_FILL = 1 << 12


@lowers("Shape")
def shape(b: Lowering, node: Node) -> None:
    """``y = shape(x)[start:end]``."""
    b.check_attributes(node, "start", "end")
    x, out = node.inputs[0], node.outputs[0]
    start, end = node.attrs.get("start"), node.attrs.get("end")
    known = b.shape(x)
    if known is not None:
        part = known[slice(start, end)]
        if all(isinstance(d, int) for d in part):
            b.emit_const(np.asarray(part, np.int32), out)
            return
    if start is None and end is None:
        b.emit("Shape", [x], out, default_format="NCHW")
        return
    begin, stop, _ = slice(start, end).indices(b.rank(x))
    dims.strided_slice(b, dims.shape_of(b, x), [begin], [stop], [0], out=out)


@lowers("Size")
def size(b: Lowering, node: Node) -> None:
    """Number of elements, a scalar."""
    b.check_attributes(node)
    known = b.static_shape(node.inputs[0])
    if known is not None:
        b.emit_const(np.asarray(math.prod(known), np.int32), node.outputs[0])
    else:
        b.emit("Size", node.inputs[:1], node.outputs[0], param_type="Size", outputDataType="DT_INT32")


@lowers("Reshape")
def reshape(b: Lowering, node: Node) -> None:
    """``Reshape``; 0 copies an axis (a literal 0 with ``allowzero`` where the input has 0), -1 infers one."""
    b.check_attributes(node, "allowzero")
    x, out = node.inputs[0], node.outputs[0]
    target = dims.constant_ints(b, node.inputs[1])
    if target is None:
        empty = b.static_shape(x)
        if dims.int_attr(node, "allowzero", 0) and empty is not None and 0 in empty:
            # No elements: only the shape matters. Beside a 0 there is no -1, and without a 0 it stands for one.
            target_name = b.binary("MAXIMUM", node.inputs[1], b.const(0, "least", np.int32))
            value = b.const(np.zeros((), np.float32 if b.is_float(x) else np.int32), "fill")
            b.emit("Fill", [target_name, value], out, param_type="Fill")
            return
        # With allowzero a computed 0 can only stand for an axis of an empty tensor, which is known to be one then.
        b.reshape(x, node.inputs[1], out)
        return
    known = b.shape(x)
    if dims.int_attr(node, "allowzero", 0):
        for axis, want in enumerate(target):
            if want == 0 and (known is None or axis >= len(known) or known[axis] != 0):
                msg = f"allowzero with a literal 0 at axis {axis}: empty tensors cannot be reshaped so"
                raise Unsupported(msg)
    b.reshape(x, _lean_target(b, node, target), out)


def _lean_target(b: Lowering, node: Node, target: list[int]) -> list[int]:
    """Fill in what is known and leave at most one -1 for the rest."""
    known = b.shape(node.inputs[0])
    made = list(target)
    for axis, want in enumerate(target):
        if want == 0 and known is not None and axis < len(known):
            have = known[axis]
            made[axis] = have if isinstance(have, int) else 0
    result = b.shape(node.outputs[0])
    if result is not None and len(result) == len(made) and 0 not in target:
        made = [
            want if want > 0 or not isinstance(have, int) else have
            for want, have in zip(made, result, strict=True)
        ]
    if made.count(0) == 1 and -1 not in made and all(d > 0 for d in made if d):
        made[made.index(0)] = -1
    return made


@lowers("Flatten")
def flatten(b: Lowering, node: Node) -> None:
    """To ``[prod(shape[:axis]), prod(shape[axis:])]``."""
    b.check_attributes(node, "axis")
    x, out = node.inputs[0], node.outputs[0]
    axis = dims.int_attr(node, "axis", 1)
    if axis < 0:
        axis += b.rank(x)
    known = b.shape(x) or ()
    if axis in (0, 1):
        # A 0 copies the size of the first axis.
        first = known[0] if known and isinstance(known[0], int) else 0
        b.reshape(x, [1 if axis == 0 else first, -1], out)
        return
    before, after = (
        [d for d in known[:axis] if isinstance(d, int)],
        [d for d in known[axis:] if isinstance(d, int)],
    )
    if known and len(after) == len(known) - axis:
        b.reshape(x, [-1, math.prod(after)], out)
    elif known and len(before) == axis:
        b.reshape(x, [math.prod(before), -1], out)
    else:
        b.emit("Flatten", [x], out, param_type="Flatten", axis=axis, endAxis=0)


@lowers("Squeeze")
def squeeze(b: Lowering, node: Node) -> None:
    """Remove axes of size 1: the given ones, or all."""
    b.check_attributes(node)
    x, out = node.inputs[0], node.outputs[0]
    known = b.shape(x)
    if not node.has_input(1):
        sizes = b.static_shape(x)
        if sizes is None:
            b.emit("Squeeze", [x], out, param_type="SqueezeParam")
        elif 1 in sizes:
            dims.squeeze(b, x, [i for i, d in enumerate(sizes) if d == 1], out)
        else:
            b.identity(x, out)
        return
    axes = dims.constant_ints(b, node.inputs[1])
    if axes is None:
        b.emit("Squeeze", [x, node.inputs[1]], out, param_type="SqueezeParam")
    elif not axes:
        b.identity(x, out)
    else:
        rank = len(known) if known is not None else None
        dims.squeeze(b, x, axes if rank is None else sorted(dims.normal_axis(a, rank) for a in axes), out)


@lowers("Unsqueeze")
def unsqueeze(b: Lowering, node: Node) -> None:
    """Insert axes of size 1 at the given positions of the result."""
    b.check_attributes(node)
    x, out = node.inputs[0], node.outputs[0]
    axes = dims.constant_ints(b, node.inputs[1])
    if axes is None:
        b.emit("Unsqueeze", [x, node.inputs[1]], out, param_type="SqueezeParam")
        return
    if any(a < 0 for a in axes):
        rank = b.rank(x) + len(axes)
        axes = [dims.normal_axis(a, rank) for a in axes]
    if axes:
        dims.unsqueeze(b, x, sorted(axes), out)
    else:
        b.identity(x, out)


@lowers("Expand")
def expand(b: Lowering, node: Node) -> None:
    """Broadcast against a shape, both ways."""
    b.check_attributes(node)
    target, known = dims.constant_ints(b, node.inputs[1]), b.static_shape(node.inputs[0])
    if target is not None and known is not None and np.broadcast_shapes(tuple(target), known) == known:
        b.identity(node.inputs[0], node.outputs[0])
        return
    b.emit("BroadcastTo", node.inputs[:2], node.outputs[0])


@lowers("Tile")
def tile(b: Lowering, node: Node) -> None:
    """Repeat along every axis."""
    b.check_attributes(node)
    b.emit("Tile", node.inputs[:2], node.outputs[0])


@lowers("ConstantOfShape")
def constant_of_shape(b: Lowering, node: Node) -> None:
    """A tensor of a given shape filled with one value (float 0 by default)."""
    b.check_attributes(node, "value")
    value = np.asarray(node.attrs.get("value", np.zeros(1, np.float32))).reshape(())
    target = dims.constant_ints(b, node.inputs[0])
    if target is not None and math.prod(target) <= _MAX_STORED_FILL:
        b.emit_const(np.full(target, value), node.outputs[0])
        return
    if b.static_shape(node.inputs[0]) == (0,):
        b.emit_const(np.asarray(value), node.outputs[0])
        return
    b.emit("Fill", [node.inputs[0], b.const(value, "fill")], node.outputs[0], param_type="Fill")


@lowers("Range")
def range_(b: Lowering, node: Node) -> None:
    """``start, start + delta, ...`` while below (above, for a negative delta) the limit."""
    b.check_attributes(node)
    parts = [b.constant(name) for name in node.inputs[:3]]
    if all(p is not None for p in parts):
        values = [p.reshape(-1)[0] for p in parts if p is not None]
        count = max(math.ceil((float(values[1]) - float(values[0])) / float(values[2])), 0)
        if count <= _MAX_STORED_FILL:
            array = values[0] + np.arange(count).astype(values[0].dtype) * values[2]
            b.emit_const(array.astype(values[0].dtype), node.outputs[0])
            return
    tidx = mnn_type(b.info(node.inputs[0]).dtype)
    inputs = [x if b.shape(x) in ((), None) else b.reshape(x, []) for x in node.inputs[:3]]
    b.emit("Range", inputs, node.outputs[0], param_type="Range", Tidx=tidx)


@lowers("EyeLike")
def eye_like(b: Lowering, node: Node) -> None:
    """Ones on the diagonal `k` of a matrix of the input's shape."""
    b.check_attributes(node, "dtype", "k")
    x, out, k = node.inputs[0], node.outputs[0], dims.int_attr(node, "k", 0)
    dtype = b.info(out).dtype
    if dtype is None and "dtype" in node.attrs:
        msg = "the type of the result is unknown"
        raise Unsupported(msg)
    floating = is_float(dtype) if dtype is not None else b.is_float(x)
    kind = np.float32 if floating else np.int32
    known = b.static_shape(x)
    if known is not None:
        b.emit_const(np.eye(known[0], known[1], k, kind), out)
        return
    rows = dims.unsqueeze(b, dims.iota(b, 0, dims.size_of(b, x, 0)), [1])
    cols = dims.unsqueeze(b, dims.iota(b, 0, dims.size_of(b, x, 1)), [0])
    offset = b.binary("SUB", cols, rows)
    if floating:
        b.cast(b.binary("EQUAL", offset, dims.scalar(b, k)), "DT_FLOAT", out)
    else:
        b.binary("EQUAL", offset, dims.scalar(b, k), out)


@lowers("Transpose")
def transpose(b: Lowering, node: Node) -> None:
    """Permute the axes; reversed by default."""
    b.check_attributes(node, "perm")
    x, out = node.inputs[0], node.outputs[0]
    perm = node.attrs.get("perm")
    if perm is None:
        perm = list(range(b.rank(x)))[::-1]
    if list(perm) == list(range(len(perm))):
        b.identity(x, out)
    else:
        b.permute(x, [int(p) for p in perm], out)


@lowers("Identity")
def identity(b: Lowering, node: Node) -> None:
    """The input under another name."""
    b.check_attributes(node)
    b.identity(node.inputs[0], node.outputs[0])
