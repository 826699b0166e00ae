"""Shapes that ONNX's own inference leaves open when axes are dynamic: rules over symbolic sizes."""

from __future__ import annotations

from collections.abc import Callable

from mnnq.ir.graph import FAKE_QUANT, LINEAR, MNNQ_DOMAIN, Node
from mnnq.ir.symbolic import Poly, add, divide, divide_exactly, multiply, subtract
from mnnq.passes.shape_values import HUGE, Known, Shape, Value, ints_of

#: A shape as far as a rule knows it.
Partial = list["int | Poly | None"]


def refine(node: Node, known: Known) -> Partial | None:
    """Shape of the first output by this module's rules, or None when they have nothing to say."""
    rule = _RULES.get(node.op_type)
    if rule is None or not node.inputs or node.domain not in ("", MNNQ_DOMAIN):
        return None
    try:
        return rule(node, known)
    except (ValueError, IndexError, TypeError, KeyError, ZeroDivisionError):
        return None  # not what the operator allows; the lowering says so


def _product(dims: Shape | Partial) -> int | Poly | None:
    total: int | Poly = 1
    for dim in dims:
        if dim is None:
            return None
        total = multiply(total, dim)
    return total


def _sizes(value: Value | None) -> Partial | None:
    if value is None or value.ndim != 1:
        return None
    return [item if isinstance(item, int | Poly) else None for item in value.tolist()]


def _reshape(node: Node, known: Known) -> Partial | None:
    shape, target = known.shape(node.inputs[0]), _sizes(known.value(node.inputs[1]))
    if target is None:
        count = known.shape(node.inputs[1])
        return [None] * count[0] if count and isinstance(count[0], int) else None
    dims: Partial = list(target)
    if not node.attrs.get("allowzero"):
        for i, dim in enumerate(target):
            if dim == 0:
                dims[i] = None if shape is None else shape[i]
    if -1 in dims:
        place = dims.index(-1)
        rest = _product(dims[:place] + dims[place + 1 :])
        total = None if shape is None else _product(shape)
        dims[place] = divide_exactly(total, rest) if rest and total is not None else None
    elif shape is not None and dims.count(None) == 1:
        place = dims.index(None)
        rest, total = _product(dims[:place] + dims[place + 1 :]), _product(shape)
        if rest and total:
            dims[place] = divide_exactly(total, rest)
    return dims


def _broadcast(a: Shape, b: Partial) -> Partial:
    rank = max(len(a), len(b))
    left: Partial = [*[1] * (rank - len(a)), *a]
    right: Partial = [*[1] * (rank - len(b)), *b]
    dims: Partial = []
    for x, y in zip(left, right, strict=True):
        if x == 1 or (isinstance(y, int) and y > 1):
            dims.append(y)
        elif y == 1 or x == y or (isinstance(x, int) and x > 1):
            dims.append(x)
        else:
            dims.append(None)
    return dims


def _expand(node: Node, known: Known) -> Partial | None:
    shape, target = known.shape(node.inputs[0]), _sizes(known.value(node.inputs[1]))
    if shape is None:
        return None
    if target is None:
        count = known.shape(node.inputs[1])
        if not count or not isinstance(count[0], int):
            return None
        target = [None] * count[0]
    return _broadcast(shape, target)


def _constant_of_shape(node: Node, known: Known) -> Partial | None:
    target = _sizes(known.value(node.inputs[0]))
    if target is not None:
        return target
    count = known.shape(node.inputs[0])
    return [None] * count[0] if count and isinstance(count[0], int) else None


def _range(node: Node, known: Known) -> Partial | None:
    values = [known.value(name) for name in node.inputs]
    items = [value.reshape(-1)[0] if value is not None and value.size == 1 else None for value in values]
    start, limit, step = items
    if step != 1 or isinstance(step, float) or not isinstance(start, int | Poly):
        return None
    if not isinstance(limit, int | Poly):
        return None
    length = subtract(limit, start)
    return [length if isinstance(length, Poly) and length.non_negative else None]


def _slice(node: Node, known: Known) -> Partial | None:
    shape = known.shape(node.inputs[0])
    if shape is None:
        return None
    rank = len(shape)
    starts, ends = (known.value(name) for name in node.inputs[1:3])
    axes = ints_of(known.value(node.inputs[3])) if node.has_input(3) else None
    steps = ints_of(known.value(node.inputs[4])) if node.has_input(4) else None
    if (node.has_input(3) and axes is None) or (node.has_input(4) and steps is None):
        return [None] * rank
    if axes is None:
        count = known.shape(node.inputs[1])
        if not count or not isinstance(count[0], int):
            return [None] * rank
        axes = list(range(count[0]))
    dims: Partial = list(shape)
    for i, axis in enumerate(axes):
        begin = None if starts is None else starts.reshape(-1)[i]
        end = None if ends is None else ends.reshape(-1)[i]
        dims[axis] = _cut(shape[axis], begin, end, steps[i] if steps else 1)
    return dims


def _cut(size: int | Poly, begin: object, end: object, step: int) -> int | Poly | None:
    """Length of one sliced axis."""
    if isinstance(size, int) and isinstance(begin, int) and isinstance(end, int):
        # Python clamps as ONNX does, except for a stop before the first element going backwards.
        stop = None if step < 0 and end < -size else end
        return len(range(size)[begin:stop:step])
    if step != 1:
        return None
    if begin == 0 and (end == size or (isinstance(end, int) and end >= HUGE)):
        return size
    if isinstance(size, Poly) and begin == 1 and isinstance(end, int) and end >= HUGE:
        return subtract(size, 1)
    if isinstance(size, Poly) and begin == 0 and end == -1:
        return subtract(size, 1)
    if isinstance(size, Poly) and begin == -1 and isinstance(end, int) and end >= HUGE:
        return 1
    return None


def _concat(node: Node, known: Known) -> Partial | None:
    shapes = [known.shape(name) for name in node.inputs]
    known_shapes = [shape for shape in shapes if shape is not None]
    if not known_shapes:
        return None
    rank = len(known_shapes[0])
    axis = int(node.attrs["axis"]) % rank
    dims: Partial = list(known_shapes[0])
    for shape in known_shapes[1:]:
        dims = [x if isinstance(x, int) else y for x, y in zip(dims, shape, strict=True)]
    total: int | Poly | None = 0
    for part in shapes:
        total = None if part is None or total is None else add(total, part[axis])
    dims[axis] = total
    return dims


def _tile(node: Node, known: Known) -> Partial | None:
    shape, repeats = known.shape(node.inputs[0]), _sizes(known.value(node.inputs[1]))
    if shape is None:
        return None
    if repeats is None:
        return [None] * len(shape)
    return [None if r is None else multiply(d, r) for d, r in zip(shape, repeats, strict=True)]


def _pad(node: Node, known: Known) -> Partial | None:
    shape, pads = known.shape(node.inputs[0]), ints_of(known.value(node.inputs[1]))
    if shape is None:
        return None
    axes = ints_of(known.value(node.inputs[3])) if node.has_input(3) else list(range(len(shape)))
    if pads is None or axes is None:
        return [None] * len(shape)
    dims: Partial = list(shape)
    for i, axis in enumerate(axes):
        dims[axis] = add(shape[axis], pads[i] + pads[i + len(axes)])
    return dims


def _resize(node: Node, known: Known) -> Partial | None:
    shape = known.shape(node.inputs[0])
    if shape is None or "axes" in node.attrs or "keep_aspect_ratio_policy" in node.attrs:
        return None
    if node.has_input(3):
        sizes = _sizes(known.value(node.inputs[3]))
        return sizes if sizes is not None else [None] * len(shape)
    scales = known.value(node.input(2))
    if scales is None:
        return [None] * len(shape)
    dims: Partial = []
    for dim, scale in zip(shape, scales.tolist(), strict=True):
        if scale == 1:
            dims.append(dim)
        elif isinstance(dim, int):
            dims.append(None if scale is None else int(dim * scale))
        else:
            whole = isinstance(scale, float) and scale.is_integer()
            dims.append(multiply(dim, int(scale)) if whole else None)
    return dims


def _windows(node: Node, known: Known) -> Partial | None:
    """Convolution and pooling: (n + pads - ((kernel - 1) * dilation + 1)) / stride + 1, rounded down."""
    shape = known.shape(node.inputs[0])
    if shape is None or node.attrs.get("auto_pad", "NOTSET") != "NOTSET" or node.attrs.get("ceil_mode"):
        return None
    channels: int | Poly = shape[1]
    kernel = node.attrs.get("kernel_shape")
    if node.op_type == "Conv":
        weight = known.shape(node.inputs[1])
        if weight is None:
            return None
        channels, kernel = weight[0], list(weight[2:])
    if kernel is None:
        return None
    rank = len(shape) - 2
    strides = node.attrs.get("strides") or [1] * rank
    dilations = node.attrs.get("dilations") or [1] * rank
    pads = node.attrs.get("pads") or [0] * (2 * rank)
    dims: Partial = [shape[0], channels]
    for i in range(rank):
        reach = (int(kernel[i]) - 1) * int(dilations[i]) + 1 - int(pads[i]) - int(pads[i + rank])
        moved = subtract(shape[2 + i], reach)
        dims.append(add(divide(moved, int(strides[i])), 1))
    return dims


def _flatten(node: Node, known: Known) -> Partial | None:
    shape, axis = known.shape(node.inputs[0]), int(node.attrs.get("axis", 1))
    if shape is None:
        return [None, None]
    axis = axis + len(shape) if axis < 0 else axis
    return [_product(shape[:axis]), _product(shape[axis:])]


def _linear(node: Node, known: Known) -> Partial | None:
    shape, weight = known.shape(node.inputs[0]), known.shape(node.inputs[1])
    if shape is None or weight is None:
        return None
    return [*shape[:-1], weight[0 if node.attrs.get("transposed") else 1]]


def _unchanged(node: Node, known: Known) -> Partial | None:
    shape = known.shape(node.inputs[0])
    return None if shape is None else list(shape)


_RULES: dict[str, Callable[[Node, Known], Partial | None]] = {
    "AveragePool": _windows,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _windows,
    "Expand": _expand,
    FAKE_QUANT: _unchanged,
    "Flatten": _flatten,
    LINEAR: _linear,
    "MaxPool": _windows,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Tile": _tile,
}
