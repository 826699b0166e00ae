"""What is in a model: inputs, operators, how each layer's weights are stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnnq import _native
from mnnq.files import is_mnn
from mnnq.ir.model import Model, Op
from mnnq.quantization.stored import Storage, describe
from mnnq.writer.to_mnn import to_bytes


@dataclass(frozen=True)
class PortInfo:
    """An input or output of a model; `shape` and `dtype` are None when the file does not say."""

    name: str
    shape: tuple[int | None, ...] | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class WeightInfo:
    """How one layer holds its weights.

    Attributes
    ----------
    storage
        ``float``, ``fp16``, ``codes``, ``sparse float``, ``old int8``, ``input`` (computed at run time) or
        ``const`` (a constant that is read as a tensor).
    shape
        Rows and weights per row; of a constant, its dims.
    block
        Input channels that share a scale, None for one scale per output channel.
    int8
        The layer has activation scales: it computes in int8.
    """

    name: str
    op_type: str
    storage: str
    shape: tuple[int, ...]
    bits: int
    scheme: str | None
    block: int | None
    size: int
    int8: bool = False
    subgraph: str = ""

    @property
    def label(self) -> str:
        """Name with the subgraph in front."""
        return f"{self.subgraph}/{self.name}" if self.subgraph else self.name


@dataclass(frozen=True)
class ModelInfo:
    """Description of a model.

    Attributes
    ----------
    version
        Version of the converter that wrote the file, None when it does not say.
    source_type
        Framework that the model came from (``ONNX``, ``TENSORFLOW`` ...).
    ops
        Number of operators by type, those of subgraphs included.
    weights
        Layers and large constants, in order.
    file_size, external_size
        Bytes of the file and of its external weights; None when there is none.
    """

    path: str | None
    version: str | None
    source_type: str
    biz_code: str | None
    uuid: str | None
    inputs: tuple[PortInfo, ...]
    outputs: tuple[PortInfo, ...]
    ops: dict[str, int]
    subgraphs: tuple[str, ...]
    weights: tuple[WeightInfo, ...]
    int8_tensors: int
    file_size: int | None
    external_size: int | None

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights listed."""
        return sum(weight.size for weight in self.weights)

    def to_dict(self) -> dict[str, Any]:
        """Return the description as JSON can hold it."""
        return {**asdict(self), "weight_bytes": self.weight_bytes}


@dataclass(frozen=True)
class RunCost:
    """What one run of a model takes in mnnq's runtime, found by planning it.

    Attributes
    ----------
    inputs
        The shapes planned for.
    outputs
        The outputs; shapes and types are None where only running tells.
    multiply_adds
        Products summed by convolutions, matrix products, recurrent operators and attention; other operators are not
        counted.
    arena_bytes
        Memory for all intermediate tensors and scratch together.
    steps
        Kernels that run.
    complete
        False if further steps depend on values that only running gives; they are not counted then.
    """

    inputs: tuple[PortInfo, ...]
    outputs: tuple[PortInfo, ...]
    multiply_adds: int
    arena_bytes: int
    steps: int
    complete: bool

    @property
    def flops(self) -> int:
        """Floating-point operations: two per product that is summed."""
        return 2 * self.multiply_adds

    def to_dict(self) -> dict[str, Any]:
        """Return the cost as JSON can hold it."""
        return {**asdict(self), "flops": self.flops}


def run_cost(model: Model, input_shapes: Mapping[str, Sequence[int]] | None = None) -> RunCost:
    """Plan a model for one set of input shapes.

    Parameters
    ----------
    input_shapes
        Shapes of inputs by name. Lengths that vary are 1 where none is given.

    Raises
    ------
    UnsupportedError
        The runtime does not have an operator of the model.
    InputError
        There is no such input, or the shape is not one the model takes.
    ExecutionError
        An operator cannot take these shapes.
    """
    given = {name: [int(n) for n in shape] for name, shape in (input_shapes or {}).items()}
    source = model.source
    session = _native.NativeSession(source if source is not None and is_mnn(source) else to_bytes(model))
    plan = session.plan_info(list(given.items()))
    inputs = tuple(
        PortInfo(name, tuple(given.get(name) or [max(n, 1) for n in shape or []]), dtype)
        for name, dtype, shape in session.inputs()
    )
    outputs = tuple(
        PortInfo(name, None if shape is None else tuple(shape), dtype)
        for name, dtype, shape in plan["outputs"]
    )
    return RunCost(
        inputs, outputs, plan["multiply_adds"], plan["arena_bytes"], plan["steps"], plan["complete"]
    )


#: Constants of fewer elements are not listed as weights.
MIN_CONST_ELEMENTS = 1024

_ITEM_SIZE = {"float32s": 4, "int32s": 4, "int64s": 8, "uint8s": 1, "int8s": 1}


def inspect_model(model: Model) -> ModelInfo:
    """Describe a model.

    Raises
    ------
    FormatError
        Stored weights break the format.
    """
    source = model.source if model.source is not None and is_mnn(model.source) else None
    external = None if source is None else Path(f"{source}.weight")
    extra = model.net.get("extraInfo") or {}
    ops = Counter(str(op.type) for _, op in model.all_ops())
    weights = [info for graph, op in model.all_ops() if (info := _weight(graph, op)) is not None]
    return ModelInfo(
        path=None if model.source is None else str(model.source),
        version=extra.get("version"),
        source_type=str(model.net.get("sourceType", "CAFFE")),
        biz_code=model.net.get("bizCode"),
        uuid=model.net.get("mnn_uuid"),
        inputs=tuple(_input(op) for op in model.ops if op.type == "Input"),
        outputs=tuple(PortInfo(name) for name in model.outputs),
        ops=dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        subgraphs=tuple(model.subgraphs),
        weights=tuple(weights),
        int8_tensors=len(model.tensor_quant),
        file_size=source.stat().st_size if source is not None and source.exists() else None,
        external_size=external.stat().st_size if external is not None and external.exists() else None,
    )


def _input(op: Op) -> PortInfo:
    dims = op.params.get("dims")
    shape = None if dims is None else tuple(int(d) if d >= 0 else None for d in dims)
    dtype = str(op.params.get("dtype", "DT_FLOAT")).removeprefix("DT_").lower()
    return PortInfo(op.outputs[0], shape, dtype)


def _weight(subgraph: str, op: Op) -> WeightInfo | None:
    if op.param_type == "Convolution2D":
        stored = describe(op)
        int8 = stored.storage is Storage.OLD_INT8 or "symmetricQuan" in op.params
        return WeightInfo(
            name=op.name,
            op_type=str(op.type),
            storage=stored.storage.value,
            shape=stored.shape,
            bits=stored.bits,
            scheme=stored.scheme,
            block=stored.block,
            size=stored.size,
            int8=int8,
            subgraph=subgraph,
        )
    if op.type != "Const" or op.param_type != "Blob":
        return None
    return _const(subgraph, op)


def _const(subgraph: str, op: Op) -> WeightInfo | None:
    vector = next((key for key in _ITEM_SIZE if op.params.get(key) is not None), None)
    if vector is None:
        return None
    kind = str(op.params.get("dataType", "DT_FLOAT"))
    size = len(op.params[vector]) * _ITEM_SIZE[vector]
    bits = {"DT_HALF": 16, "DT_BFLOAT16": 16}.get(kind, 8 * _ITEM_SIZE[vector])
    if size * 8 // bits < MIN_CONST_ELEMENTS:
        return None
    dims = tuple(int(d) for d in np.asarray(op.params.get("dims", ())))
    return WeightInfo(op.name, "Const", "const", dims, bits, None, None, size, subgraph=subgraph)
