"""Conv and ConvTranspose."""

from __future__ import annotations

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
_RNG = np.random.default_rng(0)


def _f(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape).astype(np.float32)


_CONV: list[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ("asymmetric-pads", (2, 3, 8, 9), (5, 3, 3, 3), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ("pointwise", (2, 3, 8, 9), (5, 3, 1, 1), {}),
    ("depthwise-dilated", (2, 4, 8, 9), (4, 1, 3, 3), {"group": 4, "pads": [1] * 4, "dilations": [2, 2]}),
    ("depth-multiplier", (2, 4, 8, 9), (8, 1, 3, 3), {"group": 4}),
    ("two-groups", (2, 4, 8, 9), (6, 2, 3, 3), {"group": 2}),
    ("1d-groups", (2, 4, 8), (6, 2, 3), {"group": 2}),
    ("1d-padded", (2, 4, 8), (6, 4, 4), {"pads": [2, 1], "strides": [3]}),
    ("same-lower", (2, 3, 8, 9), (5, 3, 4, 2), {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    ("same-upper", (2, 3, 8, 9), (5, 3, 4, 2), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    ("valid", (2, 3, 8, 9), (5, 3, 4, 2), {"auto_pad": "VALID"}),
    ("3d", (2, 4, 5, 6, 7), (6, 4, 3, 3, 3), {"pads": [1] * 6}),
    ("3d-planes", (2, 4, 5, 6, 7), (6, 4, 1, 3, 3), {}),
    (
        "3d-groups",
        (2, 4, 5, 6, 7),
        (6, 2, 2, 3, 3),
        {"group": 2, "strides": [2, 1, 1], "dilations": [2, 1, 1], "pads": [1, 0, 1, 2, 1, 0]},
    ),
]


def _conv_cases() -> Iterator[Case]:
    for label, shape, kernel, attrs in _CONV:
        x, w, bias = _f(*shape), _f(*kernel), _f(kernel[0])
        options = {"oracle": "onnxruntime", "rtol": 1e-3, **attrs}
        yield case(label, "Conv", {"x": x}, {"w": w, "b": bias}, **options)
        yield case(f"{label}-no-bias", "Conv", {"x": x}, {"w": w}, **options)
        yield case(
            f"{label}-run-time-bias", "Conv", {"x": x, "b": bias}, {"w": w}, order=["x", "w", "b"], **options
        )
        if attrs.get("auto_pad") != "SAME_LOWER":
            shapes = {"x": symbols(x, keep=[1])}
            yield case(f"{label}-symbolic", "Conv", {"x": x}, {"w": w, "b": bias}, shapes=shapes, **options)
        if len(shape) < 5:
            yield case(f"{label}-run-time-weight", "Conv", {"x": x, "w": w, "b": bias}, **options)
            yield case(f"{label}-run-time-weight-no-bias", "Conv", {"x": x, "w": w}, **options)


@parametrize(_conv_cases())
def test_conv(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


_TRANSPOSED: list[tuple[str, tuple[int, ...], tuple[int, ...], int, dict[str, Any]]] = [
    ("asymmetric-pads", (2, 3, 4, 5), (3, 6, 3, 3), 1, {"strides": [2, 2], "pads": [1, 0, 0, 1]}),
    ("output-padding", (2, 3, 4, 5), (3, 6, 3, 3), 1, {"strides": [2, 3], "output_padding": [1, 2]}),
    ("two-groups", (2, 4, 4, 5), (4, 3, 3, 3), 2, {"strides": [2, 2]}),
    ("depthwise-dilated", (2, 4, 4, 5), (4, 1, 3, 3), 4, {"strides": [2, 2], "dilations": [2, 1]}),
    ("depth-multiplier", (2, 4, 4, 5), (4, 2, 3, 3), 4, {"strides": [2, 2]}),
    ("output-shape", (1, 3, 3, 3), (3, 2, 3, 3), 1, {"strides": [3, 2], "output_shape": [10, 8]}),
    ("same-upper", (1, 3, 3, 3), (3, 2, 3, 3), 1, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("same-lower", (1, 3, 3, 3), (3, 2, 4, 3), 1, {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ("gaps", (1, 3, 3, 3), (3, 1, 2, 2), 1, {"strides": [4, 4]}),
    ("1d", (1, 3, 5), (3, 2, 3), 1, {"strides": [2]}),
    ("3d", (1, 3, 3, 4, 5), (3, 2, 3, 3, 3), 1, {}),
    (
        "3d-groups",
        (2, 4, 3, 4, 5),
        (4, 2, 3, 3, 3),
        2,
        {"strides": [2, 3, 1], "pads": [1, 0, 1, 0, 1, 1], "output_padding": [1, 1, 0]},
    ),
]


def _transposed_cases() -> Iterator[Case]:
    for label, shape, kernel, group, attrs in _TRANSPOSED:
        x, w, bias = _f(*shape), _f(*kernel), _f(kernel[1] * group)
        options = {"oracle": "onnxruntime", "rtol": 1e-3, "group": group, **attrs}
        yield case(label, "ConvTranspose", {"x": x}, {"w": w, "b": bias}, **options)
        yield case(f"{label}-no-bias", "ConvTranspose", {"x": x}, {"w": w}, **options)
        yield case(
            f"{label}-run-time-bias",
            "ConvTranspose",
            {"x": x, "b": bias},
            {"w": w},
            order=["x", "w", "b"],
            **options,
        )
        if len(shape) < 5:
            yield case(f"{label}-run-time-weight", "ConvTranspose", {"x": x, "w": w, "b": bias}, **options)


@parametrize(_transposed_cases())
def test_conv_transpose(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


def test_same_lower_over_unknown_sizes_is_refused() -> None:
    x = _f(1, 3, 8, 8)
    proto = single(
        "Conv",
        {"x": x},
        {"w": _f(4, 3, 2, 2)},
        auto_pad="SAME_LOWER",
        strides=[2, 2],
        shapes={"x": symbols(x, keep=[1])},
    )
    with pytest.raises(UnsupportedError, match="SAME_LOWER"):
        convert_onnx(proto)


def test_groups_become_one_convolution_each() -> None:
    model = convert_onnx(single("Conv", {"x": _f(1, 4, 5, 5)}, {"w": _f(6, 2, 3, 3)}, group=2))
    names = [op.name for op in model.ops if op.type == "Convolution"]
    assert names == ["y__group__0", "y__group__1"]


def test_depthwise_is_one_operator() -> None:
    model = convert_onnx(single("Conv", {"x": _f(1, 4, 5, 5)}, {"w": _f(4, 1, 3, 3)}, group=4))
    assert [op.type for op in model.ops if "Conv" in op.type and op.type != "ConvertTensor"] == [
        "ConvolutionDepthwise"
    ]
