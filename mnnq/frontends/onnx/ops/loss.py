"""Classification losses: NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss."""

from __future__ import annotations

from typing import Any

import numpy as np

from mnnq.frontends.onnx import emit
from mnnq.frontends.onnx.emit import attributes
from mnnq.frontends.onnx.lowering import Lowering, Unsupported
from mnnq.frontends.onnx.registry import lowers
from mnnq.ir.graph import Node

_ATTRS: dict[str, Any] = {"ignore_index": None, "reduction": "mean"}


@lowers("NegativeLogLikelihoodLoss")
def negative_log_likelihood(b: Lowering, node: Node) -> None:
    """``-weight[t] * x[n, t, ...]`` for target ``t = target[n, ...]``, then the reduction."""
    attrs = attributes(node, **_ATTRS)
    _loss(b, node.input(0), node.input(1), node.input(2), attrs, node.outputs[0])


@lowers("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy(b: Lowering, node: Node) -> None:
    """The negative log likelihood of the log softmax over axis 1, which is the second output."""
    attrs = attributes(node, **_ATTRS)
    x = node.input(0)
    shifted = b.binary("SUB", x, emit.reduce(b, "MAXIMUM", x, [1]))
    total = emit.reduce(b, "SUM", b.unary("EXP", shifted), [1])
    out = node.outputs[1] if node.has_output(1) else None
    log_prob = b.binary("SUB", shifted, b.unary("LOG", total), out)
    _loss(b, log_prob, node.input(1), node.input(2), attrs, node.outputs[0])


def _loss(b: Lowering, x: str, target: str, weight: str, attrs: dict[str, Any], out: str) -> None:
    """Loss over log probabilities ``[N, C, ...]`` and targets ``[N, ...]``."""
    reduction = attrs["reduction"]
    if reduction not in ("none", "sum", "mean"):
        msg = f"reduction {reduction!r}"
        raise Unsupported(msg)
    kept: str | None = None
    if attrs["ignore_index"] is not None:
        ignored = emit.compare(b, "EQUAL", target, b.const(np.int32(attrs["ignore_index"])))
        kept = emit.logical_not(b, ignored)
        # Ignored targets need not be classes: look up class 0 for them and weigh it with 0.
        target = b.binary("MUL", target, kept)
    index = emit.unsqueeze(b, target, [1])
    info = emit.with_shape(b, x, b.shape(index))
    picked = b.emit("GatherElements", [x, index, b.const(np.int32(1))], info=info)
    loss = b.unary("NEG", emit.squeeze(b, picked, [1]))
    factor: str | None = None
    if weight:
        info = emit.with_shape(b, weight, b.shape(target))
        inputs = [weight, target, b.const(np.int32(0))]
        factor = b.emit("GatherV2", inputs, param_type="GatherV2", info=info)
    if kept is not None:
        mask = b.cast(kept, "DT_FLOAT")
        factor = mask if factor is None else b.binary("MUL", factor, mask)
    axes = list(range(b.rank(x) - 1))
    if reduction == "mean" and factor is not None:
        weighed = emit.reduce(b, "SUM", b.binary("MUL", loss, factor), axes, keep=False)
        b.binary("REALDIV", weighed, emit.reduce(b, "SUM", factor, axes, keep=False), out)
        return
    if factor is not None:
        loss = b.binary("MUL", loss, factor, out if reduction == "none" else None)
    if reduction != "none":
        emit.reduce(b, "SUM" if reduction == "sum" else "MEAN", loss, axes, keep=False, out=out)
    elif factor is None:
        emit.rename(b, loss, out)
