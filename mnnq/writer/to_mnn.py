"""Writing a `Model`: tensor names become indices, the native codec does the rest."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mnnq import _native
from mnnq.errors import FormatError
from mnnq.ir.model import Model, Op, SubGraph

#: Version string of the format that the files follow (informational in the real runtime).
FORMAT_VERSION = "3.6.1"


def write_model(model: Model, path: Path, *, external_weights: bool = False) -> int:
    """Write `model` to `path`; see `Model.save`."""
    return _native.write_model(to_net(model), path, external=external_weights)


def to_bytes(model: Model) -> bytes:
    """Serialise `model` in memory."""
    return _native.model_to_bytes(to_net(model))


def to_net(model: Model) -> dict[str, Any]:
    """Build the fields of the root table ``Net``.

    Raises
    ------
    FormatError
        An operator reads a tensor that nothing produces, or two operators produce the same tensor.
    """
    index = _index(model.ops, model.tensor_order)
    for name in (*model.outputs, *model.tensor_quant):
        if name not in index:
            msg = (
                f"tensor {name!r} is named as an output or by quantization data, but no operator produces it"
            )
            raise FormatError(msg)
    net: dict[str, Any] = {
        "usage": "INFERENCE",
        "sourceType": "ONNX",
        "bizCode": "mnnq",
        "preferForwardType": "CPU",
        "extraInfo": {"version": FORMAT_VERSION},
        **model.net,
        "oplists": [_op(op, index) for op in model.ops],
        "tensorName": list(index),
        "outputName": list(model.outputs),
    }
    net.setdefault("mnn_uuid", _uuid(net))
    if model.signature is not None:
        content = _native.table_to_bytes("Extra", model.signature.to_extra())
        net["extraInfo"] = {**net["extraInfo"], "buffer": np.frombuffer(content, np.int8)}
    if model.subgraphs:
        net["subgraphs"] = [_subgraph(sub) for sub in model.subgraphs.values()]
    if model.tensor_quant:
        net["extraTensorDescribe"] = [
            {"index": index[name], "quantInfo": info} for name, info in model.tensor_quant.items()
        ]
    return net


def _index(ops: Iterable[Op], order: Iterable[str]) -> dict[str, int]:
    """Number the tensors: first in the given order, then in order of production."""
    index: dict[str, int] = {}
    for name in order:
        index.setdefault(name, len(index))
    produced: set[str] = set()
    for op in ops:
        for name in op.outputs:
            if name in produced:
                msg = f"tensor {name!r} is produced twice"
                raise FormatError(msg, node=op.name)
            produced.add(name)
            index.setdefault(name, len(index))
    return index


def _op(op: Op, index: dict[str, int]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "type": op.type,
        "name": op.name,
        "defaultDimentionFormat": op.default_format,
        "outputIndexes": np.asarray([index[name] for name in op.outputs], np.int32),
    }
    if op.inputs:
        fields["inputIndexes"] = np.asarray([_input(op, name, index) for name in op.inputs], np.int32)
    if op.param_type is not None:
        fields["main_type"] = op.param_type
        fields["main"] = _flat_weight(op.params) if op.param_type == "Convolution2D" else op.params
    return fields


def _flat_weight(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a convolution whose float weight is the flat float32 vector that the file holds.

    In a `Model` it may have any shape, strides and alignment, and be a half float: a transposed view of the source's tensor
    costs nothing, and most weights are quantized before they are written.
    """
    weight = params.get("weight")
    if not isinstance(weight, np.ndarray):
        return params
    return {**params, "weight": np.require(weight, np.float32, ["C", "A"]).reshape(-1)}


def _input(op: Op, name: str, index: dict[str, int]) -> int:
    if not name:
        return -1
    if name not in index:
        msg = f"input tensor {name!r} is produced by no operator"
        raise FormatError(msg, node=op.name)
    return index[name]


def _subgraph(sub: SubGraph) -> dict[str, Any]:
    index = _index(sub.ops, sub.tensor_order)
    return {
        "name": sub.name,
        **sub.extra,
        "inputs": np.asarray([index[name] for name in sub.inputs], np.int32),
        "outputs": np.asarray([index[name] for name in sub.outputs], np.int32),
        "tensors": list(index),
        "nodes": [_op(op, index) for op in sub.ops],
    }


def _uuid(net: dict[str, Any]) -> str:
    """Derive an identifier from the graph, so that the same conversion gives the same file."""
    names = "\n".join(net["tensorName"])
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"mnnq:{net['bizCode']}:{names}"))
