"""Element-wise operators of two or more operands, and type conversion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from mnnq.frontends.onnx import emit
from mnnq.frontends.onnx.emit import attributes
from mnnq.frontends.onnx.lowering import Lowering, Unsupported, is_float
from mnnq.frontends.onnx.registry import lowers
from mnnq.ir.graph import Node

_ARITHMETIC = {"Add": "ADD", "Sub": "SUB", "Mul": "MUL"}
_BITWISE = {"BitwiseAnd": "BITWISE_AND", "BitwiseOr": "BITWISE_OR", "BitwiseXor": "BITWISE_XOR"}
_LOGICAL = {"And": "MUL", "Or": "LOGICALOR", "Xor": "LOGICALXOR"}
_COMPARISONS = {
    "Equal": "EQUAL",
    "Greater": "GREATER",
    "GreaterOrEqual": "GREATER_EQUAL",
    "Less": "LESS",
    "LessOrEqual": "LESS_EQUAL",
}

#: Makes up for the rounding of the runtime's power function before a result is truncated to an integer.
_POWER_SLACK = np.float32(1 + 2e-6)


def _pair(b: Lowering, node: Node) -> tuple[str, str]:
    """The two operands; the runtime wants the same type for both."""
    x, y = node.input(0), node.input(1)
    if b.is_float(x) != b.is_float(y):
        msg = f"operands of types {b.info(x).dtype} and {b.info(y).dtype}"
        raise Unsupported(msg)
    return x, y


@lowers(*_ARITHMETIC, *_BITWISE)
def arithmetic(b: Lowering, node: Node) -> None:
    """Arithmetic with numpy broadcasting; narrow integers wrap."""
    attributes(node)
    kind = (_ARITHMETIC | _BITWISE)[node.op_type]
    binary_wrapped(b, kind, *_pair(b, node), node.outputs[0])


def binary_wrapped(b: Lowering, kind: str, x: str, y: str, out: str | None) -> str:
    """`Lowering.binary`, and for integers of 8 and 16 bits their wrapping around."""
    dtype = b.info(x).dtype
    narrow = dtype is not None and dtype.kind in "iu" and dtype.itemsize < 4
    if not narrow or kind.startswith("BITWISE"):
        return b.binary(kind, x, y, out)
    return emit.wrap_integer(b, b.binary(kind, x, y), dtype, out)


@lowers("Div")
def div(b: Lowering, node: Node) -> None:
    """Division; integers truncate toward zero."""
    attributes(node)
    binary_wrapped(b, "REALDIV", *_pair(b, node), node.outputs[0])


@lowers("Mod")
def mod(b: Lowering, node: Node) -> None:
    """Remainder with the sign of the divisor (fmod = 0) or of the dividend (fmod = 1).

    The runtime's MOD and FLOORMOD change places between integers and floats.
    """
    fmod = int(attributes(node, fmod=0)["fmod"])
    x, y = _pair(b, node)
    if not b.is_float(x):
        b.binary("FLOORMOD" if fmod else "MOD", x, y, node.outputs[0])
    elif fmod:
        b.binary("MOD", x, y, node.outputs[0])
    else:
        rest = b.binary("MOD", x, y)
        zero = b.const(np.float32(0))
        crossed = emit.compare(b, "GREATER", zero, b.binary("MUL", rest, y))
        emit.select(b, crossed, b.binary("ADD", rest, y), rest, node.outputs[0])


@lowers("Pow")
def power(b: Lowering, node: Node) -> None:
    """Power; the result has the type of the base."""
    attributes(node)
    x, y, out = node.input(0), node.input(1), node.outputs[0]
    exponent = b.constant(y)
    if exponent is not None and not b.is_float(x) and is_float(exponent.dtype):
        whole = np.trunc(exponent.astype(np.float64))
        if np.array_equal(whole, exponent) and bool((whole >= 0).all()):
            y = b.const(whole.astype(np.int32))
    if b.is_float(x):
        if exponent is not None and exponent.size == 1 and exponent.ndim <= (b.info(x).rank or 0):
            kind = {2.0: "SQUARE", 0.5: "SQRT"}.get(float(exponent.reshape(())))
            if kind is not None:
                b.unary(kind, x, out)
                return
        b.binary("POW", x, y if b.is_float(y) else b.cast(y, "DT_FLOAT"), out)
    elif b.is_float(y):
        value = b.binary("POW", b.cast(x, "DT_FLOAT"), y)
        b.cast(b.binary("MUL", value, b.const(_POWER_SLACK)), "DT_INT32", out)
    else:
        binary_wrapped(b, "POW", x, y, out)


@lowers(*_COMPARISONS)
def comparison(b: Lowering, node: Node) -> None:
    """Comparison to 0 or 1."""
    attributes(node)
    emit.compare(b, _COMPARISONS[node.op_type], *_pair(b, node), node.outputs[0])


@lowers(*_LOGICAL)
def logical(b: Lowering, node: Node) -> None:
    """Logic of 0/1 tensors."""
    attributes(node)
    b.binary(_LOGICAL[node.op_type], *_pair(b, node), node.outputs[0])


@lowers("Not")
def logical_not(b: Lowering, node: Node) -> None:
    """``1 - x``."""
    attributes(node)
    emit.logical_not(b, node.input(0), node.outputs[0])


@lowers("BitwiseNot")
def bitwise_not(b: Lowering, node: Node) -> None:
    """``-1 - x``; unsigned types wrap."""
    attributes(node)
    x, out = node.input(0), node.outputs[0]
    dtype = b.info(x).dtype
    if dtype is not None and dtype.kind == "u":
        if dtype.itemsize >= 4:
            msg = f"the complement of {dtype} exceeds 32-bit integers"
            raise Unsupported(msg)
        b.binary("SUB", b.const(np.int32((1 << 8 * dtype.itemsize) - 1)), x, out)
        return
    b.binary("SUB", b.const(np.int32(-1)), x, out)


@lowers("BitShift")
def bit_shift(b: Lowering, node: Node) -> None:
    """Shift; amounts of the width and above leave nothing but the sign."""
    direction = attributes(node, direction="")["direction"]
    if direction not in ("LEFT", "RIGHT"):
        msg = f"direction {direction!r}"
        raise Unsupported(msg)
    x, amount = _pair(b, node)
    constant = b.constant(amount)
    out = node.outputs[0]
    if constant is not None and bool(((constant >= 0) & (constant < 32)).all()):
        binary_wrapped(b, f"{direction}SHIFT", x, amount, out)
        return
    # The runtime takes amounts modulo 32; larger ones shift everything out.
    kept = b.binary("BITWISE_AND", amount, b.const(np.int32(31)))
    inside = emit.compare(b, "EQUAL", kept, amount)
    if direction == "RIGHT":
        binary_wrapped(b, "RIGHTSHIFT", x, emit.select(b, inside, amount, b.const(np.int32(31))), out)
        return
    shifted = binary_wrapped(b, "LEFTSHIFT", x, kept, None)
    emit.select(b, inside, shifted, b.const(np.int32(0)), out)


@lowers("Where")
def where(b: Lowering, node: Node) -> None:
    """Selection with broadcasting of all three operands."""
    attributes(node)
    cond, x, y = (node.input(i) for i in range(3))
    emit.select(b, cond, x, y, node.outputs[0])


def _fold(b: Lowering, names: list[str], step: Callable[[str, str, str | None], str], out: str | None) -> str:
    """Combine operands from the left; the last step makes `out`."""
    if not names:
        msg = "no operands"
        raise Unsupported(msg)
    result = names[0]
    for position, name in enumerate(names[1:], 2):
        result = step(result, name, out if position == len(names) else None)
    if len(names) == 1 and out is not None:
        return b.identity(result, out)
    return result


@lowers("Min", "Max", "Sum")
def variadic(b: Lowering, node: Node) -> None:
    """``Min``, ``Max`` and ``Sum`` of one or more operands."""
    attributes(node)
    kind = {"Min": "MINIMUM", "Max": "MAXIMUM", "Sum": "ADD"}[node.op_type]
    _fold(b, node.inputs, lambda x, y, out: b.binary(kind, x, y, out), node.outputs[0])


@lowers("Mean")
def mean(b: Lowering, node: Node) -> None:
    """Mean of one or more operands."""
    attributes(node)
    total = _fold(b, node.inputs, lambda x, y, out: b.binary("ADD", x, y, out), None)
    b.binary("REALDIV", total, b.const(np.float32(len(node.inputs))), node.outputs[0])


@lowers("Cast")
def cast(b: Lowering, node: Node) -> None:
    """Type conversion; ``saturate`` and ``round_mode`` concern float8 only, which is refused."""
    attrs = attributes(node, to=0, saturate=1, round_mode="up")
    try:
        target = onnx.helper.tensor_dtype_to_np_dtype(int(attrs["to"]))
    except KeyError as error:
        msg = f"conversion to type {attrs['to']}"
        raise Unsupported(msg) from error
    convert(b, node.input(0), target, node.outputs[0])


@lowers("CastLike")
def cast_like(b: Lowering, node: Node) -> None:
    """Conversion to the type of the second operand."""
    attributes(node, saturate=1, round_mode="up")
    target = b.info(node.input(1)).dtype
    if target is None:
        msg = f"the type of {node.input(1)!r} is unknown"
        raise Unsupported(msg)
    convert(b, node.input(0), target, node.outputs[0])


def convert(b: Lowering, x: str, target: np.dtype[Any], out: str) -> str:
    """ONNX ``Cast`` between the two types of the MNN graph, with the value range of the ONNX integer type.

    float16, bfloat16 and float64 stay float32: they keep its precision and range.
    """
    source = b.info(x).dtype
    for dtype in (source, target):
        if dtype is not None and (dtype.kind in "OUS" or "float8" in dtype.name or "float4" in dtype.name):
            msg = f"conversion from {source} to {target}"
            raise Unsupported(msg)
    if target.kind == "b":
        return b.identity(x, out) if source is not None and source.kind == "b" else emit.to_bool(b, x, out)
    if is_float(target):
        return b.identity(x, out) if b.is_float(x) else b.cast(x, "DT_FLOAT", out)
    wraps = target.kind in "iu" and target.itemsize < 4 and not _fits(source, target)
    if b.is_float(x):
        if not wraps:
            return b.cast(x, "DT_INT32", out)
        return emit.wrap_integer(b, b.cast(x, "DT_INT32"), target, out)
    return emit.wrap_integer(b, x, target, out) if wraps else b.identity(x, out)


def _fits(source: np.dtype[Any] | None, target: np.dtype[Any]) -> bool:
    return source is not None and (source.kind == "b" or np.can_cast(source, target))
