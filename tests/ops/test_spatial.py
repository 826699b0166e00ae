"""GridSample, RoiAlign, DepthToSpace, SpaceToDepth."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from tests.ops.cases import Case, case, parametrize, run, symbols
from tests.peers.mnn_runtime import MnnRuntime

pytestmark = pytest.mark.peer
_RNG = np.random.default_rng(7)


def _f(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape).astype(np.float32)


def _depth_cases() -> Iterator[Case]:
    x = _f(2, 12, 3, 4)
    for mode in ("DCR", "CRD"):
        yield case(mode, "DepthToSpace", {"x": x}, blocksize=2, mode=mode)
        yield case(
            f"{mode}-symbolic",
            "DepthToSpace",
            {"x": x},
            blocksize=2,
            mode=mode,
            shapes={"x": symbols(x, [1])},
        )
    yield case("DCR", "SpaceToDepth", {"x": _f(2, 3, 6, 8)}, blocksize=2)


@parametrize(_depth_cases())
def test_space_and_depth(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


def _grid_cases() -> Iterator[Case]:
    names = {"linear": "bilinear", "cubic": "bicubic", "nearest": "nearest"}
    for align, padding, mode in itertools.product((0, 1), ("zeros", "border", "reflection"), names):
        label = f"{mode}-{padding}-{align}"
        grid = _RNG.uniform(-1.5, 1.5, (2, 4, 5, 2)).astype(np.float32)
        inputs = {"x": _f(2, 3, 6, 7), "g": grid}
        attrs = {"padding_mode": padding, "align_corners": align, "rtol": 1e-3}
        yield case(label, "GridSample", inputs, mode=names[mode], opset=16, oracle="onnxruntime", **attrs)
        if mode != "cubic":
            volume = {
                "x": _f(2, 2, 4, 5, 6),
                "g": _RNG.uniform(-1.5, 1.5, (2, 3, 2, 2, 3)).astype(np.float32),
            }
            yield case(f"{label}-volume", "GridSample", volume, mode=mode, opset=20, **attrs)


@parametrize(_grid_cases())
def test_grid_sample(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


def _roi_cases() -> Iterator[Case]:
    rois = np.array([[0.5, 1, 6, 7], [2, 2, 9, 9], [-1, -1, 3, 4]], np.float32)
    batch = np.array([0, 1, 0])
    for mode, ratio, scale in itertools.product(
        ("half_pixel", "output_half_pixel"), (0, 1, 2, 3), (1.0, 0.5)
    ):
        attrs = {
            "coordinate_transformation_mode": mode, "sampling_ratio": ratio, "spatial_scale": scale,
            "output_height": 3, "output_width": 4, "opset": 16, "rtol": 1e-3,
        }  # fmt: skip
        inputs = {"x": _f(2, 3, 10, 11), "r": rois}
        yield case(f"{mode}-{ratio}-{scale}", "RoiAlign", inputs, {"b": batch}, oracle="onnxruntime", **attrs)


@parametrize(_roi_cases())
def test_roi_align(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)
