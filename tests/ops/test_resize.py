"""Resize in every mode, coordinate transformation and form."""

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
_RNG = np.random.default_rng(6)
_MODES = ("nearest", "linear", "cubic")
_COORDINATES = ("align_corners", "half_pixel", "pytorch_half_pixel", "asymmetric", "half_pixel_symmetric")
_NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def _f(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape).astype(np.float32)


def _by_scale(label: str, x: np.ndarray, scales: list[float], **options: Any) -> Case:
    constants = {"scales": np.array(scales, np.float32)}
    options = {"opset": 19, "rtol": 1e-3, **options}
    return case(label, "Resize", {"x": x}, constants, order=["x", "", "scales"], **options)


def _by_size(label: str, x: np.ndarray, sizes: list[int], **options: Any) -> Case:
    options = {"opset": 19, "rtol": 1e-3, **options}
    constants = {"sizes": np.array(sizes, np.int64)}
    return case(label, "Resize", {"x": x}, constants, order=["x", "", "", "sizes"], **options)


def _mode_cases() -> Iterator[Case]:
    x = _f(2, 3, 7, 9)
    for mode, coordinates in itertools.product(_MODES, _COORDINATES):
        for nearest in _NEAREST if mode == "nearest" else (None,):
            attrs: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinates}
            if nearest:
                attrs["nearest_mode"] = nearest
            label = f"{mode}-{coordinates}-{nearest}"
            # The reference evaluator takes the wrong neighbours where rounding noise hits an integer position.
            noisy = coordinates == "half_pixel_symmetric"
            for height, width in ((2, 2), (0.5, 0.5), (1.75, 0.625), (3, 1)):
                if noisy and width == 0.625:
                    continue  # A tie that float32 and float64 decide differently.
                oracle = "onnxruntime" if noisy else "reference"
                yield _by_scale(
                    f"{label}-x{height}-{width}", x, [1, 1, height, width], oracle=oracle, **attrs
                )
            for height, width in ((14, 18), (4, 5), (1, 1), (11, 6)):
                yield _by_size(f"{label}-{height}-{width}", x, [2, 3, height, width], **attrs)
            exact = nearest in (None, "floor", "round_prefer_floor") and not noisy
            if exact and not (mode == "cubic" and "half" in coordinates):
                yield _by_scale(f"{label}-symbolic", x, [1, 1, 2, 2], shapes={"x": symbols(x)}, **attrs)


@parametrize(_mode_cases())
def test_modes(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


def _form_cases() -> Iterator[Case]:
    x = _f(2, 3, 7, 9)
    for mode in _MODES:
        yield _by_size(f"{mode}-axes", x, [5, 12], axes=[2, -1], mode=mode, oracle="onnxruntime")
        yield _by_size(
            f"{mode}-axes-symbolic", x, [14, 18], axes=[2, 3], mode=mode, shapes={"x": symbols(x, [2, 3])}
        )
        for policy in ("not_larger", "not_smaller"):
            yield _by_size(
                f"{mode}-{policy}", x, [5, 12], axes=[2, 3], mode=mode, keep_aspect_ratio_policy=policy
            )
        for shape in ((9,), (3, 9), (2, 3, 9), (2, 3, 4, 5, 6)):
            yield _by_scale(f"{mode}-{shape}", _f(*shape), [1.0] * (len(shape) - 1) + [2], mode=mode)
        yield _by_scale(f"{mode}-volume", _f(1, 2, 4, 5, 6), [1, 1, 2, 2, 1.5], mode=mode)
        for begin, end in ((0.4, 0.6), (-0.4, 1.6)):
            roi = np.array([0, 0, begin, 0.6, 1, 1, end, 0.8], np.float32)
            constants = {"roi": roi, "sizes": np.array([2, 3, 3, 5])}
            attrs = {
                "coordinate_transformation_mode": "tf_crop_and_resize",
                "extrapolation_value": 10.0,
                "mode": mode,
            }
            order = ["x", "roi", "", "sizes"]
            yield case(
                f"{mode}-crop-{begin}",
                "Resize",
                {"x": x},
                constants,
                order=order,
                opset=19,
                rtol=1e-3,
                **attrs,
            )
        if mode != "nearest":
            for height, width in ((0.5, 0.5), (0.3, 0.7), (2, 0.6)):
                scales = [1, 1, height, width]
                yield _by_scale(f"{mode}-antialias-{height}-{width}", x, scales, mode=mode, antialias=1)
                yield _by_scale(f"{mode}-exclude-{height}-{width}", x, scales, mode=mode, exclude_outside=1)
    pixels = _RNG.integers(0, 200, (1, 2, 4, 4)).astype(np.int32)
    yield _by_scale("int32", pixels, [1, 1, 2, 2], mode="nearest")
    yield case(
        "9", "Upsample", {"x": x}, {"s": np.array([1, 1, 2, 3], np.float32)}, opset=9, oracle="onnxruntime"
    )


@parametrize(_form_cases())
def test_forms(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


def test_what_the_runtime_gets_wrong_is_refused_over_unknown_sizes() -> None:
    x = _f(1, 1, 4, 4)
    scales = np.array([1, 1, 2, 2], np.float32)
    proto = single(
        "Resize", {"x": x}, {"s": scales}, order=["x", "", "s"], opset=19, mode="nearest", nearest_mode="ceil",
        shapes={"x": symbols(x)},
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match="input shape"):
        convert_onnx(proto)


def test_doubling_is_one_interp() -> None:
    x = _f(1, 3, 4, 4)
    constants = {"s": np.array([1, 1, 2, 2], np.float32)}
    proto = single("Resize", {"x": x}, constants, order=["x", "", "s"], opset=13, mode="linear")
    types = {op.type for op in convert_onnx(proto).ops}
    assert types <= {"Input", "Const", "ConvertTensor", "Interp"}
