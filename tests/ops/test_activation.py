"""Operators of one operand, activations, softmax family."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from mnnq.convert import convert_onnx
from tests.builders import single
from tests.ops.cases import Case, case, parametrize, run, symbols
from tests.peers.mnn_runtime import MnnRuntime

pytestmark = pytest.mark.peer
_RNG = np.random.default_rng(3)


def _f(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape).astype(np.float32)


_TIES = np.array([0, -0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.5, 2**23 + 1, 2**22 + 0.5], np.float32)
_X = np.concatenate([_f(40) * 4, _TIES]).reshape(5, 10)
_SPECIAL = np.array([np.nan, np.inf, -np.inf, 1, 0, -3], np.float32)

_PLAIN = [
    "Abs",
    "Neg",
    "Sign",
    "Floor",
    "Ceil",
    "Round",
    "Sigmoid",
    "Tanh",
    "Erf",
    "HardSwish",
    "Atan",
    "Relu",
    "LeakyRelu",
    "Elu",
    "Selu",
    "Celu",
    "ThresholdedRelu",
    "HardSigmoid",
    "Gelu",
    "Mish",
    "Softplus",
    "Softsign",
    "Shrink",
    "IsNaN",
    "IsInf",
]
_DOMAINS = {
    "Sin": (-10, 10), "Cos": (-10, 10), "Tan": (-1.4, 1.4), "Sinh": (-8, 8), "Cosh": (-8, 8), "Exp": (-10, 10),
    "Asinh": (-10, 10), "Asin": (-0.95, 0.95), "Acos": (-0.95, 0.95), "Atanh": (-0.95, 0.95), "Acosh": (1, 9),
    "Sqrt": (0, 9), "Log": (0.1, 9), "Reciprocal": (0.1, 9),
}  # fmt: skip


def _unary_cases() -> Iterator[Case]:
    for op in _PLAIN:
        yield case("plain", op, {"x": _X}, opset=22)
        yield case("symbolic", op, {"x": _X}, opset=22, shapes={"x": symbols(_X)})
    for op, (low, high) in _DOMAINS.items():
        yield case("domain", op, {"x": _RNG.uniform(low, high, 50).astype(np.float32)}, opset=22)
    for op in ("Abs", "Neg", "Sign", "Relu"):
        yield case("int32", op, {"x": np.array([-3, 0, 7], np.int32)}, opset=22)
    yield case("tanh", "Gelu", {"x": _X}, opset=20, approximate="tanh")
    yield case("alpha", "Elu", {"x": _X}, alpha=2.0)
    yield case("alpha", "Celu", {"x": _X}, alpha=2.0)
    yield case("attributes", "Selu", {"x": _X}, alpha=2.0, gamma=3.0)
    yield case("alpha", "LeakyRelu", {"x": _X}, alpha=0.3)
    yield case("alpha", "ThresholdedRelu", {"x": _X}, alpha=2.0)
    yield case("attributes", "Shrink", {"x": _X}, lambd=1.5, bias=1.0)
    yield case("attributes", "HardSigmoid", {"x": _X}, alpha=0.3, beta=0.6)
    yield case("plain", "Swish", {"x": _X}, opset=24)
    yield case("alpha", "Swish", {"x": _X}, opset=24, alpha=1.5)
    yield case("special", "IsNaN", {"x": _SPECIAL}, opset=20)
    for signs in (
        {},
        {"detect_negative": 0},
        {"detect_positive": 0},
        {"detect_negative": 0, "detect_positive": 0},
    ):
        yield case(f"special-{signs}", "IsInf", {"x": _SPECIAL}, opset=20, **signs)


@parametrize(_unary_cases())
def test_unary(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


def _prelu_cases() -> Iterator[Case]:
    x = _f(5, 2, 3, 4)
    for shape in ((1,), (), (4,), (3, 4), (3, 1), (2, 3, 4), (1, 3, 1), (2, 1, 1), (1, 2, 1, 1)):
        slope = _f(*shape)
        yield case(str(shape), "PRelu", {"x": x}, {"s": slope}, opset=16)
        yield case(f"{shape}-run-time", "PRelu", {"x": x, "s": slope}, opset=16)


@parametrize(_prelu_cases())
def test_prelu(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


def _clip_cases() -> Iterator[Case]:
    for low, high in ((-1, 1), (None, 1), (-1, None), (2, -2), (None, None), (0, 6)):
        for dtype in (np.float32, np.int32, np.int64, np.uint8, np.int8):
            x = (np.abs(_X) % 100 if dtype is np.uint8 else np.clip(_X, -100, 100)).astype(dtype)
            bounds = {}
            for name, value in (("low", low), ("high", high)):
                if value is not None:
                    bounds[name] = np.array(abs(value) if dtype is np.uint8 else value, dtype)
            order = ["x", *(name if name in bounds else "" for name in ("low", "high"))]
            label = f"{low}-{high}-{dtype.__name__}"
            yield case(label, "Clip", {"x": x}, bounds, order=order, opset=13)
            yield case(f"{label}-run-time", "Clip", {"x": x, **bounds}, order=order, opset=13)
    yield case("attributes", "Clip", {"x": _X}, opset=7, min=-1.0, max=2.0)


@parametrize(_clip_cases())
def test_clip(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


def _softmax_cases() -> Iterator[Case]:
    x = _f(3, 4, 5)
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        for axis in (0, 1, 2, -1, -2):
            for opset in (11, 13):
                yield case(f"{axis}-{opset}", op, {"x": x}, axis=axis, opset=opset, oracle="onnxruntime")
            yield case(f"{axis}-symbolic", op, {"x": x}, axis=axis, shapes={"x": symbols(x)})
    yield case("large", "LogSoftmax", {"x": x * np.float32(1e4)}, axis=-1, oracle="onnxruntime")


@parametrize(_softmax_cases())
def test_softmax_family(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


def test_exact_gelu_is_one_operator() -> None:
    model = convert_onnx(single("Gelu", {"x": _X}, opset=20))
    assert [op.params.get("opType") for op in model.ops if op.type == "UnaryOp"] == ["GELU_STANDARD"]
