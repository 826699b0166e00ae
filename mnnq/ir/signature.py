"""What a model takes and gives in the terms of its source: names, element types, shapes with symbols.

Inside MNN every integer tensor is INT32 and every float FLOAT, so a `.mnn` file alone cannot say that an input
was int64 or that two axes share a symbol. Files of mnnq carry it in ``extraInfo.buffer``, where MNN keeps
metadata: a table ``Extra`` (type "Meta") whose attribute `KEY` holds JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mnnq.ir.graph import Dim, Graph

#: Attribute that holds the signature.
KEY = "mnnq.signature"


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Attributes
    ----------
    dtype
        numpy (or ml_dtypes) name of the element type in the source, e.g. ``"int64"``; None when unknown.
    shape
        One entry per axis: an int, a symbol or None; None when the rank is unknown.
    """

    name: str
    dtype: str | None
    shape: tuple[Dim, ...] | None


@dataclass(frozen=True)
class Signature:
    """Inputs, outputs and metadata of a model.

    Attributes
    ----------
    metadata
        Free text by key (ONNX ``metadata_props``).
    """

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph) -> Signature:
        """The signature of a source graph (before passes change types)."""
        return cls(_specs(graph, graph.inputs), _specs(graph, graph.outputs), dict(graph.metadata))

    def to_extra(self) -> dict[str, Any]:
        """Fields of the ``Extra`` table."""
        record = {
            side: [{"name": s.name, "dtype": s.dtype, "shape": s.shape} for s in specs]
            for side, specs in (("inputs", self.inputs), ("outputs", self.outputs))
        }
        attrs = [{"key": key, "s": value} for key, value in self.metadata.items() if key != KEY]
        attrs.append({"key": KEY, "s": json.dumps(record, separators=(",", ":"))})
        return {"type": "Meta", "engine": "MNN", "attr": attrs}

    @classmethod
    def from_extra(cls, extra: Mapping[str, Any]) -> Signature | None:
        """Read `to_extra` back; None when the table holds no (valid) signature."""
        texts = {attr["key"]: attr["s"] for attr in extra.get("attr", ()) if "key" in attr and "s" in attr}
        try:
            record = json.loads(texts.pop(KEY))
            inputs, outputs = (
                tuple(
                    TensorSpec(str(s["name"]), _dtype(s["dtype"]), _shape(s["shape"])) for s in record[side]
                )
                for side in ("inputs", "outputs")
            )
        except (KeyError, TypeError, ValueError):
            return None
        return cls(inputs, outputs, texts)


def _specs(graph: Graph, names: Iterable[str]) -> tuple[TensorSpec, ...]:
    infos = ((name, graph.info(name)) for name in names)
    return tuple(
        TensorSpec(name, i.dtype.name if i.dtype is not None else None, i.shape) for name, i in infos
    )


def _dtype(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        msg = f"element type {value!r}"
        raise TypeError(msg)
    if value not in (None, "bfloat16"):
        np.dtype(value)
    return value


def _shape(value: object) -> tuple[Dim, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(d is None or isinstance(d, (int, str)) for d in value):
        msg = f"shape {value!r}"
        raise TypeError(msg)
    return tuple(value)
