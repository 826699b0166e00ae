"""Element-wise operators of one operand, activations, and the softmax family."""

from __future__ import annotations

import math

import numpy as np

from mnnq.frontends.onnx import emit
from mnnq.frontends.onnx.emit import attributes
from mnnq.frontends.onnx.lowering import Lowering, Unsupported
from mnnq.frontends.onnx.registry import lowers
from mnnq.ir.graph import Node, ValueInfo

_UNARY = {
    "Abs": "ABS", "Neg": "NEG", "Sign": "SIGN", "Floor": "FLOOR", "Ceil": "CEIL", "Sqrt": "SQRT", "Exp": "EXP",
    "Log": "LOG", "Reciprocal": "RECIPROCAL", "Sigmoid": "SIGMOID", "Tanh": "TANH", "Erf": "ERF",
    "HardSwish": "HARDSWISH", "Sin": "SIN", "Cos": "COS", "Tan": "TAN", "Asin": "ASIN", "Acos": "ACOS",
    "Atan": "ATAN", "Sinh": "SINH", "Cosh": "COSH", "Asinh": "ASINH", "Acosh": "ACOSH", "Atanh": "ATANH",
}  # fmt: skip

#: Unary operators that the runtime also computes on integers.
_INTEGER_UNARY = frozenset({"Abs", "Neg", "Sign"})


@lowers(*_UNARY)
def unary(b: Lowering, node: Node) -> None:
    """One ``UnaryOp``."""
    attributes(node)
    if not b.is_float(node.input(0)) and node.op_type not in _INTEGER_UNARY:
        msg = f"an operand of type {b.info(node.input(0)).dtype}"
        raise Unsupported(msg)
    b.unary(_UNARY[node.op_type], node.input(0), node.outputs[0])


@lowers("Round")
def round_(b: Lowering, node: Node) -> None:
    """Rounding, halves to even (the runtime's ROUND takes halves away from zero)."""
    attributes(node)
    emit.round_even(b, node.input(0), node.outputs[0])


@lowers("IsNaN")
def is_nan(b: Lowering, node: Node) -> None:
    """``not x >= x``."""
    attributes(node)
    x = node.input(0)
    emit.logical_not(b, emit.compare(b, "GREATER_EQUAL", x, x), node.outputs[0])


@lowers("IsInf")
def is_inf(b: Lowering, node: Node) -> None:
    """``|x|`` above the largest finite float, or one sign of it."""
    attrs = attributes(node, detect_negative=1, detect_positive=1)
    x, out = node.input(0), node.outputs[0]
    limit = b.const(np.float32(emit.FLOAT_MAX))
    if attrs["detect_negative"] and attrs["detect_positive"]:
        emit.compare(b, "GREATER", b.unary("ABS", x), limit, out)
    elif attrs["detect_positive"]:
        emit.compare(b, "GREATER", x, limit, out)
    elif attrs["detect_negative"]:
        emit.compare(b, "GREATER", b.const(np.float32(-emit.FLOAT_MAX)), x, out)
    else:
        emit.compare(b, "GREATER", x, x, out)


# -- rectifiers


def _relu(b: Lowering, x: str, slope: float, out: str | None) -> str:
    return b.emit("ReLU", [x], out, param_type="Relu", slope=slope, info=b.info(x))


@lowers("Relu")
def relu(b: Lowering, node: Node) -> None:
    """``max(x, 0)``."""
    attributes(node)
    x, out = node.input(0), node.outputs[0]
    if b.is_float(x):
        _relu(b, x, 0.0, out)
    else:
        b.binary("MAXIMUM", x, b.const(np.int32(0)), out)


@lowers("LeakyRelu")
def leaky_relu(b: Lowering, node: Node) -> None:
    """``x`` or ``alpha * x``."""
    alpha = float(attributes(node, alpha=0.01)["alpha"])
    _relu(b, node.input(0), alpha, node.outputs[0])


@lowers("PRelu")
def prelu(b: Lowering, node: Node) -> None:
    """``max(x, 0) + slope * min(x, 0)``; one slope per channel of a 4-D tensor is one ``PReLU``."""
    attributes(node)
    x, out = node.input(0), node.outputs[0]
    slope = b.constant(node.input(1))
    shape = b.shape(x)
    if slope is not None and b.is_float(x) and shape is not None and slope.ndim <= len(shape):
        if slope.size == 1:
            _relu(b, x, float(slope.reshape(())), out)
            return
        aligned = (1,) * (len(shape) - slope.ndim) + slope.shape
        if len(shape) == 4 and aligned[1] == slope.size and shape[1] == slope.size:
            values = slope.astype(np.float32).reshape(-1)
            b.emit("PReLU", [x], out, param_type="PRelu", slopeCount=slope.size, slope=values, info=b.info(x))
            return
    zero = emit.scalar_like(b, x, 0)
    negative = b.binary("MUL", b.binary("MINIMUM", x, zero), node.input(1))
    b.binary("ADD", b.binary("MAXIMUM", x, zero), negative, out)


@lowers("ThresholdedRelu")
def thresholded_relu(b: Lowering, node: Node) -> None:
    """``x`` above alpha, else 0."""
    alpha = np.float32(attributes(node, alpha=1.0)["alpha"])
    x = node.input(0)
    emit.select(b, emit.compare(b, "GREATER", x, b.const(alpha)), x, b.const(np.float32(0)), node.outputs[0])


@lowers("Elu")
def elu(b: Lowering, node: Node) -> None:
    """``x`` or ``alpha * (exp(x) - 1)``."""
    alpha = float(attributes(node, alpha=1.0)["alpha"])
    x = node.input(0)
    b.emit("ELU", [x], node.outputs[0], param_type="ELU", alpha=alpha, info=b.info(x))


@lowers("Selu")
def selu(b: Lowering, node: Node) -> None:
    """``gamma * x`` or ``gamma * alpha * (exp(x) - 1)``."""
    attrs = attributes(node, alpha=1.6732631921768188, gamma=1.0507010221481323)
    x = node.input(0)
    b.emit(
        "Selu", [x], node.outputs[0], param_type="Selu", alpha=float(attrs["alpha"]),
        scale=float(attrs["gamma"]), info=b.info(x),
    )  # fmt: skip


@lowers("Celu")
def celu(b: Lowering, node: Node) -> None:
    """``max(x, 0) + alpha * (exp(min(x, 0) / alpha) - 1)``."""
    alpha = np.float32(attributes(node, alpha=1.0)["alpha"])
    x, zero = node.input(0), b.const(np.float32(0))
    scaled = b.binary("REALDIV", b.binary("MINIMUM", x, zero), b.const(alpha))
    negative = b.binary("MUL", b.unary("EXPM1", scaled), b.const(alpha))
    b.binary("ADD", b.binary("MAXIMUM", x, zero), negative, node.outputs[0])


@lowers("Clip")
def clip(b: Lowering, node: Node) -> None:
    """Clamp; the upper bound wins over the lower one."""
    attributes(node)
    x, out = node.input(0), node.outputs[0]
    bounds = [node.input(1), node.input(2)]
    arrays = [b.constant(name) if name else None for name in bounds]
    constant = all(a is not None and a.size == 1 for n, a in zip(bounds, arrays, strict=True) if n)
    if b.is_float(x) and constant:
        low, high = (
            None if a is None else float(np.clip(a.reshape(()), -emit.FLOAT_MAX, emit.FLOAT_MAX))
            for a in arrays
        )
        if low is None or high is None or low <= high:
            emit.clip(b, x, low, high, out)
            return
    steps = [(k, n) for k, n in zip(("MAXIMUM", "MINIMUM"), bounds, strict=True) if n]
    if not steps:
        b.identity(x, out)
    for position, (kind, bound) in enumerate(steps, 1):
        x = b.binary(kind, x, bound, out if position == len(steps) else None)


# -- smooth activations


@lowers("HardSigmoid")
def hard_sigmoid(b: Lowering, node: Node) -> None:
    """``clamp(alpha * x + beta, 0, 1)``."""
    attrs = attributes(node, alpha=0.2, beta=0.5)
    scaled = b.binary("MUL", node.input(0), b.const(np.float32(attrs["alpha"])))
    emit.clip(b, b.binary("ADD", scaled, b.const(np.float32(attrs["beta"]))), 0.0, 1.0, node.outputs[0])


@lowers("Gelu")
def gelu(b: Lowering, node: Node) -> None:
    """Exact form, or the tanh form as ``x * sigmoid(2 u)``: the runtime's own is off by 2e-4."""
    mode = attributes(node, approximate="none")["approximate"]
    x, out = node.input(0), node.outputs[0]
    if mode == "none":
        b.unary("GELU_STANDARD", x, out)
        return
    if mode != "tanh":
        msg = f"approximate {mode!r}"
        raise Unsupported(msg)
    outer = 2 * math.sqrt(2 / math.pi)
    inner = b.binary("MUL", b.unary("SQUARE", x), b.const(np.float32(outer * 0.044715)))
    twice = b.binary("MUL", b.binary("ADD", inner, b.const(np.float32(outer))), x)
    b.binary("MUL", x, b.unary("SIGMOID", twice), out)


@lowers("Swish")
def swish(b: Lowering, node: Node) -> None:
    """``x * sigmoid(alpha * x)``."""
    alpha = float(attributes(node, alpha=1.0)["alpha"])
    x, out = node.input(0), node.outputs[0]
    if alpha == 1.0:
        b.unary("SILU", x, out)
        return
    b.binary("MUL", x, b.unary("SIGMOID", b.binary("MUL", x, b.const(np.float32(alpha)))), out)


@lowers("Mish")
def mish(b: Lowering, node: Node) -> None:
    """``x * tanh(softplus(x))`` as ``x * n / (n + 2)``, ``n = e * (e + 2)``, ``e = exp(min(x, 20))``."""
    attributes(node)
    x, two = node.input(0), b.const(np.float32(2))
    e = b.unary("EXP", b.binary("MINIMUM", x, b.const(np.float32(20))))
    n = b.binary("MUL", e, b.binary("ADD", e, two))
    b.binary("MUL", x, b.binary("REALDIV", n, b.binary("ADD", n, two)), node.outputs[0])


@lowers("Softplus")
def softplus(b: Lowering, node: Node) -> None:
    """``max(x, 0) + log(1 + exp(-|x|))``, which does not overflow."""
    attributes(node)
    x = node.input(0)
    tail = b.unary("LOG1P", b.unary("EXP", b.unary("NEG", b.unary("ABS", x))))
    b.binary("ADD", b.binary("MAXIMUM", x, b.const(np.float32(0))), tail, node.outputs[0])


@lowers("Softsign")
def softsign(b: Lowering, node: Node) -> None:
    """``x / (1 + |x|)``."""
    attributes(node)
    x = node.input(0)
    b.binary("REALDIV", x, b.binary("ADD", b.unary("ABS", x), b.const(np.float32(1))), node.outputs[0])


@lowers("Shrink")
def shrink(b: Lowering, node: Node) -> None:
    """``x + bias`` below ``-lambd``, ``x - bias`` above ``lambd``, else 0."""
    attrs = attributes(node, bias=0.0, lambd=0.5)
    x, out = node.input(0), node.outputs[0]
    if not b.is_float(x):
        msg = f"an operand of type {b.info(x).dtype}"
        raise Unsupported(msg)
    bias, lambd = b.const(np.float32(attrs["bias"])), np.float32(attrs["lambd"])
    below = emit.compare(b, "LESS", x, b.const(-lambd))
    above = emit.compare(b, "GREATER", x, b.const(lambd))
    right = emit.select(b, above, b.binary("SUB", x, bias), b.const(np.float32(0)))
    emit.select(b, below, b.binary("ADD", x, bias), right, out)


# -- softmax family


@lowers("Softmax")
def softmax(b: Lowering, node: Node) -> None:
    """``Softmax`` along one axis."""
    axis = int(attributes(node, axis=-1)["axis"])
    x = node.input(0)
    rank = b.info(x).rank
    axis = axis if rank is None else emit.norm_axis(axis, rank)
    b.emit("Softmax", [x], node.outputs[0], param_type="Axis", axis=axis, info=b.info(x))


@lowers("LogSoftmax")
def log_softmax(b: Lowering, node: Node) -> None:
    """``x - max - log(sum(exp(x - max)))``."""
    axis = int(attributes(node, axis=-1)["axis"])
    x = node.input(0)
    axes = [emit.norm_axis(axis, b.rank(x))]
    shifted = b.binary("SUB", x, emit.reduce(b, "MAXIMUM", x, axes))
    total = emit.reduce(b, "SUM", b.unary("EXP", shifted), axes)
    b.binary("SUB", shifted, b.unary("LOG", total), node.outputs[0])


@lowers("Hardmax")
def hardmax(b: Lowering, node: Node) -> None:
    """1 at the first maximum along the axis, else 0."""
    x, out = node.input(0), node.outputs[0]
    rank = b.rank(x)
    axis = emit.norm_axis(int(attributes(node, axis=-1)["axis"]), rank)
    winner = b.emit(
        "ArgMax", [x], param_type="ArgMax", axis=axis, topK=1, outMaxVal=0,
        info=ValueInfo(np.dtype(np.int32), tuple(d for i, d in enumerate(b.shape(x) or ()) if i != axis)),
    )  # fmt: skip
    size = emit.known_dim(b, (x, axis))
    tail = [1] * (rank - 1 - axis)
    if size is not None:
        positions = b.const(np.arange(size, dtype=np.int32).reshape(-1, *tail))
    else:
        limit = emit.squeeze(b, emit.dim_of(b, x, axis), [0])
        count = b.emit(
            "Range", [b.const(np.int32(0)), limit, b.const(np.int32(1))], param_type="Range", Tidx="DT_INT32",
            info=ValueInfo(np.dtype(np.int32), (None,)),
        )  # fmt: skip
        positions = b.reshape(count, [-1, *tail])
    hit = emit.compare(b, "EQUAL", emit.unsqueeze(b, winner, [axis]), positions)
    b.cast(hit, "DT_FLOAT", out)
