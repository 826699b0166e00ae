"""Contents of small tensors as far as they are known: numbers, sizes of axes, and what is computed from them.

A value is a numpy object array whose elements are int, float, bool, `Poly` (a size that depends on a dynamic
axis) or None (unknown). numpy's indexing and broadcasting then do what the ONNX operators do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mnnq.ir.graph import Node
from mnnq.ir.symbolic import Poly, add, divide, multiply, opaque, subtract

#: Tensors of more elements are not followed.
VALUE_LIMIT = 2048

#: Integers from here on mean "to the end" in the sizes that exporters write.
HUGE = 2**31 - 1

Value = npt.NDArray[np.object_]
Shape = tuple["int | Poly", ...]


class Known(Protocol):
    """What a rule may ask about a node's inputs."""

    def value(self, name: str) -> Value | None:
        """Contents of a small tensor."""

    def shape(self, name: str) -> Shape | None:
        """Shape with every axis an int or a size."""

    def dtype(self, name: str) -> np.dtype[Any] | None:
        """Element type."""


def evaluate(node: Node, known: Known) -> list[Value] | None:
    """Contents of a node's outputs, or None when nothing is known of them."""
    rule = _RULES.get(node.op_type) if node.domain == "" else None
    if rule is None:
        return None
    try:
        result = rule(node, known)
    except (ValueError, IndexError, TypeError, ZeroDivisionError, OverflowError):
        return None  # not what the operator allows: shape inference or the lowering will say so
    if result is None:
        return None
    values = result if isinstance(result, list) else [result]
    return None if any(value.size > VALUE_LIMIT for value in values) else values


def from_array(array: npt.NDArray[Any]) -> Value | None:
    """Contents of a constant, None when it is too big or not numeric."""
    if array.size > VALUE_LIMIT or array.dtype.kind not in "iubf":
        return None
    return np.asarray(array).astype(object)


def to_array(value: Value, dtype: np.dtype[Any]) -> npt.NDArray[Any] | None:
    """The constant that a fully known value is, else None."""
    if any(item is None or isinstance(item, Poly) for item in value.reshape(-1)):
        return None
    return value.astype(dtype)


def ints_of(value: Value | None) -> list[int] | None:
    """Elements as ints when all are numbers."""
    if value is None:
        return None
    items = [int(item) for item in value.reshape(-1) if isinstance(item, int | float)]
    return items if len(items) == value.size else None


def as_value(items: list[Any]) -> Value:
    """A vector of elements."""
    result = np.empty(len(items), object)
    result[:] = items
    return result


# -- elements


def _lift(function: Callable[..., Any], arity: int) -> Callable[..., Any]:
    """An element function as a broadcasting one; None in gives None out."""

    def element(*items: Any) -> Any:
        return None if any(item is None for item in items) else function(*items)

    lifted: Callable[..., Any] = np.frompyfunc(element, arity, 1)
    return lifted


def _is_size(item: Any) -> bool:
    return isinstance(item, Poly | int) and not isinstance(item, bool)


def _sizes(a: Any, b: Any) -> tuple[Any, Any] | None:
    """Both operands as sizes when one is symbolic and the other whole."""
    pair = []
    for item in (a, b):
        whole = int(item) if isinstance(item, float) and item.is_integer() else item
        if not _is_size(whole):
            return None
        pair.append(whole)
    return pair[0], pair[1]


def _arithmetic(plain: Callable[[Any, Any], Any], symbolic: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def element(a: Any, b: Any) -> Any:
        if isinstance(a, Poly) or isinstance(b, Poly):
            pair = _sizes(a, b)
            return None if pair is None else symbolic(*pair)
        return plain(a, b)

    return _lift(element, 2)


def _plain_divide(a: Any, b: Any) -> Any:
    if isinstance(a, float) or isinstance(b, float):
        return a / b if b else None
    return divide(a, b) if b else None


def _minimum(a: Any, b: Any) -> Any:
    if isinstance(b, int):
        a, b = b, a
    if isinstance(a, int) and a >= HUGE:
        return b
    return a if a == b else opaque("min", *sorted((a, b), key=str))


def _maximum(a: Any, b: Any) -> Any:
    if isinstance(b, int):
        a, b = b, a
    if isinstance(a, int) and a <= 0 and isinstance(b, Poly) and b.non_negative:
        return b
    return a if a == b else opaque("max", *sorted((a, b), key=str))


def _modulo(a: Any, b: Any) -> Any:
    return subtract(a, multiply(divide(a, b), b)) if b != 0 else None


def _sign_of_difference(a: Any, b: Any) -> int | None:
    """-1, 0 or 1 when the order of two sizes is known."""
    difference = subtract(a, b)
    if isinstance(difference, int):
        return (difference > 0) - (difference < 0)
    less = multiply(difference, -1)
    for value, sign in ((difference, 1), (less, -1)):
        if isinstance(value, Poly) and value.non_negative and dict(value.terms).get((), 0) > 0:
            return sign
    return None


def _compare(test: Callable[[int], bool], plain: Callable[[Any, Any], bool]) -> Callable[..., Any]:
    def symbolic(a: Any, b: Any) -> Any:
        sign = _sign_of_difference(a, b)
        return None if sign is None else test(sign)

    return _arithmetic(plain, symbolic)


def _where(condition: Any, a: Any, b: Any) -> Any:
    if condition is None:
        same = a is not None and type(a) is type(b) and a == b
        return a if same else None
    return a if condition else b


_BINARY: dict[str, Callable[..., Any]] = {
    "Add": _arithmetic(lambda a, b: a + b, add),
    "Sub": _arithmetic(lambda a, b: a - b, subtract),
    "Mul": _arithmetic(lambda a, b: a * b, multiply),
    "Min": _arithmetic(min, _minimum),
    "Max": _arithmetic(max, _maximum),
    "Mod": _arithmetic(lambda a, b: a % b if b else None, _modulo),
    "Equal": _compare(lambda s: s == 0, lambda a, b: a == b),
    "Greater": _compare(lambda s: s > 0, lambda a, b: a > b),
    "GreaterOrEqual": _compare(lambda s: s >= 0, lambda a, b: a >= b),
    "Less": _compare(lambda s: s < 0, lambda a, b: a < b),
    "LessOrEqual": _compare(lambda s: s <= 0, lambda a, b: a <= b),
    "And": _lift(lambda a, b: bool(a) and bool(b), 2),
    "Or": _lift(lambda a, b: bool(a) or bool(b), 2),
}


def _exact_quotient(a: Any, b: Any) -> Any:
    """Quotient of float tensors: symbolic only when it is whole."""
    quotient = divide(a, b) if b != 0 else None
    return quotient if quotient is not None and multiply(quotient, b) == a else None


_DIVIDE_INT = _arithmetic(_plain_divide, lambda a, b: divide(a, b) if b != 0 else None)
_DIVIDE_FLOAT = _arithmetic(lambda a, b: a / b if b else None, _exact_quotient)


def _rounding(function: Callable[[float], int]) -> Callable[..., Any]:
    return _lift(lambda a: a if isinstance(a, Poly) else float(function(a)), 1)


_UNARY: dict[str, Callable[..., Any]] = {
    "Abs": _lift(lambda a: (a if a.non_negative else None) if isinstance(a, Poly) else abs(a), 1),
    "Ceil": _rounding(math.ceil),
    "Floor": _rounding(math.floor),
    "Identity": _lift(lambda a: a, 1),
    "Neg": _lift(lambda a: multiply(a, -1) if isinstance(a, Poly) else -a, 1),
    "Not": _lift(lambda a: not a, 1),
}


# -- operators


def _array(result: Any) -> Value:
    """The result of an element function, which is a bare object for rank 0."""
    if isinstance(result, np.ndarray):
        return result
    value = np.empty((), object)
    value[()] = result
    return value


def _inputs(node: Node, known: Known) -> list[Value] | None:
    values = [known.value(name) for name in node.inputs]
    found = [value for value in values if value is not None]
    return found if len(found) == len(values) else None


def _elementwise(node: Node, known: Known) -> Value | None:
    operands = _inputs(node, known)
    if not operands:
        return None
    if len(operands) == 1:
        return _array(_UNARY[node.op_type](operands[0])) if node.op_type in _UNARY else operands[0]
    result = operands[0]
    for operand in operands[1:]:
        result = _array(_BINARY[node.op_type](result, operand))
    return result


def _mod(node: Node, known: Known) -> Value | None:
    return None if node.attrs.get("fmod") else _elementwise(node, known)


def _div(node: Node, known: Known) -> Value | None:
    operands, dtype = _inputs(node, known), known.dtype(node.inputs[0])
    if operands is None or dtype is None:
        return None
    return _array((_DIVIDE_INT if dtype.kind in "iu" else _DIVIDE_FLOAT)(*operands))


def _cast(node: Node, known: Known) -> Value | None:
    import onnx

    value = known.value(node.inputs[0])
    kind = onnx.helper.tensor_dtype_to_np_dtype(node.attrs["to"]).kind
    if value is None:
        return None

    def convert(item: Any) -> Any:
        if isinstance(item, Poly):
            return item if kind in "iuf" else None
        if kind == "b":
            return bool(item)
        return int(item) if kind in "iu" else float(item) if kind == "f" else None

    return _array(_lift(convert, 1)(value))


def _shape(node: Node, known: Known) -> Value | None:
    shape = known.shape(node.inputs[0])
    if shape is None:
        return None
    return as_value(list(shape[node.attrs.get("start", 0) : node.attrs.get("end")]))


def _size(node: Node, known: Known) -> Value | None:
    shape = known.shape(node.inputs[0])
    if shape is None:
        return None
    total: int | Poly = 1
    for dim in shape:
        total = multiply(total, dim)
    return _array(total)


def _gather(node: Node, known: Known) -> Value | None:
    data, indices = known.value(node.inputs[0]), known.value(node.inputs[1])
    if data is None or indices is None or ints_of(indices) is None:
        return None
    return _array(np.take(data, indices.astype(np.int64), axis=node.attrs.get("axis", 0)))


def _slice(node: Node, known: Known) -> Value | None:
    data = known.value(node.inputs[0])
    bounds = [ints_of(known.value(name)) if name else None for name in node.inputs[1:]]
    bounds += [None] * (4 - len(bounds))
    starts, ends, axes, steps = bounds
    if data is None or starts is None or ends is None:
        return None
    if (node.has_input(3) and axes is None) or (node.has_input(4) and steps is None):
        return None
    cuts = [slice(None)] * data.ndim
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        step = steps[i] if steps else 1
        size = data.shape[axes[i] if axes else i]
        # ONNX clamps, Python would take a stop of -size-1 as "before the first" only when it is None.
        stop = None if step < 0 and end < -size else end
        cuts[axes[i] if axes else i] = slice(start, stop, step)
    return data[tuple(cuts)]


def _concat(node: Node, known: Known) -> Value | None:
    parts: list[Value] = []
    for name in node.inputs:
        value = known.value(name)
        if value is None:
            shape = known.shape(name)
            if shape is None or len(shape) != 1 or not isinstance(shape[0], int):
                return None
            value = as_value([None] * shape[0])
        parts.append(value)
    return np.concatenate(parts, axis=node.attrs["axis"])


def _axes_of(node: Node, known: Known) -> list[int] | None:
    return ints_of(known.value(node.inputs[1])) if node.has_input(1) else None


def _unsqueeze(node: Node, known: Known) -> Value | None:
    value, axes = known.value(node.inputs[0]), _axes_of(node, known)
    return None if value is None or axes is None else np.expand_dims(value, tuple(axes))


def _squeeze(node: Node, known: Known) -> Value | None:
    value, axes = known.value(node.inputs[0]), _axes_of(node, known)
    if value is None or (axes is None and node.has_input(1)):
        return None
    return np.squeeze(value, None if axes is None else tuple(axes))


def _reshape(node: Node, known: Known) -> Value | None:
    value, target = known.value(node.inputs[0]), ints_of(known.value(node.inputs[1]))
    if value is None or target is None or (0 in target and node.attrs.get("allowzero")):
        return None
    return value.reshape([value.shape[i] if d == 0 else d for i, d in enumerate(target)])


def _transpose(node: Node, known: Known) -> Value | None:
    value = known.value(node.inputs[0])
    if value is None:
        return None
    turned: Value = np.transpose(value, node.attrs.get("perm"))
    return turned


def _expand(node: Node, known: Known) -> Value | None:
    value, target = known.value(node.inputs[0]), ints_of(known.value(node.inputs[1]))
    if value is None or target is None or math.prod(target) > VALUE_LIMIT:
        return None
    wide: Value = np.broadcast_to(value, np.broadcast_shapes(value.shape, tuple(target))).copy()
    return wide


def _constant_of_shape(node: Node, known: Known) -> Value | None:
    target = ints_of(known.value(node.inputs[0]))
    if target is None or math.prod(target) > VALUE_LIMIT:
        return None
    fill = np.asarray(node.attrs.get("value", np.zeros(1, np.float32))).reshape(-1)[0].item()
    result = np.empty(target, object)
    result[...] = fill
    return result


def _range(node: Node, known: Known) -> Value | None:
    dtype = known.dtype(node.inputs[0])
    parts = [ints_of(known.value(name)) for name in node.inputs]
    if dtype is None or dtype.kind not in "iu" or any(part is None for part in parts):
        return None
    start, limit, step = (part[0] for part in parts if part is not None)
    return as_value(list(range(start, limit, step)[: VALUE_LIMIT + 1]))


def _select(node: Node, known: Known) -> Value | None:
    operands = _inputs(node, known)
    return None if operands is None else _array(np.frompyfunc(_where, 3, 1)(*operands))


def _split(node: Node, known: Known) -> list[Value] | None:
    value = known.value(node.inputs[0])
    sizes = ints_of(known.value(node.inputs[1])) if node.has_input(1) else None
    if value is None or sizes is None:
        return None
    return np.split(value, np.cumsum(sizes)[:-1].tolist(), axis=node.attrs.get("axis", 0))


def _reduce(node: Node, known: Known) -> Value | None:
    value, axes = known.value(node.inputs[0]), _axes_of(node, known)
    if value is None or value.ndim != 1 or (axes is None and node.has_input(1)) or not value.size:
        return None
    if axes is None and node.attrs.get("noop_with_empty_axes"):
        return None
    function = _BINARY[{"Prod": "Mul", "Sum": "Add", "Max": "Max", "Min": "Min"}[node.op_type[6:]]]
    result = value[0]
    for item in value[1:]:
        result = function(result, item)
    return _array(result).reshape([1] * int(node.attrs.get("keepdims", 1)))


_RULES: dict[str, Callable[[Node, Known], Value | list[Value] | None]] = {
    **dict.fromkeys((*_BINARY, *_UNARY), _elementwise),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _div,
    "Expand": _expand,
    "Gather": _gather,
    "Mod": _mod,
    "Range": _range,
    "ReduceMax": _reduce,
    "ReduceMin": _reduce,
    "ReduceProd": _reduce,
    "ReduceSum": _reduce,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _select,
}
