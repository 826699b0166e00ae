"""Nodes whose inputs are all constant are computed now; an ``If`` whose condition is constant gives its branch."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx.reference
from onnx import helper

from mnnq.frontends.onnx.to_proto import node_proto
from mnnq.ir.graph import Graph, Node
from mnnq.passes.rewriting import int_list, rename_uses

_log = logging.getLogger(__name__)

#: A result may be this much bigger (bytes) than the constants it is made from, or take `WIDENING` times their size
#: (8-bit weights made float32); beyond, the file would swell.
GROWTH_LIMIT = 1 << 22
WIDENING = 4

#: Operators whose results are not determined by their inputs.
RANDOM_OPS = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)

_Array = npt.NDArray[Any]
_Constants = Mapping[str, _Array]


def fold_constants(graph: Graph, outer: _Constants | None = None) -> int:
    """Fold in place, nested graphs included; return how many nodes went away.

    Results that would swell the file (a large ``Expand`` of a small constant) stay computed, see
    `GROWTH_LIMIT`. Views of big constants are shared, not copied.

    Parameters
    ----------
    outer
        Constants of the enclosing graphs.
    """
    known = dict(outer or {})
    known.update(graph.constants)
    nodes: list[Node] = []
    count = 0
    for node in graph.nodes:
        branch = _chosen_branch(node, known)
        if branch is not None:
            nodes.extend(_inline(graph, node, branch))
            count += 1
            continue
        for sub in node.subgraphs():
            count += fold_constants(sub, known)
        results = _fold(graph, node, known)
        if results is None:
            nodes.append(node)
            continue
        count += 1
        for name, array in zip(node.outputs, results, strict=False):
            if name:
                graph.constants[name] = known[name] = array
    graph.nodes = nodes
    return count


def _fold(graph: Graph, node: Node, known: _Constants) -> list[_Array] | None:
    names = [name for name in node.inputs if name]
    if not names or node.domain or node.op_type in RANDOM_OPS or any(name not in known for name in names):
        return None
    if any(True for _ in node.subgraphs()):
        return None
    arrays = [known[name] if name else None for name in node.inputs]
    given = sum(known[name].nbytes for name in set(names))
    if _expected_bytes(graph, node, arrays) > max(given + GROWTH_LIMIT, WIDENING * given):
        return None
    fast = _FAST.get(node.op_type)
    try:
        if fast is not None:
            return [fast(node, *arrays)]
        return _reference(graph.opset, node, arrays)
    except Exception as error:  # the evaluator raises whatever numpy does; the node then stays computed
        _log.debug("%s %s is not folded: %s", node.op_type, node.label, error)
        return None


def _expected_bytes(graph: Graph, node: Node, arrays: list[_Array | None]) -> int:
    """Size of the result, from its shape or from the operands that state it; 0 when it cannot be told."""
    shape = graph.info(node.outputs[0]).static_shape
    if shape is not None:
        dtype = graph.info(node.outputs[0]).dtype
        return math.prod(shape) * (dtype.itemsize if dtype else 4)
    data, operand = arrays[0], arrays[1] if len(arrays) > 1 else None
    if node.op_type == "ConstantOfShape" and data is not None:
        return 4 * math.prod(int_list(data))
    if node.op_type in ("Expand", "Tile") and data is not None and operand is not None:
        total = math.prod(int_list(operand))
        return data.nbytes * total if node.op_type == "Tile" else max(data.nbytes, data.itemsize * total)
    return 0


def _reference(opset: int, node: Node, arrays: list[_Array | None]) -> list[_Array]:
    names = list(dict.fromkeys(name for name in node.inputs if name))
    inputs = [onnx.ValueInfoProto(name=name) for name in names]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.outputs if name]
    graph = helper.make_graph([node_proto(node)], "fold", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    feeds = {name: array for name, array in zip(node.inputs, arrays, strict=True) if name}
    with np.errstate(all="ignore"):
        found = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
    results = iter(found)
    arrays_out = [np.asarray(next(results)) if name else np.zeros(0) for name in node.outputs]
    if any(array.dtype == object for array in arrays_out):
        msg = "the result is not a tensor"
        raise TypeError(msg)
    return arrays_out


# -- operators on weights, without copies where numpy has views


def _transpose(node: Node, x: _Array) -> _Array:
    return np.transpose(x, node.attrs.get("perm"))


def _reshape(node: Node, x: _Array, target: _Array) -> _Array:
    dims = int_list(target)
    if not node.attrs.get("allowzero"):
        dims = [x.shape[i] if d == 0 else d for i, d in enumerate(dims)]
    return x.reshape(dims)


def _flatten(node: Node, x: _Array) -> _Array:
    axis = int(node.attrs.get("axis", 1))
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _unsqueeze(node: Node, x: _Array, axes: _Array) -> _Array:
    del node
    return np.expand_dims(x, tuple(int_list(axes)))


def _squeeze(node: Node, x: _Array, axes: _Array | None = None) -> _Array:
    del node
    return np.squeeze(x, None if axes is None else tuple(int_list(axes)))


def _concat(node: Node, *parts: _Array) -> _Array:
    return np.concatenate(parts, axis=int(node.attrs["axis"]))


def _slice(
    node: Node,
    x: _Array,
    starts: _Array,
    ends: _Array,
    axes: _Array | None = None,
    steps: _Array | None = None,
) -> _Array:
    del node
    first, last = int_list(starts), int_list(ends)
    where = list(range(len(first))) if axes is None else int_list(axes)
    stride = [1] * len(first) if steps is None else int_list(steps)
    cuts: list[slice] = [slice(None)] * x.ndim
    for start, stop, axis, step in zip(first, last, where, stride, strict=True):
        ended = None if step < 0 and stop < -x.shape[axis] else stop
        cuts[axis] = slice(start, ended, step)
    return x[tuple(cuts)]


def _cast(node: Node, x: _Array) -> _Array:
    dtype = helper.tensor_dtype_to_np_dtype(node.attrs["to"])
    if dtype.name not in _PLAIN_TYPES or x.dtype.name not in _PLAIN_TYPES:
        return _reference(23, node, [x])[0]
    with np.errstate(all="ignore"):
        return x.astype(dtype, copy=False)


_PLAIN_TYPES = frozenset(
    {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
    | {"float16", "float32", "float64"}
)

_FAST: dict[str, Callable[..., _Array]] = {
    "Cast": _cast,
    "Concat": _concat,
    "Flatten": _flatten,
    "Identity": lambda node, x: x,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


# -- constant conditions


def _chosen_branch(node: Node, known: _Constants) -> Graph | None:
    if node.op_type != "If" or node.domain or node.inputs[0] not in known:
        return None
    key = "then_branch" if bool(known[node.inputs[0]].reshape(-1)[0]) else "else_branch"
    branch: Graph = node.attrs[key]
    return branch


def _inline(graph: Graph, node: Node, branch: Graph) -> list[Node]:
    """The nodes of a branch, under names that are free in the enclosing graph."""
    taken = graph._names()
    own = [*branch.constants, *(name for inner in branch.nodes for name in inner.outputs if name)]
    names = {name: graph.fresh(name) for name in own if name in taken}
    for inner in branch.nodes:
        inner.outputs = [names.get(name, name) for name in inner.outputs]
    rename_uses(branch, names)
    results = [names.get(name, name) for name in branch.outputs]
    for name, array in branch.constants.items():
        graph.constants[names.get(name, name)] = array
    for name, info in branch.values.items():
        graph.values.setdefault(names.get(name, name), info)
    ends = [
        Node("Identity", [source], [out]) for source, out in zip(results, node.outputs, strict=False) if out
    ]
    return [*branch.nodes, *ends]
