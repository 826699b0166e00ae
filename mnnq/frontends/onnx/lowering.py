"""From the graph with ONNX semantics to MNN operators.

Inside the MNN graph every integer and boolean tensor is INT32 and every floating tensor FLOAT, whatever the
ONNX type: the real runtime computes little else. Constants beyond 32 bits become +-2**30, MNN's own
convention, so that "to the end" sentinels survive additions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.errors import UnsupportedError
from mnnq.frontends.onnx import registry
from mnnq.ir.graph import Dim, Graph, Node, ValueInfo
from mnnq.ir.model import WEIGHT_OPS, Model, Op, SubGraph

#: What integer constants beyond 32 bits become (MNN clamps 64-bit values so).
INT_LIMIT = 1 << 30

#: Suffix of the tensor that a convolution inside a chain of operators makes; no part of the operator's name.
INNER = "__conv"


class Unsupported(Exception):
    """Raised by a lowering for a node that it cannot express exactly; the text says what is missing."""


def is_float(dtype: np.dtype[Any] | None) -> bool:
    """Whether a source type becomes FLOAT (the ml_dtypes floats included)."""
    return dtype is not None and (dtype.kind == "f" or dtype.name.startswith(("bfloat", "float")))


def mnn_type(dtype: np.dtype[Any] | None) -> str:
    """``DataType`` key of a tensor inside the MNN graph: DT_FLOAT or DT_INT32."""
    return "DT_FLOAT" if dtype is None or is_float(dtype) else "DT_INT32"


def blob(array: npt.NDArray[Any]) -> dict[str, Any]:
    """Parameters of a constant: a ``Blob`` with the array in MNN's types, NCHW order."""
    if is_float(array.dtype):
        params: dict[str, Any] = {
            "dataType": "DT_FLOAT",
            "float32s": _flat(array.astype(np.float32, copy=False)),
        }
    elif array.dtype.kind in "iub":
        params = {"dataType": "DT_INT32", "int32s": _flat(_int32(array))}
    else:
        msg = f"constant of type {array.dtype}"
        raise Unsupported(msg)
    params["dataFormat"] = "NCHW"
    if array.ndim:
        params["dims"] = np.asarray(array.shape, dtype=np.int32)
    return params


def _int32(array: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Integers or bools as int32; what does not fit becomes +-`INT_LIMIT`."""
    if array.dtype.kind == "b" or np.can_cast(array.dtype, np.int32):
        return array.astype(np.int32)
    bounds = np.iinfo(np.int32)
    fits = (array >= bounds.min) & (array <= bounds.max)
    clamped = np.clip(array, -INT_LIMIT if array.dtype.kind == "i" else 0, INT_LIMIT)
    return np.where(fits, array, clamped).astype(np.int32)


def _flat(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(array).reshape(-1)


def broadcast_dims(*shapes: tuple[Dim, ...] | None) -> tuple[Dim, ...] | None:
    """Shape after numpy broadcasting, as far as it is known."""
    if any(shape is None for shape in shapes):
        return None
    known = [shape for shape in shapes if shape is not None]
    rank = max((len(shape) for shape in known), default=0)
    result: list[Dim] = []
    for axis in range(-rank, 0):
        column = [shape[axis] for shape in known if len(shape) >= -axis]
        others = [d for d in column if d != 1]
        if not others:
            result.append(1)
            continue
        numbers = [d for d in others if isinstance(d, int)]
        same = others[0] if all(d == others[0] for d in others) else None
        result.append(numbers[0] if numbers else same)
    return tuple(result)


class Lowering:
    """Builds the MNN operators of one graph, node by node.

    Lowerings call `emit` (or a helper over it) and end by producing ``node.outputs``. Names of source values
    are tensor names of the result; constants become ``Const`` operators when first used.
    """

    def __init__(self, graph: Graph, parent: Lowering | None = None) -> None:
        self.graph = graph
        self.parent = parent
        self.ops: list[Op] = []
        self.subgraphs: dict[str, SubGraph] = {} if parent is None else parent.subgraphs
        self._produced: set[str] = set()
        self._infos: dict[str, ValueInfo] = {}
        self._names: set[str] = graph._names()
        self._const_cache: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._made: dict[tuple[Any, ...], str] = {}
        self._arrays: dict[str, npt.NDArray[Any]] = {}

    # -- what is known of values

    def info(self, name: str) -> ValueInfo:
        """Type and shape of a source value or of a tensor made here; captured values are looked up outside."""
        found, own = self.graph.info(name), self._infos.get(name)
        if own is not None:
            shape = found.shape if found.static_shape is not None or own.static_shape is None else own.shape
            found = ValueInfo(found.dtype or own.dtype, shape if shape is not None else own.shape)
        if self.parent is not None and found == ValueInfo():
            return self.parent.info(name)
        return found

    def shape(self, name: str) -> tuple[int | str | None, ...] | None:
        """Shape of a value; None when the rank is unknown."""
        return self.info(name).shape

    def static_shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a value when all of it is known."""
        return self.info(name).static_shape

    def rank(self, name: str) -> int:
        """Rank of a value; raises `Unsupported` when it is unknown."""
        shape = self.shape(name)
        if shape is None:
            msg = f"the rank of {name!r} is unknown and needed: give the input shapes"
            raise Unsupported(msg)
        return len(shape)

    def is_float(self, name: str) -> bool:
        """Whether a value is floating point (unknown types count as float)."""
        dtype = self.info(name).dtype
        return dtype is None or is_float(dtype)

    def constant(self, name: str) -> npt.NDArray[Any] | None:
        """Array of a constant, of the source or made here (or in an enclosing graph), else None."""
        array = self.graph.constant(name)
        if array is None:
            array = self._arrays.get(name)
        if array is None and self.parent is not None and name not in self._produced:
            return self.parent.constant(name)
        return array

    def need_constant(self, node: Node, index: int, what: str) -> npt.NDArray[Any]:
        """Array of input `index`; raises `Unsupported` when it is computed at run time."""
        array = self.constant(node.input(index))
        if array is None:
            msg = f"{what} must be constant"
            raise Unsupported(msg)
        return array

    def check_attributes(self, node: Node, *known: str) -> None:
        """Raise `Unsupported` when a node has attributes besides the `known` ones."""
        unknown = sorted(set(node.attrs) - set(known))
        if unknown:
            msg = f"attribute {', '.join(map(repr, unknown))} is not understood"
            raise Unsupported(msg)

    def note(self, name: str, info: ValueInfo) -> None:
        """State type and shape of a tensor made here; what the source graph says of its own values counts first."""
        self._infos[name] = info

    # -- subgraphs

    def nested(self, graph: Graph | None = None) -> Lowering:
        """A builder for the body of a control-flow operator: of a source `graph`, or to be filled by hand.

        Constants of the enclosing graphs are materialised inside the body; other values of theirs must be
        made inputs of it with `subgraph_input` under their own names.
        """
        return Lowering(graph if graph is not None else Graph("body", self.graph.opset), self)

    def subgraph_input(self, name: str, info: ValueInfo) -> str:
        """Declare an input of a body and return its tensor name."""
        shape = info.shape or ()
        dims = np.asarray([d if isinstance(d, int) else -1 for d in shape], np.int32)
        params: dict[str, Any] = {"dims": dims} if shape else {}
        return self.emit(
            "Input", [], name, param_type="Input", dtype=mnn_type(info.dtype), dformat="NCHW", info=info, **params
        )  # fmt: skip

    def add_subgraph(
        self,
        stem: str,
        body: Lowering,
        inputs: Sequence[str],
        outputs: Sequence[str],
        captured: Sequence[str] = (),
    ) -> str:
        """Register the operators of `body` as a subgraph and return its name.

        Every output gets a tensor of its own: MNN's control flow pairs body outputs with operator outputs by
        position, and an output that is an input or is listed twice loses its value. `captured` inputs alone
        are passed through as they are.
        """
        own: list[str] = []
        for name in outputs:
            body.materialise(name)
            again = name in own or (name in inputs and name not in captured)
            own.append(body.identity(name, body.fresh(f"{name}__out")) if again else name)
        unique, serial = stem, 0
        while unique in self.subgraphs:
            serial += 1
            unique = f"{stem}__{serial}"
        self.subgraphs[unique] = SubGraph(unique, body.ops, list(inputs), own)
        return unique

    # -- building

    def once(self, key: tuple[Any, ...], make: Callable[[], str]) -> str:
        """The tensor that `make` emits, emitted the first time that `key` is asked for."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def fresh(self, stem: str) -> str:
        """A tensor name not yet in use: `stem` itself when free."""
        name, serial = stem, 0
        while name in self._names:
            serial += 1
            name = f"{stem}__{serial}"
        self._names.add(name)
        return name

    def const(self, value: npt.ArrayLike, stem: str = "const", dtype: npt.DTypeLike | None = None) -> str:
        """Emit a ``Const`` (equal small constants are shared) and return its tensor name.

        Python ints become INT32, floats FLOAT.
        """
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 64 else None
        if key is not None and key in self._const_cache:
            return self._const_cache[key]
        name = self.fresh(stem)
        self._add_const(name, array)
        if key is not None:
            self._const_cache[key] = name
        return name

    def emit_const(self, array: npt.NDArray[Any], out: str) -> str:
        """Produce `out` as a ``Const``."""
        self._add_const(out, array)
        return out

    def emit(
        self,
        op_type: str,
        inputs: Sequence[str],
        out: str | None = None,
        *,
        name: str | None = None,
        param_type: str | None = None,
        info: ValueInfo | None = None,
        default_format: str = "NHWC",
        **params: Any,
    ) -> str:
        """Append an operator with one output and return the output's name.

        Parameters
        ----------
        op_type
            Key of MNN's ``OpType``.
        inputs
            Tensor names; constants of the graph are materialised.
        out
            Name of the output; None makes one up from the operator type.
        name
            Operator name, `out` by default (MNN's custom).
        param_type, params
            Union member and fields of its table.
        info
            Type and shape of a made-up output, for later `info` queries.
        """
        return self.emit_many(
            op_type,
            inputs,
            [out if out is not None else self.fresh(op_type)],
            name=name,
            param_type=param_type,
            infos=[info],
            default_format=default_format,
            **params,
        )[0]

    def emit_many(
        self,
        op_type: str,
        inputs: Sequence[str],
        outs: Sequence[str],
        *,
        name: str | None = None,
        param_type: str | None = None,
        infos: Sequence[ValueInfo | None] = (),
        default_format: str = "NHWC",
        **params: Any,
    ) -> list[str]:
        """`emit` for operators with several outputs."""
        for tensor in inputs:
            self.materialise(tensor)
        for out, info in zip(outs, infos, strict=False):
            if info is not None:
                self._infos[out] = info
        self.ops.append(
            Op(op_type, name or outs[0], list(inputs), list(outs), param_type, params, default_format)
        )
        self._names.update(outs)
        self._produced.update(outs)
        return list(outs)

    def materialise(self, name: str) -> None:
        """Emit the ``Const`` of a graph constant once, before its first use."""
        if not name or name in self._produced:
            return
        array = self.constant(name)
        if array is not None:
            self._add_const(name, array)

    def binary(self, kind: str, a: str, b: str, out: str | None = None) -> str:
        """``BinaryOp`` with numpy broadcasting; `kind` is a key of ``BinaryOpOperation``."""
        dtype = self.info(a).dtype
        return self.emit(
            "BinaryOp", [a, b], out, param_type="BinaryOp", opType=kind, T=mnn_type(dtype),
            info=ValueInfo(dtype, broadcast_dims(self.shape(a), self.shape(b))),
        )  # fmt: skip

    def unary(self, kind: str, x: str, out: str | None = None) -> str:
        """``UnaryOp``; `kind` is a key of ``UnaryOpOperation``."""
        info = self.info(x)
        return self.emit(
            "UnaryOp", [x], out, param_type="UnaryOp", opType=kind, T=mnn_type(info.dtype), info=info
        )

    def cast(self, x: str, to: str, out: str | None = None) -> str:
        """``Cast`` to a ``DataType`` key; float to int truncates."""
        dtype = np.dtype(np.float32 if to == "DT_FLOAT" else np.int32)
        return self.emit(
            "Cast", [x], out, param_type="CastParam", dstT=to, srcT="DT_VARIANT",
            info=ValueInfo(dtype, self.shape(x)),
        )  # fmt: skip

    def reshape(self, x: str, dims: Sequence[int] | str, out: str | None = None) -> str:
        """``Reshape`` to constant dims (0 copies, -1 infers) or to a shape tensor."""
        if isinstance(dims, str):
            return self.emit("Reshape", [x, dims], out, param_type="Reshape", dimType="NCHW")
        shape = tuple(d if d > 0 else None for d in dims)
        target = self.const(list(dims), "shape", np.int32)
        info = ValueInfo(self.info(x).dtype, shape)
        return self.emit("Reshape", [x, target], out, param_type="Reshape", dimType="NCHW", info=info)

    def permute(self, x: str, perm: Sequence[int], out: str | None = None) -> str:
        """``Permute`` (numpy.transpose)."""
        shape = self.shape(x)
        moved = None if shape is None else tuple(shape[p] for p in perm)
        return self.emit(
            "Permute", [x], out, param_type="Permute", dims=np.asarray(perm, np.int32),
            info=ValueInfo(self.info(x).dtype, moved),
        )  # fmt: skip

    def identity(self, x: str, out: str) -> str:
        """Give a tensor a second name (a reshape to its own shape; MNN drops plain identities at outputs)."""
        return self.emit("Identity", [x], out, info=self.info(x))

    def adopt(self, old: str, new: str) -> None:
        """Tell the builder that a tensor which nothing reads yet is now called `new`."""
        self._produced.discard(old)
        self._produced.add(new)
        self._names.add(new)
        info = self._infos.pop(old, None)
        if info is not None:
            self._infos[new] = info

    def _add_const(self, name: str, array: npt.NDArray[Any]) -> None:
        self.ops.append(Op("Const", name, [], [name], "Blob", blob(array)))
        self._names.add(name)
        self._produced.add(name)
        self._infos[name] = ValueInfo(array.dtype, array.shape)
        self._arrays[name] = array


def lower(graph: Graph) -> Model:
    """Lower a normalised graph to an MNN model (layout conversions are a later pass).

    Raises
    ------
    UnsupportedError
        Names every operator and attribute that cannot be expressed, with node names.
    """
    builder = Lowering(graph)
    for name in graph.inputs:
        _add_input(builder, name)
    problems = lower_nodes(builder, graph.nodes)
    if problems:
        raise UnsupportedError(problems=problems)
    outputs = [_output(builder, name) for name in graph.outputs]
    return Model(ops=builder.ops, outputs=outputs, subgraphs=builder.subgraphs, net={"sourceType": "ONNX"})


def lower_nodes(builder: Lowering, nodes: Sequence[Node]) -> list[str]:
    """Lower nodes in order and return one message per node that is not supported."""
    problems = []
    for node in nodes:
        function = registry.find(node.op_type, node.domain)
        kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        if function is None:
            problems.append(f"{kind} (node {node.label!r}): operator not supported")
            continue
        start = len(builder.ops)
        try:
            if not _without_elements(builder, node):
                function(builder, node)
        except Unsupported as reason:
            problems.append(f"{kind} (node {node.label!r}): {reason}")
        _name_after_source(builder.ops[start:], node)
    return problems


def _without_elements(builder: Lowering, node: Node) -> bool:
    """Produce outputs that are all known to be empty as constants; MNN's operators compute no empty tensors."""
    outs = [name for name in node.outputs if name]
    shapes = [builder.static_shape(name) for name in outs]
    types = [builder.info(name).dtype for name in outs]
    if not outs or any(node.subgraphs()) or any(shape is None or 0 not in shape for shape in shapes):
        return False
    if any(dtype is None for dtype in types):
        return False
    if node.op_type == "Reshape" and 0 not in (builder.static_shape(node.inputs[0]) or ()):
        return False  # elements do not vanish
    for out, shape, dtype in zip(outs, shapes, types, strict=True):
        assert shape is not None
        builder.emit_const(np.zeros(shape, np.float32 if is_float(dtype) else np.int32), out)
    return True


def _name_after_source(ops: Sequence[Op], node: Node) -> None:
    """Name operators with weights after the value of their source node: tools select layers by this name."""
    out = node.outputs[0]
    for op in ops:
        if out and op.type in WEIGHT_OPS and op.name.startswith(out):
            op.name = (node.result or out) + op.name.removeprefix(out).removeprefix(INNER)


def _add_input(builder: Lowering, name: str) -> None:
    info = builder.graph.info(name)
    if info.shape is None:
        msg = f"graph input {name!r} has no shape: give one with --input-shape {name}=..."
        raise UnsupportedError(problems=[msg])
    dims = np.asarray([d if isinstance(d, int) else -1 for d in info.shape], np.int32)
    builder.emit(
        "Input",
        [],
        name,
        param_type="Input",
        dims=dims,
        dtype=mnn_type(info.dtype),
        dformat="NCHW",
        info=info,
    )


def _output(builder: Lowering, name: str) -> str:
    """Make sure that an operator produces the output under its own name."""
    builder.materialise(name)
    return name
