"""Reading a `.mnn` file into a `Model`: indices become tensor names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnnq import _native
from mnnq.errors import FormatError
from mnnq.ir.model import Model, Op, SubGraph
from mnnq.ir.signature import Signature

_GRAPH_FIELDS = frozenset({"oplists", "tensorName", "outputName", "subgraphs", "tensorNumber"})


def read_model(source: str | Path | bytes, *, external: str | Path | None = None) -> Model:
    """Read and verify a `.mnn` file.

    Parameters
    ----------
    source
        Path, or the bytes of a file.
    external
        File of external weights; by default ``<source>.weight``.

    Raises
    ------
    FormatError
        The file breaks the format, naming the field concerned.
    OSError
        The file cannot be read.
    """
    path = None if isinstance(source, bytes) else Path(source)
    fields = _native.read_model(
        source if isinstance(source, bytes) else Path(source),
        external=None if external is None else Path(external),
    )
    return from_net(fields, path)


def from_net(fields: dict[str, Any], path: Path | None = None) -> Model:
    """Build a `Model` from the fields of a root table."""
    names = _unique(fields["tensorName"])
    ops = [_op(op, names) for op in fields["oplists"]]
    described = fields.get("extraTensorDescribe", [])
    for entry in described:
        if not 0 <= entry["index"] < len(names):
            msg = f"tensor {entry['index']} of {len(names)} is described"
            raise FormatError(msg, file=str(path) if path else None, key="extraTensorDescribe.index")
    quant = {names[entry["index"]]: dict(entry["quantInfo"]) for entry in described if "quantInfo" in entry}
    net = {key: value for key, value in fields.items() if key not in _GRAPH_FIELDS}
    if all(set(entry) <= {"index", "quantInfo"} for entry in described):
        net.pop("extraTensorDescribe", None)
    outputs = list(fields.get("outputName") or _unconsumed(ops))
    missing = [name for name in outputs if name not in set(names)]
    if missing:
        msg = f"output {missing[0]!r} is no tensor of the model"
        raise FormatError(msg, file=str(path) if path else None, key="outputName")
    buffer = net.get("extraInfo", {}).get("buffer")
    return Model(
        ops=ops,
        outputs=outputs,
        subgraphs={sub["name"]: _subgraph(sub) for sub in fields.get("subgraphs", [])},
        tensor_quant=quant,
        tensor_order=names,
        net=net,
        signature=None if buffer is None else read_signature(buffer.tobytes()),
        source=path,
    )


def read_signature(content: bytes) -> Signature | None:
    """The signature in the content of ``extraInfo.buffer``; other tools keep other things there, or nothing."""
    try:
        return Signature.from_extra(_native.table_from_bytes("Extra", content))
    except FormatError:
        return None


def _op(fields: dict[str, Any], names: Sequence[str]) -> Op:
    return Op(
        type=fields["type"],
        name=fields.get("name", ""),
        inputs=[names[i] if i >= 0 else "" for i in fields.get("inputIndexes", ())],
        outputs=[names[i] for i in fields.get("outputIndexes", ())],
        param_type=fields.get("main_type"),
        params=fields.get("main", {}),
        default_format=fields["defaultDimentionFormat"],
    )


def _subgraph(fields: dict[str, Any]) -> SubGraph:
    names = _unique(fields["tensors"])
    known = {"name", "inputs", "outputs", "tensors", "nodes"}
    return SubGraph(
        name=fields["name"],
        ops=[_op(op, names) for op in fields["nodes"]],
        inputs=[names[i] for i in fields.get("inputs", ())],
        outputs=[names[i] for i in fields.get("outputs", ())],
        tensor_order=names,
        extra={key: value for key, value in fields.items() if key not in known},
    )


def _unique(names: Sequence[str]) -> list[str]:
    """Tensor names made distinct: indices are what the file counts by, names may repeat or be empty."""
    seen: set[str] = set()
    result = []
    for position, name in enumerate(names):
        unique = name if name and name not in seen else f"{name}#{position}"
        seen.add(unique)
        result.append(unique)
    return result


def _unconsumed(ops: Sequence[Op]) -> list[str]:
    """Outputs of a file that lists none: what is produced and never read."""
    read = {name for op in ops for name in op.inputs}
    return [name for op in ops for name in op.outputs if name not in read and op.type != "Input"]
