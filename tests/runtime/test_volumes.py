"""Windows over three axes, sums of many operands, and other operators that only MNN's own converter writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.reference
import pytest

from mnnq.errors import ExecutionError, UnsupportedError
from tests import builders
from tests.runtime.single_op import run_op, session_of

RNG = np.random.default_rng(5)


def _floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def _ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int32)


def _reference(op_type: str, feeds: dict[str, np.ndarray], **attributes: Any) -> np.ndarray:
    proto = builders.single(op_type, feeds, **attributes)
    return np.asarray(onnx.reference.ReferenceEvaluator(proto).run(None, feeds)[0])


@pytest.mark.parametrize("kind", ["MAXPOOL", "AVEPOOL"])
@pytest.mark.parametrize(
    ("kernel", "stride", "pads"),
    [((2, 3, 3), (2, 1, 2), (0, 1, 1)), ((3, 3, 3), (1, 1, 1), (1, 1, 1)), ((1, 2, 5), (1, 2, 3), (0, 0, 2))],
)
def test_pooling_of_volumes(
    kind: str, kernel: tuple[int, ...], stride: tuple[int, ...], pads: tuple[int, ...]
) -> None:
    x = _floats(2, 3, 6, 7, 8)
    (got,) = run_op(
        "Pooling3D",
        [x],
        "Pool3D",
        kernels=_ints(*kernel),
        strides=_ints(*stride),
        pads=_ints(*pads),
        type=kind,
    )
    padded = np.pad(x, [(0, 0), (0, 0), *((n, n) for n in pads)], constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, (2, 3, 4))
    windows = windows[:, :, :: stride[0], :: stride[1], :: stride[2]]
    reduce = np.nanmax if kind == "MAXPOOL" else np.nanmean
    np.testing.assert_allclose(got, reduce(windows, (-1, -2, -3)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "pads"),
    [
        ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1, 1, 1, 1)),
        ((2, 3, 1), (2, 1, 2), (1, 2, 1), (0, 2, 0, 1, 0, 0)),
        ((1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0, 0, 0, 0)),
    ],
)
def test_convolution_of_volumes(
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    pads: tuple[int, ...],
    relu: bool,
) -> None:
    x, weight, bias = _floats(2, 3, 5, 6, 7), _floats(4, 3, *kernel), _floats(4)
    common = {
        "kernels": _ints(*kernel), "strides": _ints(*stride), "dilates": _ints(*dilation), "pads": _ints(*pads),
        "inputCount": 3, "outputCount": 4, "relu": relu,
    }  # fmt: skip
    (got,) = run_op("Convolution3D", [x], "Convolution3D", common=common, weight=weight.ravel(), bias=bias)
    feeds = {"x": x, "w": weight, "b": bias}
    want = _reference("Conv", feeds, strides=stride, dilations=dilation, pads=pads, kernel_shape=kernel)
    np.testing.assert_allclose(got, np.maximum(want, 0) if relu else want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "nothing"), [("MAXPOOL", -np.inf), ("AVEPOOL", 0.0)])
def test_windows_of_volumes_may_lie_in_the_padding(kind: str, nothing: float) -> None:
    x = _floats(2, 1, 2, 1, 2)
    (got,) = run_op(
        "Pooling3D",
        [x],
        "Pool3D",
        kernels=_ints(1, 1, 1),
        strides=_ints(1, 1, 1),
        pads=_ints(0, 2, 3),
        type=kind,
    )
    want = np.pad(x, [(0, 0), (0, 0), (0, 0), (2, 2), (3, 3)], constant_values=nothing)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("groups", [2, 3, 6])
def test_grouped_convolution_of_volumes(groups: int) -> None:
    x, weight, bias = _floats(2, 6, 4, 5, 6), _floats(12, 6 // groups, 2, 3, 3), _floats(12)
    strides, pads = (1, 2, 1), (1, 1, 1, 0, 1, 1)
    common = {
        "kernels": _ints(2, 3, 3), "strides": _ints(*strides), "dilates": _ints(1, 1, 1), "pads": _ints(*pads),
        "inputCount": 6, "outputCount": 12, "group": groups,
    }  # fmt: skip
    (got,) = run_op("Convolution3D", [x], "Convolution3D", common=common, weight=weight.ravel(), bias=bias)
    feeds = {"x": x, "w": weight, "b": bias}
    want = _reference("Conv", feeds, strides=strides, pads=pads, kernel_shape=(2, 3, 3), group=groups)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_windows_of_volumes_that_do_not_fit_are_refused() -> None:
    x = _floats(1, 2, 3, 3, 3)
    with pytest.raises(UnsupportedError, match=r"kernels is \[2, 2\]"):
        session_of("Pooling3D", [x], "Pool3D", {"kernels": _ints(2, 2)}, 1)
    with pytest.raises(ExecutionError, match="at least 4 with padding along axis 2"):
        run_op("Pooling3D", [x], "Pool3D", kernels=_ints(4, 1, 1), strides=_ints(1, 1, 1))
    with pytest.raises(ExecutionError, match=r"\[N, C, D, H, W\]"):
        run_op("Pooling3D", [_floats(1, 2, 3, 3)], "Pool3D", kernels=_ints(1, 1, 1))
    common = {"kernels": _ints(1, 1, 1), "outputCount": 2, "group": 3}
    with pytest.raises(UnsupportedError, match="group is 3, wanted a divisor of the 2 output channels"):
        session_of("Convolution3D", [x], "Convolution3D", {"common": common, "weight": _floats(4)}, 1)
    with pytest.raises(ExecutionError, match="2 channels in each of 2 groups"):
        run_op("Convolution3D", [x], "Convolution3D", common=common | {"group": 2}, weight=_floats(4))
    fields = {"common": common | {"group": 1}, "weight": _floats(3)}
    with pytest.raises(UnsupportedError, match="weight is 3 values"):
        session_of("Convolution3D", [x], "Convolution3D", fields, 1)


def test_columns_of_windows() -> None:
    x = _floats(2, 3, 5, 6)
    common = {"kernelX": 2, "kernelY": 3, "strideX": 2, "pads": _ints(1, 0, 1, 0)}
    (got,) = run_op("Im2Col", [x], "Convolution2D", common=common)
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 2), (2, 3))[:, :, :, ::2]
    want = windows.transpose(1, 4, 5, 0, 2, 3).reshape(3 * 6, -1)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("kind", "function"), [("SUM", np.add), ("PROD", np.multiply), ("MAXIMUM", np.maximum)]
)
def test_many_operands(kind: str, function: np.ufunc) -> None:
    parts = [_floats(2, 3, 40, 41) for _ in range(4)]
    (got,) = run_op("Eltwise", parts, "Eltwise", type=kind)
    np.testing.assert_allclose(got, function.reduce(parts), rtol=1e-5, atol=1e-6)
    with pytest.raises(ExecutionError, match="input 2 has shape"):
        run_op("Eltwise", [parts[0], parts[1], _floats(1, 3, 40, 41)], "Eltwise", type=kind)


@pytest.mark.parametrize("size", [3, 5])
def test_response_normalization_within_channels(size: int) -> None:
    x = _floats(2, 3, 6, 7)
    (got,) = run_op("LRN", [x], "LRN", regionType=1, localSize=size, alpha=0.5, beta=0.75, bias=1.5)
    padded = np.pad(x * x, [(0, 0), (0, 0), *[(size // 2, size // 2)] * 2])
    total = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (2, 3)).sum((-1, -2))
    np.testing.assert_allclose(got, x / (1.5 + 0.5 / size**2 * total) ** 0.75, rtol=1e-5)


def test_gather_with_a_batch_axis_counts_over_it() -> None:
    x = _floats(2, 3, 4)
    indices = np.asarray([[[1], [0]], [[5], [3]]], np.int32)
    (got,) = run_op("GatherND", [x, indices], "Axis", axis=1)
    np.testing.assert_array_equal(got, x.reshape(6, 4)[indices[..., 0]])
    with pytest.raises(ExecutionError, match=r"indices \[6\] of axes \[6\]"):
        run_op("GatherND", [x, indices + 1], "Axis", axis=1)


def test_maximum_over_regions_is_at_least_their_mean() -> None:
    x, rois = _floats(1, 2, 8, 8), np.asarray([[0, 0, 7, 7], [1, 2, 5, 6]], np.float32)
    fields = {"pooledWidth": 2, "pooledHeight": 2, "spatialScale": 1.0, "samplingRatio": 1, "aligned": True}
    image = np.zeros(2, np.int32)
    (mean,) = run_op("ROIAlign", [x, rois, image], "RoiParameters", **fields)
    (most,) = run_op("ROIAlign", [x, rois, image], "RoiParameters", poolType="MAXPOOL", **fields)
    np.testing.assert_array_equal(mean, most)  # one sample per cell
    fields["samplingRatio"] = 3
    (mean,) = run_op("ROIAlign", [x, rois, image], "RoiParameters", **fields)
    (most,) = run_op("ROIAlign", [x, rois, image], "RoiParameters", poolType="MAXPOOL", **fields)
    assert (most > mean).all()
