"""Shape operands that depend on dynamic axes only by copying them become constants."""

from __future__ import annotations

import numpy as np

from mnnq.ir.graph import Graph, Node
from mnnq.ir.symbolic import Poly, divide_exactly
from mnnq.passes.shape_rules import refine
from mnnq.passes.shape_values import Known, ints_of

#: "To the end" in a constant slice bound.
_END = np.iinfo(np.int64).max


def resolve_target(graph: Graph, node: Node, known: Known) -> bool:
    """Replace a computed shape operand of `node` by a constant where that says the same."""
    if node.domain:
        return False
    if node.op_type == "Reshape":
        return _reshape(graph, node, known)
    if node.op_type == "Expand":
        return _expand(graph, node, known)
    if node.op_type == "Slice":
        return _slice(graph, node, known)
    if node.op_type == "Resize":
        return _resize(graph, node, known)
    return False


def _computed(graph: Graph, node: Node, index: int) -> bool:
    return node.has_input(index) and graph.constant(node.input(index)) is None


def _replace(graph: Graph, node: Node, index: int, values: list[int]) -> bool:
    array = np.asarray(values, np.int64)
    node.inputs[index] = graph.add_constant(f"{node.outputs[0]}_target", array)
    return True


def _reshape(graph: Graph, node: Node, known: Known) -> bool:
    """Sizes that equal the input's axis at the same place are copied (0), one other is inferred (-1)."""
    if not _computed(graph, node, 1) or node.attrs.get("allowzero"):
        return False
    value, shape = known.value(node.inputs[1]), known.shape(node.inputs[0])
    dims = refine(node, known)
    if dims is None or (value is None and None in dims):
        return False
    if value is not None and any(item == 0 for item in value.reshape(-1).tolist()):
        return False  # a zero that copies, or an empty tensor: leave it to run time
    target: list[int] = []
    for i, dim in enumerate(dims):
        if isinstance(dim, int):
            if dim == 0:
                return False
            target.append(dim)
        elif dim is not None and shape is not None and i < len(shape) and shape[i] == dim:
            target.append(0)
        else:
            target.append(-1)
    if target.count(-1) > 1:
        return False
    return _replace(graph, node, 1, target)


def _expand(graph: Graph, node: Node, known: Known) -> bool:
    """A size that the input already has needs no expansion: 1."""
    if not _computed(graph, node, 1):
        return False
    value, shape = known.value(node.inputs[1]), known.shape(node.inputs[0])
    if value is None or shape is None or value.ndim != 1:
        return False
    padded = [*[1] * (value.size - len(shape)), *shape]
    own = padded[len(padded) - value.size :]
    target = []
    for size, wanted in zip(own, value.tolist(), strict=True):
        if isinstance(wanted, int):
            target.append(wanted)
        elif isinstance(wanted, Poly) and wanted == size:
            target.append(1)
        else:
            return False
    return _replace(graph, node, 1, target)


def _slice(graph: Graph, node: Node, known: Known) -> bool:
    """A bound that is the size of the axis means "to the end"."""
    if not _computed(graph, node, 2) or not node.has_input(1):
        return False
    ends, shape = known.value(node.inputs[2]), known.shape(node.inputs[0])
    if ends is None or shape is None:
        return False
    axes = ints_of(known.value(node.inputs[3])) if node.has_input(3) else list(range(ends.size))
    if axes is None:
        return False
    bounds = []
    for end, axis in zip(ends.reshape(-1).tolist(), axes, strict=True):
        if isinstance(end, Poly) and end == shape[axis]:
            bounds.append(_END)
        elif isinstance(end, int):
            bounds.append(end)
        else:
            return False
    return _replace(graph, node, 2, bounds)


def _resize(graph: Graph, node: Node, known: Known) -> bool:
    """Sizes that are whole multiples of the input's are scales."""
    if not _computed(graph, node, 3) or "axes" in node.attrs:
        return False
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return False
    sizes, shape = known.value(node.inputs[3]), known.shape(node.inputs[0])
    if sizes is None or shape is None or sizes.size != len(shape):
        return False
    scales = []
    for size, own in zip(sizes.tolist(), shape, strict=True):
        factor = None if size is None or own == 0 else divide_exactly(size, own)
        if not isinstance(factor, int) or factor <= 0:
            return False
        scales.append(float(factor))
    node.inputs[2] = graph.add_constant(f"{node.outputs[0]}_scales", np.asarray(scales, np.float32))
    del node.inputs[3]
    return True
