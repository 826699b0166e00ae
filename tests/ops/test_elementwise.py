"""Operators of several operands, and Cast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from mnnq.convert import convert_onnx
from mnnq.errors import UnsupportedError
from mnnq.frontends.onnx.lowering import lower
from mnnq.ir.graph import Graph, Node, ValueInfo
from tests.builders import single
from tests.ops.cases import Case, case, parametrize, run, symbols
from tests.peers.mnn_runtime import MnnRuntime

pytestmark = pytest.mark.peer
_RNG = np.random.default_rng(2)
_TYPES = (np.float32, np.int32, np.int64, np.uint8, np.int8, np.int16, np.uint16)
_SHAPES = [((3, 4), (3, 4)), ((3, 4), (4,)), ((1, 4), (3, 1)), ((), (3, 4)), ((2, 1, 3, 4, 5), (2, 1, 1, 5))]


def _data(dtype: Any, *shape: int, low: int = -20, high: int = 20) -> np.ndarray:
    kind = np.dtype(dtype).kind
    if kind == "b":
        return _RNG.integers(0, 2, shape).astype(bool)
    if kind == "f":
        return _RNG.standard_normal(shape).astype(dtype)
    return _RNG.integers(0 if kind == "u" else low, high, shape).astype(dtype)


def _arithmetic_cases() -> Iterator[Case]:
    operators = (
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Mod",
        "Equal",
        "Greater",
        "Less",
        "GreaterOrEqual",
        "LessOrEqual",
    )
    for op in operators:
        for dtype in _TYPES:
            for first, second in _SHAPES:
                a, b = _data(dtype, *first), _data(dtype, *second)
                if op in ("Div", "Mod"):
                    b = np.where(b == 0, np.asarray(3, dtype), b).astype(dtype)
                attrs = {"fmod": 1} if op == "Mod" and dtype is np.float32 else {}
                yield case(f"{dtype.__name__}-{first}-{second}", op, {"a": a, "b": b}, **attrs)
    u8, i8 = np.array([200, 100, 50], np.uint8), np.array([100, -100, 127], np.int8)
    for op in ("Add", "Sub", "Mul"):
        yield case("uint8-wraps", op, {"a": u8, "b": u8[::-1].copy()})
        yield case("int8-wraps", op, {"a": i8, "b": i8})
    signs = [np.array([-7, 7, -7, 7, 6]), np.array([2, -2, -2, 2, 3])]
    for fmod in (0, 1):
        for dtype in (np.int32, np.int64, np.int8):
            a, b = (v.astype(dtype) for v in signs)
            yield case(f"signs-{fmod}-{dtype.__name__}", "Mod", {"a": a, "b": b}, fmod=fmod)
    special = np.array([0.0, -0.0, np.nan, -1, -2, np.inf], np.float32)
    other = np.array([-0.0, 0.0, np.nan, -2, -1, np.inf], np.float32)
    for op in operators[5:]:
        yield case("special", op, {"a": special, "b": other})
        rows = {"a": symbols(np.ones((1, 4))), "b": symbols(np.ones((3, 1)))}
        rows["b"] = ["e0", "e1"]
        inputs = {"a": _data(np.float32, 1, 4), "b": _data(np.float32, 3, 1)}
        yield case("symbolic-both-broadcast", op, inputs, shapes=rows)


@parametrize(_arithmetic_cases())
def test_arithmetic_and_comparison(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


def _power_cases() -> Iterator[Case]:
    base = np.abs(_data(np.float32, 3, 4)) + np.float32(0.1)
    for exponent in (2.0, 0.5, 3.0, -1.0, 0.0, 1.7):
        yield case(f"constant-{exponent}", "Pow", {"a": base}, {"e": np.float32(exponent)}, rtol=1e-4)
        whole = np.array(int(exponent), np.int64)
        yield case(f"int-exponent-{exponent}", "Pow", {"a": base}, {"e": whole}, opset=15)
    numbers = np.array([1, 2, 3, 5], np.int32)
    yield case("int-base", "Pow", {"a": numbers, "b": np.array([3, 0.5, 2.5, 3], np.float32)}, opset=15)
    yield case("int-base-constant", "Pow", {"a": numbers}, {"b": np.array([3], np.float32)}, opset=15)
    yield case("both-int", "Pow", {"a": numbers, "b": np.array([3, 0, 2, 4], np.int64)}, opset=15)


@parametrize(_power_cases())
def test_power(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


def _logic_cases() -> Iterator[Case]:
    for op in ("And", "Or", "Xor", "Equal"):
        yield case("bool", op, {"a": _data(bool, 3, 4), "b": _data(bool, 4)})
    yield case("bool", "Not", {"a": _data(bool, 3, 4)})
    for dtype in (np.int32, np.uint8, np.int8, np.uint16):
        for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
            yield case(dtype.__name__, op, {"a": _data(dtype, 3, 4), "b": _data(dtype, 4)}, opset=18)
        yield case(dtype.__name__, "BitwiseNot", {"a": _data(dtype, 3, 4)}, opset=18)
    wide = np.array([2**31 - 1, -(2**31), 2**30 + 5], np.int32)
    yield case("wide-constant", "BitwiseXor", {"a": wide}, {"b": wide[::-1].copy()}, opset=18)
    for dtype in (np.uint8, np.uint16, np.uint32, np.uint64):
        values, amounts = np.array([16, 4, 1, 255], dtype), np.array([1, 2, 3, 1], dtype)
        for direction in ("LEFT", "RIGHT"):
            yield case(
                f"{direction}-{dtype.__name__}", "BitShift", {"a": values, "b": amounts}, direction=direction
            )
            label = f"{direction}-{dtype.__name__}-constant"
            yield case(label, "BitShift", {"a": values}, {"b": amounts}, direction=direction)


@parametrize(_logic_cases())
def test_logic_and_bits(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


_WHERE = [
    ((3, 4), (3, 4), (3, 4)),
    ((3, 1), (1, 4), (3, 4)),
    ((3, 4), (3, 4), (4,)),
    ((3, 4), (3, 4), ()),
    ((3, 4), (4,), (3, 1)),
    ((2, 3, 4), (3, 4), (2, 1, 1)),
    ((1,), (3, 4), (4,)),
    ((), (3, 1), (1, 4)),
    ((4,), (4,), (3, 1)),
]


def _where_cases() -> Iterator[Case]:
    for shapes in _WHERE:
        for dtype in (np.float32, np.int64, bool):
            c, a, b = (_data(t, *shape) for t, shape in zip((bool, dtype, dtype), shapes, strict=True))
            label = f"{shapes}-{dtype.__name__}"
            yield case(label, "Where", {"c": c, "a": a, "b": b})
            yield case(f"{label}-constant", "Where", {"c": c}, {"a": a, "b": b})
            named = {n: [f"{n}{i}" for i in range(v.ndim)] for n, v in (("c", c), ("a", a), ("b", b))}
            yield case(f"{label}-symbolic", "Where", {"c": c, "a": a, "b": b}, shapes=named)


@parametrize(_where_cases())
def test_where(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


def _variadic_cases() -> Iterator[Case]:
    shapes = [(3, 4), (4,), (3, 1), ()]
    for op in ("Min", "Max", "Sum", "Mean"):
        for count in range(1, 5):
            yield case(str(count), op, {f"x{i}": _data(np.float32, *shapes[i]) for i in range(count)})
    for op in ("Min", "Max"):
        for dtype in (np.uint8, np.int8, np.int64):
            yield case(dtype.__name__, op, {"a": _data(dtype, 3, 4), "b": _data(dtype, 4)})


@parametrize(_variadic_cases())
def test_variadic(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


_SOURCES = [
    np.array([-2.7, -0.5, 0, 0.5, 3.9, 250.3, -100], np.float32),
    np.array([-300, -1, 0, 1, 200, 255, 256, 65000], np.int32),
    np.array([-300, -1, 0, 1, 200, 255, 256, 65000], np.int64),
    np.array([0, 1, 127, 200, 255], np.uint8),
    np.array([-128, -1, 0, 127], np.int8),
    np.array([True, False]),
]
_TARGETS = ("FLOAT", "DOUBLE", "INT32", "INT64", "UINT8", "INT8", "INT16", "UINT16", "BOOL", "FLOAT16")


def _cast_cases() -> Iterator[Case]:
    for source in _SOURCES:
        for name in _TARGETS:
            x = source
            if x.dtype.kind == "f" and name in ("UINT8", "UINT16", "INT8"):
                x = np.clip(x, 0, 100)  # Beyond the range the conversion is undefined.
            yield case(f"{source.dtype}-{name}", "Cast", {"x": x}, to=getattr(TensorProto, name), rtol=1e-3)
    for like in (np.array([1], np.int64), np.array([True]), np.array([1.0], np.float32)):
        yield case(str(like.dtype), "CastLike", {"x": _data(np.float32, 5) * 5, "z": like})


@parametrize(_cast_cases())
def test_cast(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


def test_float8_is_refused() -> None:
    proto = single("Cast", {"x": _data(np.float32, 3)}, to=TensorProto.FLOAT8E4M3FN, opset=19)
    with pytest.raises(UnsupportedError, match="float8"):
        convert_onnx(proto)


def test_unknown_attribute_is_refused() -> None:
    graph = Graph(
        "test", 23, inputs=["a"], outputs=["y"], values={"a": ValueInfo(np.dtype(np.float32), (3,))}
    )
    graph.nodes = [Node("Add", ["a", "a"], ["y"], {"surprise": 1})]
    with pytest.raises(UnsupportedError, match="surprise"):
        lower(graph)
