"""Normalisation: batch, layer, instance, group, RMS, Lp, mean-variance, local response."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.frontends.onnx import emit
from mnnq.frontends.onnx.emit import attributes
from mnnq.frontends.onnx.lowering import Lowering, Unsupported
from mnnq.frontends.onnx.registry import lowers
from mnnq.ir.graph import Node

#: A constant array, or the name of a tensor.
_Operand = npt.NDArray[Any] | str


def _operand(b: Lowering, name: str) -> _Operand:
    array = b.constant(name)
    return name if array is None else array.astype(np.float32)


def channel_affine(b: Lowering, x: str, scale: _Operand, bias: _Operand, out: str | None = None) -> str:
    """``x * scale[c] + bias[c]`` along axis 1: a ``Scale`` for constant vectors and 4-D tensors."""
    rank = b.rank(x)
    if rank == 4 and not isinstance(scale, str) and not isinstance(bias, str):
        if scale.size != bias.size:
            msg = f"{scale.size} scales and {bias.size} biases"
            raise Unsupported(msg)
        return b.emit(
            "Scale", [x], out, param_type="Scale", channels=scale.size, info=b.info(x),
            scaleData=scale.astype(np.float32).reshape(-1), biasData=bias.astype(np.float32).reshape(-1),
        )  # fmt: skip
    shape = [1, -1, *[1] * (rank - 2)]
    factor, offset = (
        b.reshape(v, shape) if isinstance(v, str) else b.const(v.astype(np.float32).reshape(shape))
        for v in (scale, bias)
    )
    return b.binary("ADD", b.binary("MUL", x, factor), offset, out)


@lowers("BatchNormalization")
def batch_norm(b: Lowering, node: Node) -> None:
    """``(x - mean) / sqrt(var + epsilon) * scale + bias`` per channel."""
    attrs = attributes(node, epsilon=1e-5, momentum=0.9, training_mode=0)
    if attrs["training_mode"] or any(node.has_output(i) for i in range(1, len(node.outputs))):
        msg = "training mode"
        raise Unsupported(msg)
    x, out = node.input(0), node.outputs[0]
    if b.rank(x) < 2:
        msg = f"an input of rank {b.rank(x)}"
        raise Unsupported(msg)
    epsilon = float(attrs["epsilon"])
    arrays = [b.constant(node.input(i)) for i in range(1, 5)]
    known = [a.astype(np.float64) for a in arrays if a is not None]
    if len(known) == 4:
        scale, bias, mean, var = known
        factor = scale / np.sqrt(var + epsilon)
        channel_affine(b, x, factor, bias - factor * mean, out)
        return
    spread = b.unary("SQRT", b.binary("ADD", node.input(4), b.const(np.float32(epsilon))))
    ratio = b.binary("REALDIV", node.input(1), spread)
    offset = b.binary("SUB", node.input(2), b.binary("MUL", ratio, node.input(3)))
    channel_affine(b, x, ratio, offset, out)


def layer_norm(
    b: Lowering,
    x: str,
    count: int,
    epsilon: float,
    gamma: npt.NDArray[Any] | None = None,
    beta: npt.NDArray[Any] | None = None,
    *,
    rms: bool = False,
    out: str | None = None,
) -> str:
    """``LayerNorm`` over the last `count` axes; `gamma` and `beta` have one value per normalised element."""
    params: dict[str, Any] = {}
    if gamma is not None:
        zeros = np.zeros(gamma.size, np.float32)
        params["gamma"] = gamma.astype(np.float32).reshape(-1)
        params["beta"] = zeros if beta is None else beta.astype(np.float32).reshape(-1)
    return b.emit(
        "LayerNorm", [x], out, param_type="LayerNorm", axis=np.arange(-count, 0, dtype=np.int32),
        epsilon=epsilon, useRMSNorm=rms, info=b.info(x), **params,
    )  # fmt: skip


def _whole(b: Lowering, x: str, axis: int, name: str) -> npt.NDArray[Any] | None:
    """A constant scale or bias spread over all normalised axes, if their sizes are known or it covers them."""
    array = b.constant(name) if name else None
    if array is None:
        return None
    sizes = [emit.known_dim(b, (x, i)) for i in range(axis, b.rank(x))]
    if array.ndim == len(sizes) and all(have == want for have, want in zip(array.shape, sizes, strict=True)):
        return array
    known = [d for d in sizes if d is not None]
    if len(known) == len(sizes) and array.ndim <= len(sizes):
        return np.broadcast_to(array, known)
    return None


@lowers("LayerNormalization", "RMSNormalization")
def layer_normalization(b: Lowering, node: Node) -> None:
    """Layer and RMS normalisation over the axes from `axis` on."""
    attrs = attributes(node, axis=-1, epsilon=1e-5, stash_type=1)
    rms = node.op_type == "RMSNormalization"
    x, out = node.input(0), node.outputs[0]
    rank = b.rank(x)
    axis = emit.norm_axis(int(attrs["axis"]), rank)
    epsilon = float(attrs["epsilon"])
    scale, bias = node.input(1), node.input(2)
    if node.has_output(1) or node.has_output(2):
        normal = _with_statistics(b, node, axis, epsilon)
    else:
        gamma, beta = _whole(b, x, axis, scale), _whole(b, x, axis, bias)
        if gamma is not None and (not bias or beta is not None):
            layer_norm(b, x, rank - axis, epsilon, gamma, beta, rms=rms, out=out)
            return
        normal = layer_norm(b, x, rank - axis, epsilon, rms=rms)
    scaled = b.binary("MUL", normal, scale, None if bias else out)
    if bias:
        b.binary("ADD", scaled, bias, out)


def _with_statistics(b: Lowering, node: Node, axis: int, epsilon: float) -> str:
    """Layer normalisation in steps, for nodes that also want the mean and the inverse deviation."""
    x = node.input(0)
    axes = range(axis, b.rank(x))
    mean = emit.reduce(b, "MEAN", x, axes, out=node.outputs[1] if node.has_output(1) else None)
    centred = b.binary("SUB", x, mean)
    var = emit.reduce(b, "MEAN", b.unary("SQUARE", centred), axes)
    deviation = b.unary("SQRT", b.binary("ADD", var, b.const(np.float32(epsilon))))
    inverse = b.unary("RECIPROCAL", deviation, node.outputs[2] if node.has_output(2) else None)
    return b.binary("MUL", centred, inverse)


def _like(b: Lowering, y: str, x: str, out: str | None = None) -> str:
    """Reshape `y` to the shape of `x`."""
    return emit.reshape_to(b, y, [(x, i) for i in range(b.rank(x))], out)


@lowers("InstanceNormalization")
def instance_norm(b: Lowering, node: Node) -> None:
    """Normalisation over the spatial axes of each channel."""
    epsilon = float(attributes(node, epsilon=1e-5)["epsilon"])
    x, out = node.input(0), node.outputs[0]
    if b.rank(x) < 3:
        msg = f"an input of rank {b.rank(x)}"
        raise Unsupported(msg)
    flat = b.reshape(x, [0, 0, -1])
    normal = _like(b, layer_norm(b, flat, 1, epsilon), x)
    channel_affine(b, normal, _operand(b, node.input(1)), _operand(b, node.input(2)), out)


@lowers("GroupNormalization")
def group_norm(b: Lowering, node: Node) -> None:
    """Normalisation over groups of channels and the spatial axes; scale and bias per channel."""
    attrs = attributes(node, epsilon=1e-5, num_groups=None, stash_type=1)
    x, out = node.input(0), node.outputs[0]
    if attrs["num_groups"] is None or b.rank(x) < 2:
        msg = f"num_groups {attrs['num_groups']}, rank {b.rank(x)}"
        raise Unsupported(msg)
    grouped = b.reshape(x, [0, int(attrs["num_groups"]), -1])
    normal = _like(b, layer_norm(b, grouped, 1, float(attrs["epsilon"])), x)
    channel_affine(b, normal, _operand(b, node.input(1)), _operand(b, node.input(2)), out)


@lowers("LpNormalization")
def lp_norm(b: Lowering, node: Node) -> None:
    """``x / norm_p(x)`` along one axis; 0 where the norm is 0."""
    attrs = attributes(node, axis=-1, p=2)
    x = node.input(0)
    axes = [emit.norm_axis(int(attrs["axis"]), b.rank(x))]
    if attrs["p"] == 1:
        norm = emit.reduce(b, "SUM", b.unary("ABS", x), axes)
    elif attrs["p"] == 2:
        norm = b.unary("SQRT", emit.reduce(b, "SUM", b.unary("SQUARE", x), axes))
    else:
        msg = f"p = {attrs['p']}"
        raise Unsupported(msg)
    safe = b.binary("MAXIMUM", norm, b.const(np.float32(np.finfo(np.float32).tiny)))
    b.binary("REALDIV", x, safe, node.outputs[0])


@lowers("MeanVarianceNormalization")
def mean_variance_norm(b: Lowering, node: Node) -> None:
    """``(x - mean) / (deviation + 1e-9)`` over the given axes."""
    x = node.input(0)
    rank = b.rank(x)
    axes = [emit.norm_axis(int(a), rank) for a in attributes(node, axes=[0, 2, 3])["axes"]]
    centred = b.binary("SUB", x, emit.reduce(b, "MEAN", x, axes))
    deviation = b.unary("SQRT", emit.reduce(b, "MEAN", b.unary("SQUARE", centred), axes))
    b.binary("REALDIV", centred, b.binary("ADD", deviation, b.const(np.float32(1e-9))), node.outputs[0])


@lowers("LRN")
def lrn(b: Lowering, node: Node) -> None:
    """``x / (bias + alpha / size * sum of squares over the channel window) ** beta``."""
    attrs = attributes(node, alpha=1e-4, beta=0.75, bias=1.0, size=None)
    x, out = node.input(0), node.outputs[0]
    if attrs["size"] is None or b.rank(x) < 2:
        msg = f"size {attrs['size']}, rank {b.rank(x)}"
        raise Unsupported(msg)
    rank, size = b.rank(x), int(attrs["size"])
    if rank == 4 and size % 2:
        b.emit(
            "LRN", [x], out, param_type="LRN", regionType=0, localSize=size, alpha=float(attrs["alpha"]),
            beta=float(attrs["beta"]), bias=float(attrs["bias"]), info=b.info(x),
        )  # fmt: skip
        return
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    rest = [0] * (rank - 2)
    squares = emit.pad(b, b.unary("SQUARE", x), [0, before, *rest], [0, after, *rest], 0.0)
    total = _window_sum(b, squares, 1, size)
    ratio = b.binary("MUL", total, b.const(np.float32(attrs["alpha"] / size)))
    base = b.binary("ADD", ratio, b.const(np.float32(attrs["bias"])))
    b.binary("REALDIV", x, b.binary("POW", base, b.const(np.float32(attrs["beta"]))), out)


def _window_sum(b: Lowering, x: str, axis: int, size: int) -> str:
    total = emit.slice_axis(b, x, axis, 0, 1 - size if size > 1 else emit.END)
    for k in range(1, size):
        end = k + 1 - size
        total = b.binary("ADD", total, emit.slice_axis(b, x, axis, k, end or emit.END))
    return total
