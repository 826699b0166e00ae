"""ReLU and ReLU6 behind a convolution or a binary operator become its flags."""

from __future__ import annotations

from collections.abc import Mapping

from mnnq.ir.model import Model, Op, SubGraph
from mnnq.passes.dead_ops import bodies

_CONVOLUTIONS = frozenset({"Convolution", "ConvolutionDepthwise", "Deconvolution", "DeconvolutionDepthwise"})

#: ``BinaryOp.activationType`` of ReLU.
_BINARY_RELU = 1

#: Binary operators whose result is float when their inputs are.
_ARITHMETIC = frozenset({"ADD", "SUB", "MUL", "REALDIV", "MAXIMUM", "MINIMUM"})


def fuse_activation(model: Model) -> int:
    """Rewrite in place; return the number of activations fused.

    Before: ``Convolution -> ReLU(slope 0)`` or ``ReLU6(0, 6)``, ``BinaryOp -> ReLU(slope 0)``; the activation is the only
    reader and the value between is no output. After: one operator that keeps its own name and produces the
    activation's tensor.
    """
    return sum(_fuse(body, model) for body in bodies(model))


def _fuse(body: Model | SubGraph, model: Model) -> int:
    uses: dict[str, int] = {}
    producers: dict[str, Op] = {}
    for op in body.ops:
        for name in op.inputs:
            uses[name] = uses.get(name, 0) + 1
        for name in op.outputs:
            producers[name] = op
    outputs = set(body.outputs)
    dead: set[int] = set()
    for op in body.ops:
        kind = _activation(op)
        source = producers.get(op.inputs[0]) if kind else None
        if kind is None or source is None:
            continue
        between = op.inputs[0]
        if uses[between] != 1 or between in outputs or between in model.tensor_quant:
            continue
        if not _set(source, kind):
            continue
        source.outputs = [op.outputs[0]]
        producers[op.outputs[0]] = source
        dead.add(id(op))
    body.ops = [op for op in body.ops if id(op) not in dead]
    return len(dead)


def _activation(op: Op) -> str | None:
    if op.type == "ReLU" and float(op.params.get("slope", 0.0)) == 0.0:
        return "relu"
    bounds = (float(op.params.get("minValue", 0.0)), float(op.params.get("maxValue", 6.0)))
    return "relu6" if op.type == "ReLU6" and bounds == (0.0, 6.0) else None


def _set(source: Op, kind: str) -> bool:
    """Set the flag on an operator that has none yet; whether that was possible."""
    if source.type in _CONVOLUTIONS and source.param_type == "Convolution2D" and len(source.outputs) == 1:
        common = source.params.get("common")
        if not isinstance(common, dict) or common.get("relu") or common.get("relu6"):
            return False
        source.params = {**source.params, "common": {**common, kind: True}}
        return True
    if source.type == "BinaryOp" and kind == "relu" and _plain_float(source.params):
        source.params = {**source.params, "activationType": _BINARY_RELU}
        return True
    return False


def _plain_float(params: Mapping[str, object]) -> bool:
    floating = params.get("T", "DT_FLOAT") == "DT_FLOAT"
    return floating and params.get("opType") in _ARITHMETIC and not params.get("activationType")
