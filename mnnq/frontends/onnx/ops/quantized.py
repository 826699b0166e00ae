"""Quantized operators of ONNX on run-time tensors, in float arithmetic that is exact on the integers concerned."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx

from mnnq.frontends.onnx import emit
from mnnq.frontends.onnx.emit import attributes
from mnnq.frontends.onnx.lowering import Lowering, Unsupported, is_float
from mnnq.frontends.onnx.ops.conv import CONV_ATTRS, Conv, emit_conv, emit_tap, window
from mnnq.frontends.onnx.registry import lowers
from mnnq.ir.graph import FAKE_QUANT, MNNQ_DOMAIN, Node

#: Rows of an 8-bit product summed at once in float: |(a - za) (b - zb)| <= 255 * 255, and the sum, also with the
#: operand sums of a fast matrix product, stays below 2**24.
_CHUNK = 64

_RANGES = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}


def _range(dtype: np.dtype[Any]) -> tuple[int, int]:
    try:
        return _RANGES[dtype.name]
    except KeyError as error:
        msg = f"quantized type {dtype}"
        raise Unsupported(msg) from error


def _along(b: Lowering, name: str, x: str, axis: int, block: int) -> str:
    """A scale or zero point in the shape that broadcasts with `x`: scalar, per axis, or per block."""
    shape = b.static_shape(name)
    if shape is None:
        msg = f"the shape of {name!r} is unknown"
        raise Unsupported(msg)
    if int(np.prod(shape)) == 1:
        return b.reshape(name, [1]) if shape else name
    rank = b.rank(x)
    axis = emit.norm_axis(axis, rank)
    if len(shape) == 1 and not block:
        return b.reshape(name, [-1 if i == axis else 1 for i in range(rank)])
    size = emit.known_dim(b, (x, axis))
    if len(shape) != rank or not block or size is None or shape[axis] != -(-size // block):
        msg = f"scale of shape {shape} with block_size {block} for {x!r}"
        raise Unsupported(msg)
    return emit.gather(b, name, np.arange(size) // block, axis)


def _float(b: Lowering, name: str) -> str:
    return name if b.is_float(name) else b.cast(name, "DT_FLOAT")


def _quantize(
    b: Lowering, scaled: str, zero: str | None, bounds: tuple[int, int], out: str | None = None
) -> str:
    """``clamp(round(scaled) + zero)`` as INT32, halves to even; `zero` is INT32 or absent."""
    low, high = bounds
    fixed = b.constant(zero) if zero else None
    if fixed is not None and fixed.size == 1:
        point = int(fixed.reshape(-1)[0])
        rounded = emit.round_small(b, emit.clip(b, scaled, float(low - point), float(high - point)))
        shifted = b.binary("ADD", rounded, b.const(np.float32(point))) if point else rounded
        return b.cast(shifted, "DT_INT32", out)
    # Within the clamp nothing exceeds 2**17, so that the short form of rounding is exact.
    safe = emit.clip(b, scaled, float(low - high), float(high - low + 1))
    if zero is None:
        rounded = emit.round_small(b, emit.clip(b, scaled, float(low), float(high)))
        return b.cast(rounded, "DT_INT32", out)
    shifted = b.binary("ADD", emit.round_small(b, safe), _float(b, zero))
    return b.cast(emit.clip(b, shifted, float(low), float(high)), "DT_INT32", out)


@lowers(FAKE_QUANT, domain=MNNQ_DOMAIN)
def fake_quant(b: Lowering, node: Node) -> None:
    """A placeholder that `mnnq.passes.describe_quantized` turns into a description of a tensor."""
    attrs = attributes(node, scale=1.0, zero=0, low=-128, high=127)
    info = {
        "scale": float(attrs["scale"]),
        "zero": float(attrs["zero"]),
        "min": float(attrs["low"]),
        "max": float(attrs["high"]),
        "type": "DT_INT8",
    }
    x = node.input(0)
    b.emit(FAKE_QUANT, [x], node.outputs[0], info=b.info(x), quantInfo=info)


@lowers("QuantizeLinear")
def quantize_linear(b: Lowering, node: Node) -> None:
    """``clamp(round(x / scale) + zero point)``."""
    attrs = attributes(node, axis=1, block_size=0, output_dtype=0, precision=0, saturate=1)
    x, zero = node.input(0), node.input(2)
    dtype = b.info(zero).dtype if zero else None
    if dtype is None:
        code = int(attrs["output_dtype"])
        dtype = onnx.helper.tensor_dtype_to_np_dtype(code) if code else np.dtype(np.uint8)
    bounds = _range(dtype)
    axis, block = int(attrs["axis"]), int(attrs["block_size"])
    scale = _along(b, node.input(1), x, axis, block)
    ratio = b.binary("REALDIV", _float(b, x), scale)
    _quantize(b, ratio, _along(b, zero, x, axis, block) if zero else None, bounds, node.outputs[0])


@lowers("DequantizeLinear")
def dequantize_linear(b: Lowering, node: Node) -> None:
    """``(x - zero point) * scale``."""
    attrs = attributes(node, axis=1, block_size=0, output_dtype=0)
    x, zero = node.input(0), node.input(2)
    if is_float(b.info(x).dtype):
        msg = f"quantized type {b.info(x).dtype}"
        raise Unsupported(msg)
    axis, block = int(attrs["axis"]), int(attrs["block_size"])
    scale = _along(b, node.input(1), x, axis, block)
    if zero:
        x = b.binary("SUB", x, _along(b, zero, x, axis, block))
    b.binary("MUL", b.cast(x, "DT_FLOAT"), scale, node.outputs[0])


@lowers("DynamicQuantizeLinear")
def dynamic_quantize_linear(b: Lowering, node: Node) -> None:
    """Quantization to uint8 with the range of the tensor itself, 0 included."""
    attributes(node)
    x = node.input(0)
    zero = b.const(np.float32(0))
    axes = list(range(b.rank(x)))
    high = b.binary("MAXIMUM", emit.reduce(b, "MAXIMUM", x, axes, keep=False), zero)
    low = b.binary("MINIMUM", emit.reduce(b, "MINIMUM", x, axes, keep=False), zero)
    span = b.binary("SUB", high, low)
    flat = emit.compare(b, "EQUAL", span, zero)
    span = emit.select(b, flat, b.const(np.float32(1)), span)
    wanted = [node.outputs[i] if node.has_output(i) else None for i in range(3)]
    scale = b.binary("REALDIV", span, b.const(np.float32(255)), wanted[1])
    ratio = b.binary("REALDIV", b.unary("NEG", low), scale)
    point = b.cast(emit.round_small(b, emit.clip(b, ratio, 0.0, 255.0)), "DT_INT32", wanted[2])
    if wanted[0]:
        _quantize(b, b.binary("REALDIV", x, scale), point, (0, 255), wanted[0])


def _shifted(b: Lowering, name: str, zero: str, shape: list[int] | None) -> str:
    """Float tensor of ``value - zero point``; a zero point of several values is reshaped to `shape`."""
    if not zero:
        return b.cast(name, "DT_FLOAT")
    own = b.static_shape(zero)
    if own is None:
        msg = f"the shape of {zero!r} is unknown"
        raise Unsupported(msg)
    if int(np.prod(own)) == 1:
        zero = b.reshape(zero, [1]) if own else zero
    elif shape is not None and len(own) == 1:
        zero = b.reshape(zero, shape)
    return b.cast(b.binary("SUB", name, zero), "DT_FLOAT")


def _exact_matmul(b: Lowering, x: str, y: str, out: str | None = None) -> str:
    """INT32 product of float tensors that hold integers within 255, in chunks that float sums exactly."""
    rank_x, rank_y = b.rank(x), b.rank(y)
    depth = emit.known_dim(b, (y, rank_y - 2))
    if rank_x < 2 or rank_y < 2 or depth is None:
        msg = "an integer product of vectors, or of a length that is not known"
        raise Unsupported(msg)
    total: str | None = None
    for begin in range(0, depth, _CHUNK):
        end = min(begin + _CHUNK, depth)
        whole = end - begin == depth
        left = x if whole else emit.slice_axis(b, x, rank_x - 1, begin, end)
        right = y if whole else emit.slice_axis(b, y, rank_y - 2, begin, end)
        last = out if end == depth else None
        part = b.cast(emit.matmul(b, left, right), "DT_INT32", last if total is None else None)
        total = part if total is None else b.binary("ADD", total, part, last)
    assert total is not None
    return total


@lowers("MatMulInteger")
def matmul_integer(b: Lowering, node: Node) -> None:
    """``(A - a_zero_point) @ (B - b_zero_point)`` as INT32."""
    attributes(node)
    x = _shifted(b, node.input(0), node.input(2), [-1, 1])
    y = _shifted(b, node.input(1), node.input(3), None)
    _exact_matmul(b, x, y, node.outputs[0])


@lowers("QLinearMatMul")
def qlinear_matmul(b: Lowering, node: Node) -> None:
    """Quantized product of quantized matrices."""
    attributes(node)
    a, a_scale, a_zero, y, y_scale, y_zero, scale, zero = (node.input(i) for i in range(8))
    product = _exact_matmul(b, _shifted(b, a, a_zero, [-1, 1]), _shifted(b, y, y_zero, None))
    a_factor = b.reshape(a_scale, [-1, 1]) if b.rank(a_scale) == 1 else a_scale
    factor = b.binary("REALDIV", b.binary("MUL", a_factor, y_scale), scale)
    scaled = b.binary("MUL", b.cast(product, "DT_FLOAT"), factor)
    _quantize(b, scaled, zero, _range(emit.dtype_of(b, zero)), node.outputs[0])


def _integer_conv(
    b: Lowering, node: Node, x: str, weight: str, zeros: tuple[str, str], bias: str, out: str | None
) -> str:
    """INT32 convolution: the taps become columns of exact matrix products (a Winograd form would round)."""
    attrs = attributes(node, **CONV_ATTRS)
    kernel, shape = b.static_shape(weight), b.shape(x)
    channels = emit.known_dim(b, (x, 1))
    if kernel is None or shape is None or len(kernel) != 4 or channels is None or int(attrs["group"]) != 1:
        msg = "an integer convolution with groups, other than 2-D, or of unknown weight shape or channels"
        raise Unsupported(msg)
    win = window(attrs, kernel[2:], shape[2:])
    if win.same:
        msg = "auto_pad over sizes that are not known: give the input shape"
        raise Unsupported(msg)
    factors = _shifted(b, weight, zeros[1], [-1, 1, 1, 1])
    data = _shifted(b, x, zeros[0], None)
    if any(win.begins) or any(win.ends):
        data = emit.pad(b, data, [0, 0, *win.begins], [0, 0, *win.ends], 0.0)
    total: str | None = None
    plain = window({**CONV_ATTRS, "auto_pad": "VALID"}, (1, 1), (None, None))
    for row, column in itertools.product(range(win.kernel[0]), range(win.kernel[1])):
        tap = emit_tap(b, emit_tap(b, data, 0, row, win), 1, column, win)
        cut = emit.slice_axis(b, emit.slice_axis(b, factors, 2, row, row + 1), 3, column, column + 1)
        for begin in range(0, channels, _CHUNK):
            end = min(begin + _CHUNK, channels)
            whole = end - begin == channels
            part = tap if whole else emit.slice_axis(b, tap, 1, begin, end)
            columns = cut if whole else emit.slice_axis(b, cut, 1, begin, end)
            spec = Conv(plain, 1, columns, None, (kernel[0], end - begin, 1, 1))
            number = b.cast(emit_conv(b, part, spec), "DT_INT32")
            total = number if total is None else b.binary("ADD", total, number)
    assert total is not None
    if bias:
        total = b.binary("ADD", total, b.reshape(bias, [1, -1, 1, 1]))
    return total if out is None else emit.rename(b, total, out)


@lowers("ConvInteger")
def conv_integer(b: Lowering, node: Node) -> None:
    """``ConvInteger`` of two spatial axes."""
    zeros = (node.input(2), node.input(3))
    _integer_conv(b, node, node.input(0), node.input(1), zeros, "", node.outputs[0])


@lowers("QLinearConv")
def qlinear_conv(b: Lowering, node: Node) -> None:
    """``QLinearConv`` of two spatial axes: an integer convolution, scaled and rounded."""
    x, x_scale, x_zero, w, w_scale, w_zero, scale, zero = (node.input(i) for i in range(8))
    total = _integer_conv(b, node, x, w, (x_zero, w_zero), node.input(8), None)
    w_shape = b.static_shape(w_scale) or ()
    w_factor = b.reshape(w_scale, [1, -1, 1, 1]) if int(np.prod(w_shape)) > 1 else w_scale
    factor = b.binary("REALDIV", b.binary("MUL", x_scale, w_factor), scale)
    scaled = b.binary("MUL", b.cast(total, "DT_FLOAT"), factor)
    _quantize(b, scaled, zero, _range(emit.dtype_of(b, zero)), node.outputs[0])
