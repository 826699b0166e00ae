"""Matrix products: Linear (constant weight), MatMul, Gemm."""

from __future__ import annotations

import numpy as np

from mnnq.frontends.onnx import emit
from mnnq.frontends.onnx.emit import attributes
from mnnq.frontends.onnx.lowering import Lowering, Unsupported, is_float
from mnnq.frontends.onnx.ops.conv import constant_weight
from mnnq.frontends.onnx.registry import lowers
from mnnq.ir.graph import LINEAR, MNNQ_DOMAIN, Node, ValueInfo


@lowers(LINEAR, domain=MNNQ_DOMAIN)
def linear(b: Lowering, node: Node) -> None:
    """``Linear`` as MNN writes it: Reshape to ``[M, K, 1, 1]``, 1x1 Convolution, Reshape to ``[..., O]``."""
    attrs = attributes(node, transposed=0)
    x, out = node.input(0), node.outputs[0]
    weight = b.need_constant(node, 1, "the weight")
    bias = b.need_constant(node, 2, "the bias") if node.has_input(2) else None
    if weight.ndim != 2 or not is_float(weight.dtype):
        msg = f"a weight of shape {weight.shape} and type {weight.dtype}"
        raise Unsupported(msg)
    weight = weight if attrs["transposed"] else weight.T
    channels, depth = weight.shape
    shape = b.shape(x)
    flat = b.reshape(x, [-1, depth, 1, 1])
    name = f"{out}__matmul_converted"
    y = b.emit(
        "Convolution", [flat], b.fresh(name), name=name, param_type="Convolution2D",
        info=ValueInfo(np.dtype(np.float32), (None, channels, 1, 1)),
        common={
            "kernelX": 1, "kernelY": 1, "strideX": 1, "strideY": 1, "dilateX": 1, "dilateY": 1,
            "padMode": "CAFFE", "padX": 0, "padY": 0, "group": 1, "outputCount": channels, "inputCount": depth,
        },
        **constant_weight(weight, bias, channels),
    )  # fmt: skip
    if shape is not None:
        lead: list[emit.DimSource] = [(x, axis) for axis in range(len(shape) - 1)]
        emit.reshape_to(b, y, [*lead, channels], out)
        return
    dims = emit.slice_axis(b, emit.shape_of(b, x), 0, 0, -1)
    b.reshape(y, emit.concat(b, [dims, emit.int_list(b, channels)], 0), out)


@lowers("MatMul")
def matmul(b: Lowering, node: Node) -> None:
    """``MatMul`` with numpy's rules for batch axes and vectors."""
    attributes(node)
    emit_matmul(b, node.input(0), node.input(1), node.outputs[0])


def emit_matmul(b: Lowering, x: str, y: str, out: str | None = None) -> str:
    """``numpy.matmul``; integers are multiplied and summed as integers."""
    rank_x, rank_y = b.rank(x), b.rank(y)
    if not rank_x or not rank_y:
        msg = "an operand of rank 0"
        raise Unsupported(msg)
    drop = []
    if rank_x == 1:
        x = emit.unsqueeze(b, x, [0])
    if rank_y == 1:
        y = emit.unsqueeze(b, y, [1])
    rank = max(rank_x, rank_y, 2)
    if rank_x == 1:
        drop.append(rank - 2)
    if rank_y == 1:
        drop.append(rank - 1)
    product = emit.matmul if b.is_float(x) else integer_matmul
    if not drop:
        return product(b, x, y, out)
    return emit.squeeze(b, product(b, x, y), drop, out)


def integer_matmul(b: Lowering, x: str, y: str, out: str | None = None) -> str:
    """Exact product of INT32 tensors: ``sum_k x[..., m, k, 1] * y[..., 1, k, n]``."""
    rank_x, rank_y = b.rank(x), b.rank(y)
    terms = b.binary("MUL", emit.unsqueeze(b, x, [rank_x]), emit.unsqueeze(b, y, [rank_y - 2]))
    axis = max(rank_x, rank_y) - 1
    return emit.reduce(b, "SUM", terms, [axis], keep=False, out=out)


@lowers("Gemm")
def gemm(b: Lowering, node: Node) -> None:
    """``alpha * op(A) @ op(B) + beta * C``."""
    attrs = attributes(node, alpha=1.0, beta=1.0, transA=0, transB=0)
    x, y, out = node.input(0), node.input(1), node.outputs[0]
    integer = not b.is_float(x)
    if integer:
        x = b.permute(x, [1, 0]) if attrs["transA"] else x
        y = b.permute(y, [1, 0]) if attrs["transB"] else y
    added = node.input(2) if node.has_input(2) and attrs["beta"] != 0 else None
    alpha, beta = float(attrs["alpha"]), float(attrs["beta"])
    last = out if alpha == 1 and added is None else None
    if integer:
        if alpha != int(alpha) or beta != int(beta):
            msg = f"alpha {alpha} or beta {beta} with integer operands"
            raise Unsupported(msg)
        result = integer_matmul(b, x, y, last)
    else:
        result = emit.matmul(b, x, y, last, trans_x=bool(attrs["transA"]), trans_y=bool(attrs["transB"]))
    if alpha != 1:
        result = b.binary("MUL", result, emit.scalar_like(b, x, alpha), out if added is None else None)
    if added is not None:
        if beta != 1:
            added = b.binary("MUL", added, emit.scalar_like(b, x, beta))
        b.binary("ADD", result, added, out)
