"""Quantized operators on run-time tensors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.ops.cases import Case, case, parametrize, run
from tests.peers.mnn_runtime import MnnRuntime

pytestmark = pytest.mark.peer
_RNG = np.random.default_rng(8)


def _f(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape).astype(np.float32)


def _u8(*shape: int) -> np.ndarray:
    return _RNG.integers(0, 256, shape).astype(np.uint8)


def _i8(*shape: int) -> np.ndarray:
    return _RNG.integers(-128, 128, shape).astype(np.int8)


def _scale_cases() -> Iterator[Case]:
    x = _f(3, 4, 5) * 50
    for dtype in (np.uint8, np.int8, np.int16, np.uint16):
        one = {"s": np.float32(0.37), "z": np.array(3, dtype)}
        many = {"s": np.abs(_f(4)) + np.float32(0.1), "z": np.arange(4).astype(dtype)}
        codes = _RNG.integers(0, 100, (3, 4, 5)).astype(dtype)
        for label, parameters in (("tensor", one), ("axis", many)):
            name = f"{label}-{dtype.__name__}"
            yield case(name, "QuantizeLinear", {"x": x}, parameters, opset=21)
            yield case(f"{name}-run-time", "QuantizeLinear", {"x": x, **parameters}, opset=21)
            yield case(name, "DequantizeLinear", {"x": codes}, parameters, opset=21)
            yield case(f"{name}-run-time", "DequantizeLinear", {"x": codes, **parameters}, opset=21)
    ties = np.arange(-10, 10).astype(np.float32) * np.float32(0.5)
    yield case("ties", "QuantizeLinear", {"x": ties}, {"s": np.float32(1), "z": np.int8(0)}, opset=19)
    ends = np.array([1e6, -1e6, 300, -300, 254.5, 0], np.float32)
    yield case("ends", "QuantizeLinear", {"x": ends}, {"s": np.float32(1), "z": np.uint8(128)}, opset=19)
    yield case("no-zero-point", "QuantizeLinear", {"x": _f(10) * 50}, {"s": np.float32(1)}, opset=19)
    blocks = {"s": np.abs(_f(2, 3)) + np.float32(0.1), "z": _u8(2, 3)}
    yield case("blocks", "QuantizeLinear", {"x": _f(2, 6) * 50}, blocks, opset=21, axis=1, block_size=2)
    yield case("blocks", "DequantizeLinear", {"x": _u8(2, 6)}, blocks, opset=21, axis=1, block_size=2)
    for label, values in (
        ("mixed", _f(3, 4)),
        ("positive", np.abs(_f(3, 4))),
        ("negative", -np.abs(_f(2, 3, 4))),
    ):
        yield case(label, "DynamicQuantizeLinear", {"x": values}, n_outputs=3)
    yield case("zero", "DynamicQuantizeLinear", {"x": np.zeros(3, np.float32)}, n_outputs=3)


@parametrize(_scale_cases())
def test_quantize_and_dequantize(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


def _product_cases() -> Iterator[Case]:
    for depth in (3, 64, 65, 200):
        a, b = _u8(5, depth), _i8(depth, 4)
        zeros = {"za": np.uint8(12), "zb": np.int8(3)}
        yield case(f"{depth}", "MatMulInteger", {"a": a, "b": b}, zeros)
        row = {"b": b, "za": np.uint8(12), "zb": _i8(4)}
        yield case(f"{depth}-columns", "MatMulInteger", {"a": _u8(2, 5, depth)}, row, oracle="onnxruntime")
    yield case("no-zero-points", "MatMulInteger", {"a": _u8(5, 7), "b": _u8(7, 4)})
    full = {"a": np.full((2, 200), 255, np.uint8), "b": np.full((200, 2), 255, np.uint8)}
    yield case("largest", "MatMulInteger", full)
    scales = {"as": np.float32(0.01), "az": np.uint8(113), "bs": np.float32(0.007), "bz": np.uint8(114)}
    scales |= {"ys": np.float32(0.0107), "yz": np.uint8(118)}
    order = ["a", "as", "az", "b", "bs", "bz", "ys", "yz"]
    inputs = {"a": _u8(2, 4), "b": _u8(4, 3)}
    yield case("tensor", "QLinearMatMul", inputs, scales, order=order, oracle="onnxruntime")


def _conv_cases() -> Iterator[Case]:
    wide = {"w": _i8(4, 70, 3, 3), "xz": np.uint8(7)}
    yield case("padded", "ConvInteger", {"x": _u8(1, 70, 5, 6)}, wide, pads=[1] * 4, oracle="onnxruntime")
    small = {"w": _u8(4, 3, 3, 2), "xz": np.uint8(7), "wz": np.uint8(100)}
    yield case("strided", "ConvInteger", {"x": _u8(2, 3, 7, 6)}, small, strides=[2, 1], oracle="onnxruntime")
    inputs = {"x": _u8(2, 3, 7, 6), "w": _u8(4, 3, 3, 2)}
    yield case("run-time-weight", "ConvInteger", inputs, oracle="onnxruntime")
    constants = {
        "xs": np.float32(0.01), "xz": np.uint8(120), "w": _i8(4, 3, 3, 3),
        "ws": np.abs(_f(4)) * np.float32(0.01) + np.float32(0.001), "wz": np.zeros(4, np.int8),
        "ys": np.float32(0.05), "yz": np.uint8(128), "b": _RNG.integers(-1000, 1000, 4).astype(np.int32),
    }  # fmt: skip
    for attrs in ({}, {"pads": [1] * 4, "strides": [2, 2]}):
        yield case(
            str(attrs), "QLinearConv", {"x": _u8(1, 3, 7, 7)}, constants, oracle="onnxruntime", **attrs
        )


@parametrize([*_product_cases(), *_conv_cases()])
def test_integer_products(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)
