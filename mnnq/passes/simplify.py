"""Small exact rewrites: what does nothing is removed, what is said twice is said once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
from onnx import helper

from mnnq.ir.graph import Graph, Node, ValueInfo
from mnnq.passes.fold_constants import RANDOM_OPS
from mnnq.passes.rewriting import bypass, int_list, rename_uses, single_use

#: Operators that change the shape of a value and nothing else.
RESHAPING_OPS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})

#: Operators with state outside their inputs are never merged.
_IMPURE_OPS = RANDOM_OPS

#: Constants up to this many elements are compared by content.
_CONTENT_LIMIT = 4096


def simplify(graph: Graph) -> int:
    """Rewrite in place, nested graphs included; return the number of rewrites."""
    count = 0
    for node in graph.nodes:
        for sub in node.subgraphs():
            count += simplify(sub)
    for rule in (
        _merge_constants,
        _merge_duplicates,
        _remove_neutral,
        _merge_transposes,
        _merge_reshapes,
        _exact_divisions,
        _pool_from_mean,
    ):
        count += rule(graph)
    return count


def remove_dead(graph: Graph) -> int:
    """Drop nodes and constants that no output depends on; return how many nodes went away."""
    needed = set(graph.outputs)
    kept = []
    for node in reversed(graph.nodes):
        if not any(name in needed for name in node.outputs):
            continue
        kept.append(node)
        needed.update(name for name in node.inputs if name)
        for sub in node.subgraphs():
            remove_dead(sub)
            needed.update(sub.captured())
    count = len(graph.nodes) - len(kept)
    graph.nodes = kept[::-1]
    graph.constants = {name: array for name, array in graph.constants.items() if name in needed}
    return count


# -- duplicates


def _merge_constants(graph: Graph) -> int:
    """Equal small constants get one name."""
    first: dict[Hashable, str] = {}
    names: dict[str, str] = {}
    for name, array in graph.constants.items():
        if array.size > _CONTENT_LIMIT or array.dtype == object or name in graph.outputs:
            continue
        kept = first.setdefault((array.dtype.str, array.shape, array.tobytes()), name)
        if kept != name:
            names[name] = kept
    rename_uses(graph, names)
    for name in names:
        del graph.constants[name]
    return len(names)


def _merge_duplicates(graph: Graph) -> int:
    """Nodes of equal operator, attributes and inputs compute the same."""
    first: dict[Hashable, Node] = {}
    names: dict[str, str] = {}
    dead = []
    for node in graph.nodes:
        node.inputs = [names.get(name, name) for name in node.inputs]
        if node.op_type in _IMPURE_OPS or any(True for _ in node.subgraphs()):
            continue
        key = (node.domain, node.op_type, tuple(node.inputs), len(node.outputs), _attribute_key(node))
        twin = first.setdefault(key, node)
        if twin is node or any(name in graph.outputs for name in node.outputs):
            continue
        if [bool(name) for name in twin.outputs] != [bool(name) for name in node.outputs]:
            continue
        names.update(zip(node.outputs, twin.outputs, strict=True))
        dead.append(node)
    names.pop("", None)
    rename_uses(graph, names)
    graph.remove(dead)
    return len(dead)


def _attribute_key(node: Node) -> Hashable:
    def freeze(value: Any) -> Hashable:
        if isinstance(value, np.ndarray):
            return (value.dtype.str, value.shape, value.tobytes())
        return tuple(value) if isinstance(value, list) else value

    return tuple(sorted((key, freeze(value)) for key, value in node.attrs.items()))


# -- nodes that do nothing


def _remove_neutral(graph: Graph) -> int:
    pairs = []
    producers = graph.producers()
    for node in graph.nodes:
        if node.domain:
            continue
        rule = _NEUTRAL.get(node.op_type)
        if node.op_type in RESHAPING_OPS:
            source = _reshaping(graph, node, producers)
        else:
            source = rule(graph, node) if rule else None
        if source:
            pairs.append((node, source))
    return bypass(graph, pairs)


def _same_shape(graph: Graph, a: str, b: str) -> bool:
    left, right = graph.info(a).shape, graph.info(b).shape
    return left is not None and left == right and None not in left


def _same_type(graph: Graph, a: str, b: str) -> bool:
    left, right = graph.info(a).dtype, graph.info(b).dtype
    return left is not None and left == right


def _reshaping(graph: Graph, node: Node, producers: Mapping[str, Node]) -> str | None:
    """An operator that only reshapes, back to the shape of a value it comes from."""
    source = node.inputs[0]
    for _ in range(8):
        if _same_shape(graph, source, node.outputs[0]):
            return source
        producer = producers.get(source)
        if producer is None or producer.domain or producer.op_type not in RESHAPING_OPS:
            return None
        source = producer.inputs[0]
    return None


def _filling(graph: Graph, node: Node) -> str | None:
    """Expand, Tile, Pad to the same shape."""
    return node.inputs[0] if _same_shape(graph, node.inputs[0], node.outputs[0]) else None


def _pad(graph: Graph, node: Node) -> str | None:
    pads = graph.constant(node.input(1))
    return node.inputs[0] if pads is not None and not pads.any() else None


def _slice(graph: Graph, node: Node) -> str | None:
    steps = graph.constant(node.input(4))
    forward = not node.has_input(4) or (steps is not None and bool((steps > 0).all()))
    return node.inputs[0] if forward and _same_shape(graph, node.inputs[0], node.outputs[0]) else None


def _resize(graph: Graph, node: Node) -> str | None:
    scales = graph.constant(node.input(2))
    if scales is None or not (scales == 1).all():
        return None
    return (
        None if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize" else node.inputs[0]
    )


def _transpose(graph: Graph, node: Node) -> str | None:
    del graph
    perm = node.attrs.get("perm")
    return node.inputs[0] if perm is not None and list(perm) == list(range(len(perm))) else None


def _cast(graph: Graph, node: Node) -> str | None:
    dtype = graph.info(node.inputs[0]).dtype
    same = dtype is not None and dtype == helper.tensor_dtype_to_np_dtype(node.attrs["to"])
    return node.inputs[0] if same else None


def _single(graph: Graph, node: Node) -> str | None:
    del graph
    return node.inputs[0] if len(node.inputs) == 1 and len(node.outputs) == 1 else None


def _neutral_operand(value: float, *, either: bool) -> Callable[[Graph, Node], str | None]:
    """Binary operators with a constant operand that changes neither values nor the shape."""

    def rule(graph: Graph, node: Node) -> str | None:
        for index in (1, 0) if either else (1,):
            array, other = graph.constant(node.inputs[index]), node.inputs[1 - index]
            if array is None or other in graph.constants or not array.size:
                continue
            if array.dtype.kind not in "fiub" or not bool((array == value).all()):
                continue
            rank = graph.info(other).rank
            fits = array.size == 1 and rank is not None and array.ndim <= rank
            if fits or _same_shape(graph, other, node.outputs[0]):
                return other
        return None

    return rule


def _where(graph: Graph, node: Node) -> str | None:
    condition = graph.constant(node.inputs[0])
    if node.inputs[1] == node.inputs[2]:
        chosen = node.inputs[1]
    elif condition is not None and condition.size and (condition.all() or not condition.any()):
        chosen = node.inputs[1] if condition.all() else node.inputs[2]
    else:
        return None
    return chosen if _same_shape(graph, chosen, node.outputs[0]) else None


def _sum_like(graph: Graph, node: Node) -> str | None:
    return _single(graph, node)


_NEUTRAL: dict[str, Callable[[Graph, Node], str | None]] = {
    "Add": _neutral_operand(0, either=True),
    "And": _neutral_operand(1, either=True),
    "Cast": _cast,
    "Concat": _single,
    "Div": _neutral_operand(1, either=False),
    "Expand": _filling,
    "Identity": _single,
    "Max": _sum_like,
    "Mean": _sum_like,
    "Min": _sum_like,
    "Mul": _neutral_operand(1, either=True),
    "Or": _neutral_operand(0, either=True),
    "Pad": _pad,
    "Pow": _neutral_operand(1, either=False),
    "Resize": _resize,
    "Slice": _slice,
    "Sub": _neutral_operand(0, either=False),
    "Sum": _sum_like,
    "Tile": _filling,
    "Transpose": _transpose,
    "Where": _where,
}


# -- chains


def _merge_transposes(graph: Graph) -> int:
    """Transpose(Transpose(x, p), q) is Transpose(x, p[q])."""
    producers, count = graph.producers(), 0
    for node in graph.nodes:
        inner = producers.get(node.inputs[0]) if node.op_type == "Transpose" and node.inputs else None
        if inner is None or inner.op_type != "Transpose" or inner.domain or node.domain:
            continue
        outer_perm, inner_perm = node.attrs.get("perm"), inner.attrs.get("perm")
        if outer_perm is None or inner_perm is None:
            continue
        node.attrs["perm"] = [int(inner_perm[axis]) for axis in outer_perm]
        node.inputs = [inner.inputs[0]]
        count += 1
    return count


def _merge_reshapes(graph: Graph) -> int:
    """A Reshape of a reshaped value reads the value itself."""
    producers, uses, count = graph.producers(), graph.consumers(), 0
    for node in graph.nodes:
        if node.op_type != "Reshape" or node.domain:
            continue
        inner = producers.get(node.inputs[0])
        if inner is None or inner.domain or inner.op_type not in RESHAPING_OPS:
            continue
        target = graph.constant(node.input(1))
        if target is None or single_use(graph, uses, node.inputs[0]) is None:
            continue
        before, between = graph.info(inner.inputs[0]).shape, graph.info(node.inputs[0]).shape
        if not node.attrs.get("allowzero") and not _copies_agree(int_list(target), before, between):
            continue
        node.inputs[0] = inner.inputs[0]
        count += 1
    return count


def _copies_agree(target: list[int], before: tuple[Any, ...] | None, between: tuple[Any, ...] | None) -> bool:
    """Whether every 0 of a reshape target copies the same size from either value."""
    for axis, size in enumerate(target):
        if size == 0:
            if before is None or between is None or axis >= len(before) or axis >= len(between):
                return False
            if before[axis] is None or before[axis] != between[axis]:
                return False
    return True


def _exact_divisions(graph: Graph) -> int:
    """X / c becomes x * (1 / c) where every 1 / c is exact: c a power of two."""
    count = 0
    for node in graph.nodes:
        if node.op_type != "Div" or node.domain:
            continue
        divisor = graph.constant(node.inputs[1])
        if (
            divisor is None
            or divisor.dtype.kind != "f"
            or not divisor.size
            or node.inputs[0] in graph.constants
        ):
            continue
        mantissa, exponent = np.frexp(divisor)
        if not (np.abs(mantissa) == 0.5).all() or (np.abs(exponent) > 60).any():
            continue
        inverse = (1 / divisor).astype(divisor.dtype)
        node.op_type = "Mul"
        node.inputs[1] = graph.add_constant(f"{node.inputs[1]}_inverse", inverse)
        count += 1
    return count


def _pool_from_mean(graph: Graph) -> int:
    """The mean over the two spatial axes of an image is GlobalAveragePool, which keeps the blocked layout."""
    nodes, count = [], 0
    for node in graph.nodes:
        nodes.append(node)
        axes = graph.constant(node.input(1)) if node.op_type == "ReduceMean" and not node.domain else None
        info = graph.info(node.inputs[0]) if axes is not None else ValueInfo()
        if axes is None or info.rank != 4 or sorted(a % 4 for a in int_list(axes)) != [2, 3]:
            continue
        if info.dtype is None or info.dtype.kind != "f":
            continue
        count += 1
        keep = int(node.attrs.get("keepdims", 1))
        out = node.outputs[0]
        pooled = out if keep else graph.fresh(f"{out}_pooled")
        nodes[-1] = Node("GlobalAveragePool", [node.inputs[0]], [pooled], name=node.name)
        if not keep:
            assert info.shape is not None
            graph.values[pooled] = ValueInfo(info.dtype, (*info.shape[:2], 1, 1))
            nodes.append(Node("Squeeze", [pooled, node.inputs[1]], [out]))
    graph.nodes = nodes
    return count
