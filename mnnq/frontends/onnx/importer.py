"""Reading an ONNX file into the graph: types, shapes, functions, external data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner

from mnnq.errors import ConfigError, ModelError, UnsupportedError
from mnnq.frontends.onnx.proto_file import Payloads, open_model, to_array
from mnnq.ir.graph import Dim, Graph, Node, ValueInfo

_log = logging.getLogger(__name__)

#: Oldest version of the default domain whose operators are understood.
MIN_OPSET = 7

_DEFAULT_DOMAINS = ("", "ai.onnx")


def load_graph(
    source: str | Path | onnx.ModelProto, *, input_shapes: Mapping[str, Sequence[int]] | None = None
) -> Graph:
    """Read an ONNX model into a graph.

    Model-local functions are inlined, initializers become constants, external data is read from beside the file.

    Parameters
    ----------
    source
        Path of an ``.onnx`` file, or a loaded model (it is not modified).
    input_shapes
        Shapes that fix symbolic axes of graph inputs, by input name.

    Raises
    ------
    ModelError
        The file cannot be read or is not a valid ONNX model.
    UnsupportedError
        The model uses an opset that is too old.
    ConfigError
        `input_shapes` names an unknown input or contradicts the model.
    """
    payloads: Payloads = {}
    if isinstance(source, onnx.ModelProto):
        proto, base, origin = source, Path(), "<memory>"
    else:
        path = Path(source)
        proto, payloads = open_model(path)
        base, origin = path.parent, str(path)
    try:
        big = {proto.graph.initializer[i].name: view for i, view in payloads.items()}
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        opset = _default_opset(proto, origin)
        graph = _graph(proto.graph, opset, base, big)
        graph.metadata = {entry.key: entry.value for entry in proto.metadata_props}
    except (onnx.checker.ValidationError, ValueError, TypeError, KeyError) as error:
        msg = f"not a valid ONNX model: {error}"
        raise ModelError(msg, file=origin) from error
    except ModelError as error:
        error.file = error.file or origin
        raise
    if not graph.outputs:
        msg = "not a valid ONNX model: it has no outputs"
        raise ModelError(msg, file=origin)
    _fix_shapes(graph, input_shapes or {})
    return graph


def _default_opset(proto: onnx.ModelProto, origin: str) -> int:
    versions = [entry.version for entry in proto.opset_import if entry.domain in _DEFAULT_DOMAINS]
    if not versions:
        msg = "not a valid ONNX model: no version of the default operator set is imported"
        raise ModelError(msg, file=origin)
    version = max(versions)
    if version < MIN_OPSET:
        problem = (
            f"opset {version}: the oldest understood is {MIN_OPSET} (onnx.version_converter can raise it)"
        )
        raise UnsupportedError(problems=[problem], file=origin)
    return int(version)


def _graph(
    proto: onnx.GraphProto, opset: int, base: Path, big: Mapping[str, memoryview] | None = None
) -> Graph:
    graph = Graph(proto.name, opset)
    for tensor in proto.initializer:
        graph.constants[tensor.name] = to_array(tensor, base, (big or {}).get(tensor.name))
    for sparse in proto.sparse_initializer:
        graph.constants[sparse.values.name] = _dense(sparse, base)
    for value in proto.input:
        graph.values[value.name] = _value_info(value)
        if value.name not in graph.constants:
            graph.inputs.append(value.name)
    for value in (*proto.value_info, *proto.output):
        graph.values[value.name] = _value_info(value)
    graph.outputs = [value.name for value in proto.output]
    graph.nodes = [_node(node, opset, base) for node in proto.node]
    return graph


def _node(proto: onnx.NodeProto, opset: int, base: Path) -> Node:
    attrs = {attr.name: _attribute(attr, opset, base) for attr in proto.attribute}
    domain = "" if proto.domain in _DEFAULT_DOMAINS else proto.domain
    return Node(proto.op_type, list(proto.input), list(proto.output), attrs, proto.name, domain)


def _attribute(attr: onnx.AttributeProto, opset: int, base: Path) -> Any:
    kind = onnx.AttributeProto.AttributeType
    if attr.type == kind.GRAPH:
        return _graph(attr.g, opset, base)
    if attr.type == kind.TENSOR:
        return to_array(attr.t, base)
    if attr.type == kind.SPARSE_TENSOR:
        return _dense(attr.sparse_tensor, base)
    if attr.type == kind.GRAPHS:
        return [_graph(graph, opset, base) for graph in attr.graphs]
    value = onnx.helper.get_attribute_value(attr)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in value]
    return value


def _dense(sparse: onnx.SparseTensorProto, base: Path) -> npt.NDArray[Any]:
    values, indices = to_array(sparse.values, base), to_array(sparse.indices, base)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense


def _value_info(value: onnx.ValueInfoProto) -> ValueInfo:
    if not value.type.HasField("tensor_type"):
        return ValueInfo()
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return ValueInfo(dtype)
    return ValueInfo(dtype, tuple(_dim(dim) for dim in tensor.shape.dim))


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    return dim.dim_param or None


def _fix_shapes(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> None:
    """Apply user-given input shapes; a symbol fixed in one input is fixed everywhere."""
    symbols: dict[str, int] = {}
    for name, wanted in shapes.items():
        if name not in graph.inputs:
            known = ", ".join(graph.inputs)
            msg = f"--input-shape names {name!r}, which is no input of the model; inputs: {known}"
            raise ConfigError(msg)
        declared = graph.values[name].shape
        if declared is not None:
            _match(name, declared, wanted, symbols)
        graph.values[name] = ValueInfo(graph.values[name].dtype, tuple(int(d) for d in wanted))
    for name, info in list(graph.values.items()):
        if info.shape is None:
            continue
        if name in graph.inputs:
            fixed = tuple(symbols.get(d, d) if isinstance(d, str) else d for d in info.shape)
            graph.values[name] = ValueInfo(info.dtype, fixed)
        elif shapes:
            # Declared shapes of inner values may contradict the new ones; inference states them again.
            graph.values[name] = ValueInfo(info.dtype, tuple(None for _ in info.shape))


def _match(name: str, declared: Sequence[Dim], wanted: Sequence[int], symbols: dict[str, int]) -> None:
    if len(declared) != len(wanted):
        msg = f"--input-shape {name}: {len(wanted)} dimensions given, the model declares {list(declared)}"
        raise ConfigError(msg)
    for have, want in zip(declared, wanted, strict=True):
        if want <= 0:
            msg = f"--input-shape {name}: dimension {want} is not positive"
            raise ConfigError(msg)
        if isinstance(have, int) and have != want:
            msg = f"--input-shape {name}: {list(wanted)} contradicts the declared {list(declared)}"
            raise ConfigError(msg)
        if isinstance(have, str) and symbols.setdefault(have, want) != want:
            msg = f"--input-shape {name}: symbol {have!r} is given as {symbols[have]} and as {want}"
            raise ConfigError(msg)
