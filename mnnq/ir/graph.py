"""Editable graph with ONNX operator semantics: what frontends produce and passes rewrite.

Values are named by strings; an absent optional input or output is the empty string. Constants are numpy
arrays. Operators are those of the default ONNX domain, plus a few of domain ``mnnq`` that passes introduce
(`LINEAR`, `FAKE_QUANT`). The graph knows nothing of MNN.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

#: Domain of the operators that passes introduce.
MNNQ_DOMAIN = "mnnq"

#: ``Linear(x, weight[, bias])``: ``y[..., o] = sum_k x[..., k] * weight[k, o] + bias[o]`` with constant weight
#: and bias; attribute ``transposed`` = 1 says that the weight is stored ``[o, k]``. Shapes: x ``[..., K]``, y ``[..., O]``.
LINEAR = "Linear"

#: ``FakeQuant(x)``: ``(clamp(round(x / scale) + zero, low, high) - zero) * scale``, codes of a signed byte; attributes
#: ``scale`` (float), ``zero``, ``low``, ``high`` (ints). A quantization of the source that the result keeps.
FAKE_QUANT = "FakeQuant"

Dim = int | str | None


@dataclass(frozen=True)
class ValueInfo:
    """What is known of a value.

    Attributes
    ----------
    dtype
        Element type, or None when unknown. bfloat16 and other ONNX types use ``ml_dtypes``.
    shape
        None when even the rank is unknown; else one entry per axis: an int, a symbol (str) or None.
    """

    dtype: np.dtype[Any] | None = None
    shape: tuple[Dim, ...] | None = None

    @property
    def rank(self) -> int | None:
        """Number of axes, or None."""
        return None if self.shape is None else len(self.shape)

    @property
    def static_shape(self) -> tuple[int, ...] | None:
        """The shape when every axis is a known int, else None."""
        if self.shape is None:
            return None
        dims = tuple(d for d in self.shape if isinstance(d, int))
        return dims if len(dims) == len(self.shape) else None


@dataclass(eq=False)
class Node:
    """One operator application. Nodes compare by identity.

    Attributes
    ----------
    attrs
        Attribute values: int, float, str, lists of these, numpy arrays (tensors), `Graph` (subgraphs).
    result
        Value that the node computed in the source, when a pass has let it take over a later node's output;
        operators with weights are named after it, so that names do not depend on what was fused.
    """

    op_type: str
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    domain: str = ""
    result: str = ""

    def input(self, index: int) -> str:
        """Name of input `index`, empty when it is absent."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def has_input(self, index: int) -> bool:
        """Whether optional input `index` is given."""
        return self.input(index) != ""

    def has_output(self, index: int) -> bool:
        """Whether optional output `index` is wanted."""
        return index < len(self.outputs) and self.outputs[index] != ""

    @property
    def label(self) -> str:
        """How messages call this node: its name, or else its first output."""
        return self.name or next((o for o in self.outputs if o), "") or self.op_type

    def subgraphs(self) -> Iterator[Graph]:
        """Every graph held in an attribute."""
        for value in self.attrs.values():
            if isinstance(value, Graph):
                yield value


@dataclass(eq=False)
class Graph:
    """A graph of nodes in topological order.

    Attributes
    ----------
    opset
        Version of the default ONNX domain whose semantics the nodes have.
    inputs, outputs
        Names of graph inputs (constants excluded) and outputs, in source order.
    constants
        Values known when converting.
    values
        Types and shapes of values as far as they are known.
    metadata
        Free text of the source by key.
    """

    name: str
    opset: int
    nodes: list[Node] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    constants: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    values: dict[str, ValueInfo] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    _serial: int = 0

    def info(self, name: str) -> ValueInfo:
        """Type and shape of a value; constants always know theirs."""
        constant = self.constants.get(name)
        if constant is not None:
            return ValueInfo(constant.dtype, constant.shape)
        return self.values.get(name, ValueInfo())

    def constant(self, name: str) -> npt.NDArray[Any] | None:
        """The array of a constant value, else None."""
        return self.constants.get(name)

    def producers(self) -> dict[str, Node]:
        """Map from value to the node that computes it."""
        return {out: node for node in self.nodes for out in node.outputs if out}

    def consumers(self) -> dict[str, list[Node]]:
        """Map from value to the nodes that read it, subgraph captures included; one entry per use."""
        uses: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                if name:
                    uses.setdefault(name, []).append(node)
            for sub in node.subgraphs():
                for name in sub.captured():
                    uses.setdefault(name, []).append(node)
        return uses

    def captured(self) -> list[str]:
        """Names that this graph reads from an enclosing graph, each once, in order of first use."""
        known = set(self.inputs) | set(self.constants)
        found: dict[str, None] = {}
        for node in self.nodes:
            for name in node.inputs:
                if name and name not in known:
                    found.setdefault(name)
            for sub in node.subgraphs():
                for name in sub.captured():
                    if name not in known:
                        found.setdefault(name)
            known.update(node.outputs)
        for name in self.outputs:
            if name not in known:
                found.setdefault(name)
        return list(found)

    def fresh(self, stem: str) -> str:
        """A value name that is not in use, made from `stem`."""
        while True:
            self._serial += 1
            name = f"{stem}__{self._serial}"
            known = name in self.constants or name in self.values or name in self.inputs
            if not known and not any(name in node.outputs for node in self.nodes):
                return name

    def add_constant(self, stem: str, array: npt.NDArray[Any]) -> str:
        """Register a constant under a fresh name and return the name."""
        name = self.fresh(stem)
        self.constants[name] = np.asarray(array)  # arithmetic on rank 0 gives bare numbers
        return name

    def replace_uses(self, old: str, new: str) -> None:
        """Let every reader of `old` (graph outputs excluded) read `new`."""
        for node in self.nodes:
            node.inputs = [new if name == old else name for name in node.inputs]
            for sub in node.subgraphs():
                if old in sub.captured():
                    sub.replace_captured(old, new)

    def replace_captured(self, old: str, new: str) -> None:
        """`replace_uses` for a value of an enclosing graph."""
        self.replace_uses(old, new)
        self.outputs = [new if name == old else name for name in self.outputs]

    def remove(self, dead: Iterable[Node]) -> None:
        """Drop nodes by identity."""
        gone = {id(node) for node in dead}
        self.nodes = [node for node in self.nodes if id(node) not in gone]

    def _names(self) -> set[str]:
        names = set(self.constants) | set(self.values) | set(self.inputs)
        for node in self.nodes:
            names.update(node.outputs)
        return names
