"""Bring every operator to the form of opset 23, so that passes and lowerings know one form only.

What became an input in a newer opset (axes, pads, bounds, sizes) is an input; operators that were renamed
or removed are written with their successors; padding by name becomes numbers where the sizes are known.
Default attributes are not filled in. The pass may run again at any time: what needed a shape that was not
known before is then settled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from mnnq.errors import UnsupportedError
from mnnq.ir.graph import Graph, Node, ValueInfo
from mnnq.passes.batch_statistics import expand_batch_statistics
from mnnq.passes.resolve_padding import resolve_padding
from mnnq.passes.rewriting import bypass, scalar

#: Version of the default operator set whose form the graph has afterwards.
TARGET_OPSET = 23

#: A rule edits one node, and may return nodes that take its place.
Rule = Callable[[Graph, Node], "Sequence[Node] | None"]


def normalize(graph: Graph) -> int:
    """Rewrite `graph` and its subgraphs in place; return the number of nodes rewritten.

    Raises
    ------
    UnsupportedError
        A node has a meaning that has no form in the newer operator set (training mode, old ``Scan``).
    """
    changes = extract_constants(graph)
    nodes: list[Node] = []
    for node in graph.nodes:
        for sub in node.subgraphs():
            changes += normalize(sub)
        before = (node.op_type, tuple(node.inputs), tuple(node.attrs))
        rule = RULES.get(node.op_type) if node.domain == "" else None
        replacement = rule(graph, node) if rule else None
        _trim(node)
        nodes.extend([node] if replacement is None else replacement)
        changes += replacement is not None or before != (node.op_type, tuple(node.inputs), tuple(node.attrs))
    graph.nodes = nodes
    graph.opset = max(graph.opset, TARGET_OPSET)
    identities = [
        (node, node.inputs[0]) for node in graph.nodes if node.op_type == "Identity" and node.domain == ""
    ]
    return changes + bypass(graph, identities)


def extract_constants(graph: Graph) -> int:
    """Turn ``Constant`` nodes into constants of their graph, nested graphs included; return how many."""
    nested = sum(extract_constants(sub) for node in graph.nodes for sub in node.subgraphs())
    kept = []
    for node in graph.nodes:
        array = _constant_value(node) if node.op_type == "Constant" and node.domain == "" else None
        if array is None:
            kept.append(node)
        else:
            graph.constants[node.outputs[0]] = array
    count = len(graph.nodes) - len(kept)
    graph.nodes = kept
    return count + nested


def _constant_value(node: Node) -> np.ndarray[Any, Any] | None:
    attrs = node.attrs
    for key in ("value", "sparse_value"):
        if key in attrs:
            return np.asarray(attrs[key])
    for key, dtype in (("value_float", np.float32), ("value_int", np.int64)):
        if key in attrs:
            return np.asarray(attrs[key], dtype)
        if f"{key}s" in attrs:
            return np.asarray(attrs[f"{key}s"], dtype)
    return None


def _trim(node: Node) -> None:
    """Drop absent inputs and outputs at the end of the lists."""
    while node.inputs and not node.inputs[-1]:
        node.inputs.pop()
    while len(node.outputs) > 1 and not node.outputs[-1]:
        node.outputs.pop()


def _refuse(node: Node, reason: str) -> UnsupportedError:
    return UnsupportedError(problems=[f"{node.op_type} (node {node.label!r}): {reason}"])


def _set_input(node: Node, index: int, name: str) -> None:
    node.inputs.extend([""] * (index + 1 - len(node.inputs)))
    node.inputs[index] = name


def _ints(graph: Graph, node: Node, what: str, values: Sequence[int]) -> str:
    return graph.add_constant(f"{node.outputs[0]}_{what}", np.asarray(values, np.int64))


def _attr_to_input(graph: Graph, node: Node, attr: str, index: int) -> None:
    """Move a list-of-ints attribute of an older form to input `index`."""
    if attr in node.attrs:
        values = node.attrs.pop(attr)
        if not node.has_input(index):
            _set_input(node, index, _ints(graph, node, attr, values))


def _axes(graph: Graph, node: Node) -> None:
    _attr_to_input(graph, node, "axes", 1)


def _reduce(graph: Graph, node: Node) -> None:
    if node.attrs.get("axes") == []:
        del node.attrs["axes"]
    _attr_to_input(graph, node, "axes", 1)


def _split(graph: Graph, node: Node) -> None:
    _attr_to_input(graph, node, "split", 1)
    if node.has_input(1):
        node.attrs.pop("num_outputs", None)
        return
    count = int(node.attrs.get("num_outputs", len(node.outputs)))
    node.attrs["num_outputs"] = count
    shape, axis = graph.info(node.inputs[0]).shape, int(node.attrs.get("axis", 0))
    size = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
    if isinstance(size, int):
        part = -(-size // count)
        last = size - part * (count - 1)
        if last < 0:
            raise _refuse(node, f"axis of {size} cannot be split into {count} parts")
        del node.attrs["num_outputs"]
        _set_input(node, 1, _ints(graph, node, "split", [*[part] * (count - 1), last]))


def _slice(graph: Graph, node: Node) -> None:
    for index, attr in enumerate(("starts", "ends", "axes"), 1):
        _attr_to_input(graph, node, attr, index)


def _clip(graph: Graph, node: Node) -> None:
    for index, attr in enumerate(("min", "max"), 1):
        if attr in node.attrs:
            dtype = graph.info(node.inputs[0]).dtype or np.dtype(np.float32)
            bound = np.asarray(node.attrs.pop(attr), dtype)
            _set_input(node, index, graph.add_constant(f"{node.outputs[0]}_{attr}", bound))


def _pad(graph: Graph, node: Node) -> None:
    _attr_to_input(graph, node, "pads", 1)
    if "value" in node.attrs:
        value = float(node.attrs.pop("value"))
        if node.attrs.get("mode", "constant") == "constant":
            dtype = graph.info(node.inputs[0]).dtype or np.dtype(np.float32)
            _set_input(node, 2, graph.add_constant(f"{node.outputs[0]}_value", np.asarray(value, dtype)))


def _topk(graph: Graph, node: Node) -> None:
    if "k" in node.attrs:
        _set_input(node, 1, _ints(graph, node, "k", [node.attrs.pop("k")]))


def _dft(graph: Graph, node: Node) -> None:
    if graph.opset < 20:
        axis = graph.add_constant(f"{node.outputs[0]}_axis", np.asarray(node.attrs.pop("axis", 1), np.int64))
        _set_input(node, 2, axis)


def _cast(graph: Graph, node: Node) -> None:
    del graph
    if isinstance(node.attrs.get("to"), str):
        node.attrs["to"] = int(getattr(onnx.TensorProto, node.attrs["to"]))


def _upsample(graph: Graph, node: Node) -> None:
    """``Upsample`` takes source index floor(i / scale), or interpolates at i / scale."""
    scales = node.input(1)
    if "scales" in node.attrs:
        array = np.asarray(node.attrs.pop("scales"), np.float32)
        scales = graph.add_constant(f"{node.outputs[0]}_scales", array)
    mode = node.attrs.get("mode", "nearest")
    node.op_type = "Resize"
    node.inputs = [node.inputs[0], "", scales]
    node.attrs["mode"] = "linear" if mode in ("linear", "bilinear") else mode
    node.attrs["coordinate_transformation_mode"] = "asymmetric"
    if mode == "nearest":
        node.attrs["nearest_mode"] = "floor"


def _resize(graph: Graph, node: Node) -> None:
    if graph.opset == 10:
        _resize_10(graph, node)
    for index in (1, 2, 3):
        array = graph.constant(node.input(index))
        if array is not None and array.size == 0:
            node.inputs[index] = ""


def _resize_10(graph: Graph, node: Node) -> None:
    """Opset 10 leaves rounding open: onnxruntime rounds up when shrinking, down when enlarging."""
    node.inputs = [node.inputs[0], "", node.inputs[1]]
    node.attrs["coordinate_transformation_mode"] = "asymmetric"
    if node.attrs.get("mode", "nearest") == "nearest":
        scales = graph.constant(node.inputs[2])
        shrinks = scales is not None and bool((scales < 1).any())
        if shrinks and scales is not None and bool((scales > 1).any()):
            raise _refuse(node, "opset 10 nearest resize that enlarges one axis and shrinks another")
        node.attrs["nearest_mode"] = "ceil" if shrinks else "floor"


def _dropout(graph: Graph, node: Node) -> Sequence[Node]:
    """The input itself, as at inference; the mask is all true."""
    if node.has_input(2):
        training = graph.constant(node.input(2))
        if training is None or bool(training.reshape(-1)[0]):
            raise _refuse(node, "training mode")
    nodes = [Node("Identity", [node.inputs[0]], [node.outputs[0]], name=node.name)]
    if node.has_output(1):
        dtype = np.dtype(bool) if graph.opset >= 10 else graph.info(node.inputs[0]).dtype or np.dtype("f4")
        shape = graph.fresh(f"{node.outputs[1]}_shape")
        nodes += [
            Node("Shape", [node.inputs[0]], [shape]),
            Node("ConstantOfShape", [shape], [node.outputs[1]], {"value": np.ones(1, dtype)}),
        ]
    return nodes


def _softmax(graph: Graph, node: Node) -> Sequence[Node] | None:
    """Before opset 13 the axes from `axis` on counted as one."""
    if graph.opset >= 13:
        return None
    x, out = node.inputs[0], node.outputs[0]
    axis, shape = int(node.attrs.get("axis", 1)), graph.info(x).shape
    if shape is not None:
        axis = axis % len(shape) if shape and axis < len(shape) else axis
        if all(dim == 1 for dim in shape[axis + 1 :]):
            node.attrs["axis"] = axis
            return None
    elif axis == -1:
        return None
    if axis < 0:
        raise _refuse(node, f"axis {axis} of an input whose rank is unknown")
    shape_of, flat, result = (graph.fresh(f"{out}_{part}") for part in ("shape", "flat", "rows"))
    target = _ints(graph, node, "rows_shape", [*[0] * axis, -1])
    if shape is not None:
        graph.values[result] = graph.values[flat] = ValueInfo(graph.info(x).dtype, (*shape[:axis], None))
    return [
        Node("Shape", [x], [shape_of]),
        Node("Reshape", [x, target], [flat]),
        Node(node.op_type, [flat], [result], {"axis": -1}, node.name),
        Node("Reshape", [result, shape_of], [out]),
    ]


def _batch_norm(graph: Graph, node: Node) -> Sequence[Node] | None:
    if graph.opset < 9 and int(node.attrs.pop("spatial", 1)) != 1:
        raise _refuse(node, "spatial = 0")
    _trim(node)
    training = int(node.attrs.pop("training_mode", 0))
    if graph.opset < 14 and any(node.outputs[1:]):
        uses = graph.consumers()
        if any(name in uses or name in graph.outputs for name in node.outputs[1:] if name):
            raise _refuse(node, "training mode of an opset before 14")
        node.outputs = node.outputs[:1]
    if training:
        rank = graph.info(node.inputs[0]).rank
        if rank is None or rank < 2:
            raise _refuse(node, f"training mode on a tensor of rank {rank or 'unknown'}")
        return expand_batch_statistics(graph, node, rank)
    for key in ("momentum", "spatial"):
        node.attrs.pop(key, None)
    return None


def _group_norm(graph: Graph, node: Node) -> Sequence[Node] | None:
    """Opset 18 had scale and bias per group, opset 21 per channel."""
    if graph.opset >= 21:
        return None
    shape, groups = graph.info(node.inputs[0]).shape, int(node.attrs["num_groups"])
    channels = shape[1] if shape is not None and len(shape) > 1 else None
    if not isinstance(channels, int) or channels % groups:
        raise _refuse(node, "the number of channels must be known")
    nodes: list[Node] = []
    for index in (1, 2):
        parts = [graph.fresh(f"{node.outputs[0]}_{part}") for part in ("column", "repeat", "channels")]
        shapes = ([groups, 1], [groups, channels // groups], [channels])
        source = node.inputs[index]
        for op, part, dims in zip(("Reshape", "Expand", "Reshape"), parts, shapes, strict=True):
            nodes.append(Node(op, [source, _ints(graph, node, "dims", dims)], [part]))
            source = part
        node.inputs[index] = source
    return [*nodes, node]


def _grid_sample(graph: Graph, node: Node) -> None:
    del graph
    names = {"bilinear": "linear", "bicubic": "cubic"}
    if node.attrs.get("mode") in names:
        node.attrs["mode"] = names[node.attrs["mode"]]


def _scatter(graph: Graph, node: Node) -> None:
    """The old name of ``ScatterElements``."""
    del graph
    node.op_type = "ScatterElements"


def _scan(graph: Graph, node: Node) -> None:
    if graph.opset < 9:
        raise _refuse(node, "the form of opset 8")


def _padded(graph: Graph, node: Node) -> None:
    resolve_padding(graph, node)


def _pool(graph: Graph, node: Node) -> None:
    if scalar(np.asarray(node.attrs.get("ceil_mode", 0))) == 0:
        node.attrs.pop("ceil_mode", None)
    resolve_padding(graph, node)


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")

#: How an operator of an older opset is written in the newest one, or with other operators.
RULES: dict[str, Rule] = {
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Conv": _padded,
    "ConvTranspose": _padded,
    "DFT": _dft,
    "Dropout": _dropout,
    "GridSample": _grid_sample,
    "GroupNormalization": _group_norm,
    "Hardmax": _softmax,
    "LogSoftmax": _softmax,
    "LpPool": _padded,
    "MaxPool": _pool,
    "Pad": _pad,
    "Resize": _resize,
    "Scan": _scan,
    "Scatter": _scatter,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _axes,
    "TopK": _topk,
    "Unsqueeze": _axes,
    "Upsample": _upsample,
    **{f"Reduce{name}": _reduce for name in _REDUCTIONS},
}
