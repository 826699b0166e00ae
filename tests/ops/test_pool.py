"""Pooling."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mnnq.convert import convert_onnx
from mnnq.errors import UnsupportedError
from tests.builders import single
from tests.ops.cases import Case, case, parametrize, run, symbols
from tests.peers.mnn_runtime import MnnRuntime

pytestmark = pytest.mark.peer
_RNG = np.random.default_rng(5)
_SHAPES = {1: (2, 3, 11), 2: (2, 3, 9, 10), 3: (2, 2, 7, 8, 9)}


def _f(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape).astype(np.float32)


def _window_cases() -> Iterator[Case]:
    choices = itertools.product(
        ("MaxPool", "AveragePool", "LpPool"), (1, 2, 3), (2, 3), (None, 1, 2, 3), (None, (1, 1), (0, 1), (1, 0)), (0, 1),
        (None, 2),
    )  # fmt: skip
    for op, rank, kernel, stride, pads, ceil, dilation in choices:
        if (rank == 3 and (kernel == 2 or stride in (None, 3))) or (op == "LpPool" and kernel == 3):
            continue
        attrs: dict[str, Any] = {"kernel_shape": [kernel] * rank, "ceil_mode": ceil}
        if stride:
            attrs["strides"] = [stride] * rank
        if pads:
            attrs["pads"] = [pads[0]] * rank + [pads[1]] * rank
        if dilation:
            attrs["dilations"] = [dilation] * rank
        counted = (0, 1) if op == "AveragePool" else (None,)
        for include in counted:
            more = {} if include is None else {"count_include_pad": include}
            label = f"{rank}d-k{kernel}-s{stride}-p{pads}-ceil{ceil}-d{dilation}-{include}"
            options = {"opset": 12 if op == "MaxPool" else 22, "oracle": "onnxruntime", "rtol": 1e-3}
            yield case(label, op, {"x": _f(*_SHAPES[rank])}, **options, **attrs, **more)


@parametrize(_window_cases())
def test_windows(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


def _other_cases() -> Iterator[Case]:
    x = _f(2, 3, 9, 10)
    every = {"x": symbols(x)}
    for op in ("MaxPool", "AveragePool"):
        for mode, (kernel, strides) in itertools.product(
            ("SAME_UPPER", "SAME_LOWER", "VALID"), (([3, 2], [2, 2]), ([2, 2], [1, 1]), ([3, 3], [2, 3]))
        ):
            attrs = {"kernel_shape": kernel, "strides": strides, "auto_pad": mode, "oracle": "onnxruntime"}
            yield case(f"{mode}-{kernel}-{strides}", op, {"x": x}, **attrs)
            if mode != "SAME_LOWER":
                yield case(f"{mode}-{kernel}-{strides}-symbolic", op, {"x": x}, shapes=every, **attrs)
        window = {"kernel_shape": [3, 3], "strides": [2, 2], "oracle": "onnxruntime"}
        yield case("symbolic", op, {"x": x}, pads=[1] * 4, shapes=every, **window)
        for pad in (0, 1):
            yield case(
                f"symbolic-ceil-{pad}", op, {"x": x}, pads=[pad] * 4, ceil_mode=1, shapes=every, **window
            )
        for shape in ((2, 3, 7), (2, 3, 7, 8, 9)):
            y, rank = _f(*shape), len(shape) - 2
            attrs = {"kernel_shape": [3] * rank, "strides": [2] * rank, "pads": [1] * 2 * rank}
            yield case(
                f"symbolic-{rank}d", op, {"x": y}, shapes={"x": symbols(y)}, oracle="onnxruntime", **attrs
            )
    counted = {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1, "oracle": "onnxruntime"}
    yield case("symbolic-counted", "AveragePool", {"x": x}, shapes=every, **counted)
    pixels = _RNG.integers(0, 255, (2, 3, 8, 8)).astype(np.uint8)
    yield case("uint8", "MaxPool", {"x": pixels}, opset=12, kernel_shape=[3, 3], oracle="onnxruntime")
    for p in (1, 3):
        yield case(f"p{p}", "LpPool", {"x": x}, p=p, kernel_shape=[3, 3], oracle="onnxruntime", rtol=1e-3)
        yield case(f"p{p}", "GlobalLpPool", {"x": x}, p=p, oracle="onnxruntime", rtol=1e-3)
    for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
        for shape in _SHAPES.values():
            y = _f(*shape)
            yield case(str(shape), op, {"x": y}, oracle="onnxruntime", rtol=1e-3)
            yield case(
                f"{shape}-symbolic", op, {"x": y}, shapes={"x": symbols(y)}, oracle="onnxruntime", rtol=1e-3
            )


@parametrize(_other_cases())
def test_padding_by_name_and_unknown_sizes(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


def _index_cases() -> Iterator[Case]:
    x = _f(2, 3, 9, 10)
    windows: list[dict[str, Any]] = [
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [3, 2], "strides": [1, 2], "pads": [1, 1, 0, 0], "ceil_mode": 1},
    ]
    for order, attrs in itertools.product((0, 1), windows):
        options = {"n_outputs": 2, "opset": 12, "oracle": "onnxruntime", "storage_order": order}
        yield case(f"{order}-{attrs}", "MaxPool", {"x": x}, **options, **attrs)
    attrs = {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}
    yield case("1d", "MaxPool", {"x": _f(2, 3, 8)}, n_outputs=2, opset=12, oracle="onnxruntime", **attrs)


@parametrize(_index_cases())
def test_indices(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


def test_ceil_mode_that_could_start_in_the_padding_is_refused() -> None:
    x = _f(1, 1, 8, 8)
    proto = single(
        "MaxPool", {"x": x}, shapes={"x": symbols(x)}, kernel_shape=[2, 2], strides=[3, 3], ceil_mode=1
    )
    with pytest.raises(UnsupportedError, match="ceil_mode"):
        convert_onnx(proto)
