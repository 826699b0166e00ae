"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mnnq.frontends.onnx.lowering import Lowering, Unsupported, mnn_type
from mnnq.frontends.onnx.ops import _dims as dims
from mnnq.frontends.onnx.registry import lowers
from mnnq.ir.graph import Dim, Node, ValueInfo

_PLAIN = {
    "ReduceSum": "SUM",
    "ReduceMean": "MEAN",
    "ReduceMax": "MAXIMUM",
    "ReduceMin": "MINIMUM",
    "ReduceProd": "PROD",
}

#: Axes to reduce: known, or the name of an INT32 vector.
Axes = list[int] | str


def reduction(b: Lowering, operation: str, x: str, axes: Axes, keep: bool, out: str | None = None) -> str:
    """``Reduction`` of `x` over `axes` (counted from the front)."""
    params: dict[str, Any] = {} if isinstance(axes, str) else {"dim": np.asarray(axes, np.int32)}
    inputs = [x, axes] if isinstance(axes, str) else [x]
    dtype = b.info(x).dtype
    return b.emit(
        "Reduction", inputs, out, param_type="ReductionParam", operation=operation, keepDims=keep,
        dType=mnn_type(dtype), info=ValueInfo(dtype, _reduced(b.shape(x), axes, keep)), **params,
    )  # fmt: skip


def _reduced(shape: Sequence[Dim] | None, axes: Axes, keep: bool) -> tuple[Dim, ...] | None:
    if shape is None or isinstance(axes, str):
        return None
    if keep:
        return tuple(1 if i in axes else d for i, d in enumerate(shape))
    return tuple(d for i, d in enumerate(shape) if i not in axes)


def _axes(b: Lowering, node: Node) -> Axes | None:
    """Axes of a reduction; None when nothing is to be reduced."""
    x = node.inputs[0]
    if node.has_input(1):
        given = dims.constant_ints(b, node.inputs[1])
        if given is None:
            # Negative axes computed at run time are counted from the end by the runtime itself.
            length = b.static_shape(node.inputs[1])
            if length != (0,):
                return node.inputs[1]
            given = []
    else:
        given = []
    if given:
        rank = b.rank(x)
        return sorted({dims.normal_axis(a, rank) for a in given})
    if dims.int_attr(node, "noop_with_empty_axes", 0):
        return None
    return list(range(b.rank(x)))


def _checked(b: Lowering, node: Node) -> tuple[str, Axes | None, bool]:
    b.check_attributes(node, "keepdims", "noop_with_empty_axes")
    x = node.inputs[0]
    shape = b.static_shape(x)
    if shape is not None and 0 in shape:
        msg = f"an empty input, shape {list(shape)}, and a result that is empty or of unknown shape"
        raise Unsupported(msg)
    return x, _axes(b, node), bool(node.attrs.get("keepdims", 1))


#: What the reduction of no elements gives.
_OF_NOTHING = {"ReduceProd": 1.0, "ReduceMax": -np.inf, "ReduceMin": np.inf, "ReduceLogSum": -np.inf,
               "ReduceLogSumExp": -np.inf, "ReduceMean": np.nan}  # fmt: skip


def _reduced_nothing(b: Lowering, node: Node) -> bool:
    """Produce the result of reducing an empty input to a result that is not empty: a constant."""
    shape, result = b.static_shape(node.inputs[0]), b.static_shape(node.outputs[0])
    if shape is None or 0 not in shape or result is None or 0 in result:
        return False
    value = _OF_NOTHING.get(node.op_type, 0.0)
    if b.is_float(node.inputs[0]):
        array = np.full(result, value, np.float32)
    elif np.isfinite(value):
        array = np.full(result, int(value), np.int32)
    elif b.info(node.inputs[0]).dtype == np.dtype(bool):
        array = np.full(result, int(value > 0), np.int32)
    else:
        msg = "the extremum of no integers"
        raise Unsupported(msg)
    b.emit_const(array, node.outputs[0])
    return True


@lowers(*_PLAIN)
def reduce_plain(b: Lowering, node: Node) -> None:
    """Sum, mean, maximum, minimum, product."""
    if _reduced_nothing(b, node):
        return
    x, axes, keep = _checked(b, node)
    if not axes:
        b.identity(x, node.outputs[0])
    else:
        reduction(b, _PLAIN[node.op_type], x, axes, keep, node.outputs[0])


@lowers("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum")
def reduce_norm(b: Lowering, node: Node) -> None:
    """``sum |x|``, ``sqrt(sum x^2)``, ``sum x^2``, ``log(sum x)``; without axes only the outer functions remain."""
    if _reduced_nothing(b, node):
        return
    x, axes, keep = _checked(b, node)
    out, kind = node.outputs[0], node.op_type
    before = {"ReduceL1": "ABS", "ReduceL2": "SQUARE", "ReduceSumSquare": "SQUARE"}.get(kind)
    after = {"ReduceL2": "SQRT", "ReduceLogSum": "LOG"}.get(kind)
    floating = b.is_float(x)
    if after and not floating:
        x = b.cast(x, "DT_FLOAT")
    if before == "SQUARE" and not b.is_float(x):
        x = b.binary("MUL", x, x, None if axes or after else out)
        b.note(x, b.info(node.inputs[0]))
    elif before:
        x = b.unary(before, x, None if axes or after else out)
    last_cast = bool(after) and not floating
    if axes:
        x = reduction(b, "SUM", x, axes, keep, None if after else out)
    if after:
        x = b.unary(after, x, None if last_cast else out)
        if last_cast:
            b.cast(x, "DT_INT32", out)
    elif not axes and not before:
        b.identity(x, out)


@lowers("ReduceLogSumExp")
def reduce_log_sum_exp(b: Lowering, node: Node) -> None:
    """``log(sum exp(x))``, with the maximum taken out so that large values do not overflow."""
    if _reduced_nothing(b, node):
        return
    x, axes, keep = _checked(b, node)
    out = node.outputs[0]
    if axes is None or not axes:
        b.identity(x, out)
        return
    if not b.is_float(x):
        msg = "integer input"
        raise Unsupported(msg)
    top = reduction(b, "MAXIMUM", x, axes, True)
    # A maximum of -inf or inf would make x - max undefined.
    bound = b.const(np.float32(3.4028235e38), "largest")
    top = b.binary("MINIMUM", b.binary("MAXIMUM", top, b.const(np.float32(-3.4028235e38), "lowest")), bound)
    shifted = b.binary("SUB", x, top)
    b.note(shifted, b.info(x))
    total = reduction(b, "SUM", b.unary("EXP", shifted), axes, keep)
    if not keep:
        top = b.reshape(top, dims.shape_of(b, total)) if isinstance(axes, str) else dims.squeeze(b, top, axes)
    b.binary("ADD", b.unary("LOG", total), top, out)
