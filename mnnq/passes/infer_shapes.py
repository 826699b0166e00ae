"""Types and shapes of all values, and the contents of the integer tensors that shapes are computed with.

One sweep in topological order asks ONNX's inference for each node by itself, adds the rules of
`mnnq.passes.shape_rules` for dynamic axes and follows the contents of small tensors
(`mnnq.passes.shape_values`). What turns out to be a constant becomes one, and targets of Reshape, Expand,
Slice and Resize that depend on a dynamic axis only by copying it become constants too.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnx.shape_inference
from onnx import helper, numpy_helper

from mnnq.frontends.onnx.to_proto import node_proto, type_proto
from mnnq.ir.graph import Dim, Graph, Node, ValueInfo
from mnnq.ir.symbolic import Poly, symbol
from mnnq.passes import shape_values
from mnnq.passes.resolve_targets import resolve_target
from mnnq.passes.rewriting import all_graphs
from mnnq.passes.shape_rules import refine
from mnnq.passes.shape_values import Shape, Value

#: Contents of tensors up to this many elements are given to ONNX's inference.
_DATA_LIMIT = 64


def infer_shapes(graph: Graph) -> int:
    """Infer types and shapes in place; return how many nodes became constant or got constant targets."""
    sweep = Sweep(graph)
    sweep.run()
    return sweep.rewrite()


def forget_declared_shapes(graph: Graph) -> None:
    """Keep of the shapes that the file declares for inner values only what can be relied on.

    Exporters that trace leave the traced sizes on dynamic axes, and name every dynamic axis anew. When an
    input is dynamic only ranks are kept, otherwise only known sizes.
    """
    dynamic = any(graph.info(name).static_shape is None for name in graph.inputs)
    for part in all_graphs(graph):
        for name, info in part.values.items():
            if info.shape is not None and (part is not graph or name not in graph.inputs):
                kept = tuple(dim if isinstance(dim, int) and not dynamic else None for dim in info.shape)
                part.values[name] = ValueInfo(info.dtype, kept)


class Sweep:
    """What is known of the values of one graph; nested graphs see the enclosing one's."""

    def __init__(self, graph: Graph, outer: Sweep | None = None) -> None:
        self.graph = graph
        self.outer = outer
        self.parts: list[Sweep] = []
        self._values: dict[str, Value] = {}
        self._shapes: dict[str, Shape] = {}
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._polys: dict[str, Poly] = {} if outer is None else outer._polys
        self._imports = [helper.make_opsetid("", graph.opset)]

    # -- what rules ask

    def value(self, name: str) -> Value | None:
        """Contents of a small tensor."""
        if name in self._values:
            return self._values[name]
        array = self.graph.constants.get(name)
        if array is not None:
            value = shape_values.from_array(array)
            if value is not None:
                self._values[name] = value
            return value
        local = name in self._dtypes or name in self._shapes
        return None if local or self.outer is None else self.outer.value(name)

    def shape(self, name: str) -> Shape | None:
        """Shape with every axis an int or a size."""
        array = self.graph.constants.get(name)
        if array is not None:
            return array.shape
        if name in self._shapes or name in self._dtypes or self.outer is None:
            return self._shapes.get(name)
        return self.outer.shape(name)

    def dtype(self, name: str) -> np.dtype[Any] | None:
        """Element type."""
        array = self.graph.constants.get(name)
        if array is not None:
            return array.dtype
        if name in self._shapes or name in self._dtypes or self.outer is None:
            return self._dtypes.get(name)
        return self.outer.dtype(name)

    # -- the sweep

    def run(self, given: dict[str, ValueInfo] | None = None) -> None:
        """Go through the graph; `given` states what is known of its inputs beyond their declarations."""
        self.parts.clear()
        for name in self.graph.inputs:
            self._record(name, (given or {}).get(name, self.graph.info(name)))
        for node in self.graph.nodes:
            self._visit(node)

    def _visit(self, node: Node) -> None:
        infos = self._nested(node) if any(True for _ in node.subgraphs()) else self._by_schema(node)
        shape = refine(node, self)
        for index, name in enumerate(node.outputs):
            if name:
                info = infos.get(name, ValueInfo())
                if index == 0 and shape is not None:
                    info = ValueInfo(info.dtype, self._merge(info.shape, shape))
                if node.domain == "mnnq" and info.dtype is None:
                    info = ValueInfo(self.dtype(node.inputs[0]), info.shape)
                self._record(name, info)
        values = shape_values.evaluate(node, self)
        for name, value in zip(node.outputs, values or [], strict=False):
            if name:
                self._values[name] = value

    def _record(self, name: str, info: ValueInfo) -> None:
        """Store what was found, completed by what was known before."""
        before = self.graph.values.get(name, ValueInfo())
        dtype, shape = info.dtype or before.dtype, info.shape
        if shape is None:
            shape = before.shape
        elif before.shape is not None and len(before.shape) == len(shape):
            # An unknown size takes the number that the file declares.
            shape = tuple(
                old if isinstance(old, int) and not isinstance(new, int) else new
                for new, old in zip(shape, before.shape, strict=True)
            )
        if dtype is not None:
            self._dtypes[name] = dtype
        if shape is not None:
            shape = tuple(f"?{name}.{i}" if dim is None else dim for i, dim in enumerate(shape))
            self._shapes[name] = tuple(self._size(dim) for dim in shape)
        self.graph.values[name] = ValueInfo(dtype, shape)

    def _size(self, dim: int | str) -> int | Poly:
        return dim if isinstance(dim, int) else self._polys.get(dim) or symbol(dim)

    def _dim(self, size: int | Poly | None) -> Dim:
        if not isinstance(size, Poly):
            return size
        name = str(size)
        self._polys[name] = size
        return name

    def _merge(self, found: tuple[Dim, ...] | None, shape: list[Any]) -> tuple[Dim, ...]:
        """ONNX's numbers, else this package's sizes, else ONNX's symbols."""
        dims = [self._dim(size) for size in shape]
        if found is None or len(found) != len(dims):
            return tuple(dims)
        return tuple(
            theirs if isinstance(theirs, int) or ours is None else ours
            for theirs, ours in zip(found, dims, strict=True)
        )

    def _info(self, name: str) -> ValueInfo:
        shape = self.shape(name)
        dims = None if shape is None else tuple(self._dim(size) for size in shape)
        return ValueInfo(self.dtype(name), dims)

    def _by_schema(self, node: Node) -> dict[str, ValueInfo]:
        schema = _schema(node.op_type, self.graph.opset, node.domain)
        if schema is None:
            return {}
        types, data = {}, {}
        for name in node.inputs:
            if name and name not in types:
                types[name] = type_proto(self._info(name))
                tensor = self._data(name)
                if tensor is not None:
                    data[name] = tensor
        try:
            found = onnx.shape_inference.infer_node_outputs(
                schema, node_proto(node), types, data, opset_imports=self._imports
            )
        except (
            onnx.shape_inference.InferenceError,
            onnx.checker.ValidationError,
            RuntimeError,
            ValueError,
            KeyError,
        ):
            return {}  # an invalid node or one that inference does not know; lowering decides
        return {name: _info_of(proto) for name, proto in found.items()}

    def _data(self, name: str) -> onnx.TensorProto | None:
        value, dtype = self.value(name), self.dtype(name)
        if value is None or dtype is None or value.size > _DATA_LIMIT:
            return None
        array = shape_values.to_array(value, dtype)
        return None if array is None else numpy_helper.from_array(array, name)

    # -- nested graphs

    def _nested(self, node: Node) -> dict[str, ValueInfo]:
        if node.op_type == "If":
            return self._branches(node)
        if node.op_type == "Loop":
            return self._loop(node)
        for sub in node.subgraphs():
            part = Sweep(sub, self)
            part.run()
            self.parts.append(part)
        return {}

    def _branches(self, node: Node) -> dict[str, ValueInfo]:
        parts = [Sweep(sub, self) for sub in node.subgraphs()]
        for part in parts:
            part.run()
        self.parts.extend(parts)
        found = {}
        for index, name in enumerate(node.outputs):
            infos = [part._info(part.graph.outputs[index]) for part in parts]
            found[name] = functools.reduce(_common, infos)
        return found

    def _loop(self, node: Node) -> dict[str, ValueInfo]:
        """Assume that carried values keep the shapes they start with; weaken that until it holds."""
        body = node.attrs["body"]
        carried = len(node.inputs) - 2
        infos = [self._info(name) for name in node.inputs[2:]]
        part = Sweep(body, self)
        for _ in range(4):
            given = {
                body.inputs[0]: ValueInfo(np.dtype(np.int64), ()),
                body.inputs[1]: ValueInfo(np.dtype(bool), ()),
                **dict(zip(body.inputs[2:], infos, strict=True)),
            }
            for name in (*body.inputs, *(out for inner in body.nodes for out in inner.outputs)):
                body.values[name] = ValueInfo(body.info(name).dtype)
            part = Sweep(body, self)
            part.run(given)
            after = [part._info(name) for name in body.outputs[1 : 1 + carried]]
            merged = [_common(x, y) for x, y in zip(infos, after, strict=True)]
            if merged == infos:
                break
            infos = merged
        else:
            infos = [ValueInfo(info.dtype) for info in infos]
        self.parts.append(part)
        results = list(infos)
        for name in body.outputs[1 + carried :]:
            info = part._info(name)
            results.append(ValueInfo(info.dtype, None if info.shape is None else (None, *info.shape)))
        return dict(zip(node.outputs, results, strict=False))

    # -- results

    def rewrite(self) -> int:
        """Make constants of what is known, in this graph and the nested ones."""
        changes = sum(part.rewrite() for part in self.parts)
        kept = []
        for node in self.graph.nodes:
            if self._fold(node):
                changes += 1
                continue
            kept.append(node)
            changes += resolve_target(self.graph, node, self)
        self.graph.nodes = kept
        return changes

    def _fold(self, node: Node) -> bool:
        arrays = {}
        for name in node.outputs:
            value, dtype = self._values.get(name), self._dtypes.get(name)
            array = None if value is None or dtype is None else shape_values.to_array(value, dtype)
            if array is None:
                return False
            arrays[name] = array
        self.graph.constants.update(arrays)
        return True


def _common(a: ValueInfo, b: ValueInfo) -> ValueInfo:
    """What holds for both."""
    dtype = a.dtype if a.dtype == b.dtype else None
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return ValueInfo(dtype)
    return ValueInfo(dtype, tuple(x if x == y else None for x, y in zip(a.shape, b.shape, strict=True)))


def _info_of(proto: onnx.TypeProto) -> ValueInfo:
    if not proto.HasField("tensor_type"):
        return ValueInfo()
    tensor = proto.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return ValueInfo(dtype)
    dims: list[Dim] = [
        int(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim
    ]
    return ValueInfo(dtype, tuple(dims))


@functools.lru_cache(maxsize=1024)
def _schema(op_type: str, opset: int, domain: str) -> onnx.defs.OpSchema | None:
    if domain:
        return None
    try:
        return onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        try:  # operators that passes introduce may be younger than the graph's operator set
            return onnx.defs.get_schema(op_type, onnx.defs.onnx_opset_version(), domain)
        except onnx.defs.SchemaError:
            return None
