"""A model as a `.mnn` file holds it: MNN operators with their parameter tables, tensors by name.

Parameters are plain dictionaries keyed by the field names of the wire schema (``schema/mnn.fbs``), with numpy
arrays for numeric vectors; `mnnq._native` reads and writes exactly this form, so an operator that mnnq does
not know still survives a round trip. Enumerations are their key strings (``"DT_FLOAT"``).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mnnq.ir.imported import ImportReport
from mnnq.ir.signature import Signature

#: Operators that carry `Convolution2D` weights.
WEIGHT_OPS = frozenset({"Convolution", "ConvolutionDepthwise", "Deconvolution", "DeconvolutionDepthwise"})


@dataclass(eq=False)
class Op:
    """One MNN operator.

    Attributes
    ----------
    type
        Key of the ``OpType`` enumeration, e.g. ``"Convolution"``.
    name
        Operator name: by MNN's custom the name of its original output tensor.
    inputs, outputs
        Tensor names; an absent optional input is the empty string.
    param_type
        Member of the ``OpParameter`` union that `params` is, or None for no parameter.
    params
        Fields of the parameter table. The float ``weight`` of a ``Convolution2D`` may be an array of any shape and
        strides, float32, float16 or bfloat16: the file holds its elements as float32 in C order.
    default_format
        ``defaultDimentionFormat`` of the operator (key of ``MNN_DATA_FORMAT``).
    """

    type: str
    name: str
    inputs: list[str]
    outputs: list[str]
    param_type: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    default_format: str = "NHWC"


@dataclass(eq=False)
class SubGraph:
    """Body of a control-flow operator; operators of it see only its own tensors."""

    name: str
    ops: list[Op] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    tensor_order: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Model:
    """A network ready to be quantized, written, or inspected.

    Attributes
    ----------
    ops
        Operators in execution order; graph inputs are ``Input`` operators, constants ``Const`` operators.
    outputs
        Names of the output tensors.
    subgraphs
        Bodies of ``While`` and ``If``, by name.
    tensor_quant
        ``TensorQuantInfo`` fields by tensor name (offline int8 models).
    tensor_order
        Tensor names in the order of the file the model was read from: some parameter tables hold tensor
        indices, so the order is kept when writing; new tensors follow.
    net
        The remaining fields of the root table (``sourceType``, ``bizCode``, ``mnn_uuid``, ``extraInfo`` ...).
    signature
        Inputs and outputs as the source has them; None for files of other tools.
    source
        File the model was read from, for messages.
    imported
        What became of the quantization of the source; None when it had none.
    """

    ops: list[Op] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    subgraphs: dict[str, SubGraph] = field(default_factory=dict)
    tensor_quant: dict[str, dict[str, Any]] = field(default_factory=dict)
    tensor_order: list[str] = field(default_factory=list)
    net: dict[str, Any] = field(default_factory=dict)
    signature: Signature | None = None
    source: Path | None = None
    imported: ImportReport | None = None

    @property
    def inputs(self) -> list[str]:
        """Names of the input tensors, in file order."""
        return [op.outputs[0] for op in self.ops if op.type == "Input"]

    def graphs(self) -> list[tuple[str, list[Op], list[str]]]:
        """The main graph, named "", and the subgraphs: name, operators, outputs."""
        subs = ((name, sub.ops, sub.outputs) for name, sub in self.subgraphs.items())
        return [("", self.ops, self.outputs), *subs]

    def all_ops(self) -> Iterator[tuple[str, Op]]:
        """Every operator with the name of its subgraph ("" for the main graph)."""
        for op in self.ops:
            yield "", op
        for name, graph in self.subgraphs.items():
            for op in graph.ops:
                yield name, op

    def weight_ops(self) -> Iterator[tuple[str, Op]]:
        """Operators that own convolution weights, with their subgraph's name."""
        for graph, op in self.all_ops():
            if op.type in WEIGHT_OPS and op.param_type == "Convolution2D":
                yield graph, op

    def copy(self) -> Model:
        """A copy whose operators can be edited; arrays are shared with this model and must not be written to."""
        return copy.copy(self)._with_own_ops()

    def _with_own_ops(self) -> Model:
        self.ops = [copy_op(op) for op in self.ops]
        self.outputs = list(self.outputs)
        self.subgraphs = {
            name: SubGraph(
                sub.name,
                [copy_op(op) for op in sub.ops],
                list(sub.inputs),
                list(sub.outputs),
                list(sub.tensor_order),
                dict(sub.extra),
            )
            for name, sub in self.subgraphs.items()
        }
        self.tensor_quant = {name: dict(info) for name, info in self.tensor_quant.items()}
        self.tensor_order = list(self.tensor_order)
        self.net = dict(self.net)
        return self

    def save(self, path: str | Path, *, external_weights: bool = False) -> int:
        """Write the model as a `.mnn` file and return the number of bytes written.

        Parameters
        ----------
        path
            Destination. It is replaced only after the new file is complete.
        external_weights
            Put the weights into ``<path>.weight`` (always done above 2 GiB).

        Raises
        ------
        FormatError
            The model cannot be stored.
        OSError
            The destination cannot be written; nothing is left behind.
        """
        from mnnq.writer.to_mnn import write_model

        return write_model(self, Path(path), external_weights=external_weights)


def copy_op(op: Op) -> Op:
    """Copy an operator and its parameter dictionaries; arrays are shared."""
    return Op(
        op.type,
        op.name,
        list(op.inputs),
        list(op.outputs),
        op.param_type,
        {key: _copy_param(value) for key, value in op.params.items()},
        op.default_format,
    )


def _copy_param(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy_param(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy_param(item) for item in value]
    return value
