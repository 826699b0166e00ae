"""Single operators of .mnn files in the runtime: what the converter never writes, and contents that are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest

from mnnq.errors import ExecutionError, UnsupportedError
from tests import builders
from tests.runtime.single_op import run_op, session_of

RNG = np.random.default_rng(11)


def _ints(*values: Any) -> np.ndarray:
    return np.asarray(values, np.int32)


def _floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


X = _floats(2, 3, 4)
IMAGE = _floats(1, 2, 4, 5)

#: Operator, inputs, parameter table, its fields, and what the message must say.
_BAD_VALUES = [
    ("GatherElements", [X, _ints([[4]]), _ints(2)], None, {}, "input 1: index 4 of an axis of 4"),
    ("GatherElements", [X, _ints([[-5]]), _ints(2)], None, {}, "input 1: index -5 of an axis of 4"),
    ("GatherElements", [X, _ints([[0]]), _ints(3)], None, {}, "axis 3 is outside of rank 3"),
    ("GatherElements", [X, _ints([0])], None, {}, "input 1 has shape [1, 1]"),
    ("GatherND", [X, _ints([1, 3])], None, {}, "input 1: indices [1, 3] of axes [2, 3]"),
    ("GatherND", [X, _ints([0, 0, 0, 0])], None, {}, "depth of at most 3"),
    ("ScatterNd", [_ints([2]), _floats(1, 3, 4), _ints(2, 3, 4), X], None, {}, "input 0: indices [2] of axes [2]"),
    ("ScatterNd", [_ints([1]), _floats(1, 3, 3), _ints(2, 3, 4), X], None, {}, "input 1 has shape"),
    ("ScatterNd", [_ints([1]), _floats(1, 3, 4), _ints(2, 4, 3), X], None, {}, "input 3 has shape"),
    ("ScatterElements", [X, _ints([[9]]), _floats(1, 1, 1), _ints(0)], None, {}, "index 9 of an axis of 2"),
    ("ScatterElements", [X, _ints([[0]]), _floats(1, 1, 2), _ints(0)], None, {}, "as the indices"),
    ("TopKV2", [X, _ints(5)], "TopKV2", {}, "k is 5, wanted 0 to 4"),
    ("TopKV2", [X, _ints(-1)], "TopKV2", {}, "k is -1, wanted 0 to 4"),
    ("CumSum", [X, _ints(-4)], "CumSum", {}, "axis -4 is outside of rank 3"),
    ("ReverseSequence", [X, _ints(1, 4)], "ReverseSequenceParam", {"seqDim": 1}, "length 4 of a sequence of 3"),
    ("ReverseSequence", [X, _ints(1, -1)], "ReverseSequenceParam", {"seqDim": 1}, "length -1 of a sequence of 3"),
    ("OneHot", [_ints(0), _ints(-2), _ints(1), _ints(0)], "OneHotParam", {}, "depth is -2"),
    ("ROIAlign", [IMAGE, _floats(1, 4), _ints(1)], "RoiParameters",
     {"pooledWidth": 1, "pooledHeight": 1, "spatialScale": 1.0}, "image 1 of 1"),
    ("GridSample", [IMAGE, _floats(1, 2, 2, 3)], "GridSample", {}, "input 1 has shape [1, 2, 2, 3]"),
    ("NonMaxSuppressionV2", [_floats(3, 4), _floats(2), _ints(1)], "NonMaxSuppressionV2", {}, "scores of boxes"),
]  # fmt: skip


@pytest.mark.parametrize(("op_type", "inputs", "param", "fields", "message"), _BAD_VALUES)
def test_bad_contents_are_errors(
    op_type: str, inputs: list[np.ndarray], param: str | None, fields: dict[str, Any], message: str
) -> None:
    outputs = 2 if op_type == "TopKV2" else 1
    with pytest.raises(ExecutionError) as error:
        run_op(op_type, inputs, param, outputs=outputs, **fields)
    assert message in str(error.value)
    assert f'{op_type} "node"' in str(error.value)


@pytest.mark.parametrize(
    ("op_type", "count", "param", "fields", "message"),
    [
        ("GatherND", 2, "Axis", {"axis": -1}, "axis is -1"),
        ("ScatterNd", 4, "BinaryOp", {"opType": "POW"}, "opType is"),
        ("LRN", 1, "LRN", {"localSize": 3, "regionType": 2}, "regionType is 2"),
        ("LRN", 1, "LRN", {"localSize": 0}, "localSize is 0"),
        (
            "ReverseSequence",
            2,
            "ReverseSequenceParam",
            {"seqDim": 1, "batchDim": 1},
            "another axis than batchDim",
        ),
        ("GridSample", 2, "GridSample", {"paddingMode": "CUBE"}, "paddingMode is"),
        ("ROIAlign", 3, "RoiParameters", {"pooledWidth": 1, "pooledHeight": 0}, "pooledHeight is 0"),
        (
            "ROIAlign",
            3,
            "RoiParameters",
            {"pooledWidth": 1, "pooledHeight": 1, "outputGrad": True},
            "outputGrad is",
        ),
        ("OneHot", 3, "OneHotParam", {}, "3 inputs"),
        ("CumSum", 2, None, {}, "parameter table is absent"),
    ],
)
def test_bad_attributes_are_refused_when_loading(
    op_type: str, count: int, param: str | None, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedError) as error:
        session_of(op_type, [X] * count, param, fields, 1)
    assert message in str(error.value)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("largest", [True, False])
def test_top_k_sorts_ties_by_position_and_nan_as_the_largest(largest: bool, threads: int) -> None:
    x = RNG.integers(0, 9, (3, 700, 5)).astype(np.float32)
    x[0, 13] = np.nan
    values, indices = run_op(
        "TopKV2", [x, _ints(40), _ints(1)], "TopKV2", outputs=2, threads=threads, largest=largest
    )
    key = np.where(np.isnan(x), 99, x)
    order = np.argsort(-key if largest else key, axis=1, kind="stable")[:, :40]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(values, np.take_along_axis(x, order, 1))


def test_scatter_takes_updates_in_order_and_leaves_its_input_alone() -> None:
    before = X.copy()
    indices, updates = _ints([1], [-1], [1]), _floats(3, 3, 4)
    (got,) = run_op("ScatterNd", [indices, updates, _ints(2, 3, 4), X])
    np.testing.assert_array_equal(got, np.stack([X[0], updates[2]]))
    np.testing.assert_array_equal(X, before)
    (total,) = run_op("ScatterNd", [indices, updates, _ints(2, 3, 4)], "BinaryOp", opType="ADD")
    np.testing.assert_allclose(total, np.stack([np.zeros((3, 4)), updates.sum(0)]), rtol=1e-6)


def test_gather_elements_of_fewer_lines_than_the_data() -> None:
    indices = RNG.integers(-3, 3, (1, 5, 2)).astype(np.int32)
    (got,) = run_op("GatherElements", [X, indices, _ints(1)])
    np.testing.assert_array_equal(got, np.take_along_axis(X[:1, :, :2], indices, 1))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_hot(axis: int) -> None:
    indices = _ints([0, 3, -1], [2, 9, 1])
    on, off = np.asarray(2.5, np.float32), np.asarray(-1, np.float32)
    (got,) = run_op("OneHot", [indices, _ints(4), on, off], "OneHotParam", axis=axis)
    hot = indices[..., None] == np.arange(4)
    np.testing.assert_array_equal(got, np.moveaxis(np.where(hot, on, off), -1, axis))


@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("exclusive", [True, False])
def test_cumulative_sums_of_integers_wrap(reverse: bool, exclusive: bool) -> None:
    x = RNG.integers(-(2**31), 2**31, (2, 5, 3)).astype(np.int32)
    (got,) = run_op("CumSum", [x, _ints(1)], "CumSum", reverse=reverse, exclusive=exclusive)
    y = x[:, ::-1] if reverse else x
    total = np.cumsum(y.astype(np.int64), axis=1) - (y if exclusive else 0)
    np.testing.assert_array_equal(got, (total[:, ::-1] if reverse else total).astype(np.int32))


def test_unique_orders_negative_floats() -> None:
    x = np.asarray([3, -1, -2, 3, 0, -1], np.float32)
    values, first, inverse, counts = run_op("Unique", [x], outputs=4)
    for got, want in zip((values, first, inverse, counts), np.unique(x, True, True, True), strict=True):
        np.testing.assert_array_equal(got, want)


def test_non_max_suppression_of_several_images_and_classes() -> None:
    corners = RNG.random((2, 9, 2, 2)).astype(np.float32)
    boxes = np.concatenate([corners.min(2), corners.max(2)], -1)
    scores = RNG.random((2, 3, 9)).astype(np.float32)
    inputs = [boxes, scores, _ints(6), np.float32([0.3]), np.float32([0.2])]
    (got,) = run_op("NonMaxSuppressionV2", inputs, "NonMaxSuppressionV2")
    singly = [
        [image, class_, box]
        for image in range(2)
        for class_ in range(3)
        for box in run_op(
            "NonMaxSuppressionV2", [boxes[image], scores[image, class_], *inputs[2:]], "NonMaxSuppressionV2"
        )[0]
    ]
    np.testing.assert_array_equal(got, singly)
    assert 6 <= len(got) < 36


def test_roi_align_takes_the_image_from_five_columns() -> None:
    x, rois = _floats(2, 3, 8, 8), np.float32([[1, 1, 6, 5], [0, 2, 7, 7]])
    params = {"pooledWidth": 3, "pooledHeight": 2, "spatialScale": 1.0, "samplingRatio": 2, "aligned": True}
    (want,) = run_op("ROIAlign", [x, rois, _ints(1, 0)], "RoiParameters", **params)
    (got,) = run_op("ROIAlign", [x, np.c_[np.float32([1, 0]), rois]], "RoiParameters", **params)
    np.testing.assert_array_equal(got, want)
    assert want.shape == (2, 3, 2, 3)
    assert np.abs(want).max() > 0


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("border", ["ZEROS", "CLAMP", "REFLECTION"])
@pytest.mark.parametrize("mode", ["BILINEAR", "NEAREST"])
@pytest.mark.parametrize("spatial", [(4, 5), (3, 4, 5)])
def test_grid_sample(spatial: tuple[int, ...], mode: str, border: str, align: bool) -> None:
    x = _floats(2, 2, *spatial)
    grid = RNG.uniform(-2.4, 2.4, (2, *spatial, len(spatial))).astype(np.float32)
    (got,) = run_op("GridSample", [x, grid], "GridSample", mode=mode, paddingMode=border, alignCorners=align)
    names = {"ZEROS": "zeros", "CLAMP": "border", "REFLECTION": "reflection"}
    kind = "linear" if mode == "BILINEAR" else "nearest"
    proto = builders.single(
        "GridSample",
        {"x": x, "grid": grid},
        opset=20,
        mode=kind,
        padding_mode=names[border],
        align_corners=int(align),
    )
    (want,) = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": x, "grid": grid})
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def _deconv(x: np.ndarray, *operands: np.ndarray) -> np.ndarray:
    common = {
        "kernelX": 3,
        "kernelY": 3,
        "strideX": 2,
        "strideY": 2,
        "outputCount": 4,
        "pads": _ints(1, 1, 1, 1),
    }
    (got,) = run_op("Deconvolution", [x, *operands], "Convolution2D", common=common)
    return got


def test_transposed_convolutions_with_weights_and_bias_as_inputs() -> None:
    weight, bias = _floats(2, 4, 3, 3), _floats(4)
    proto = builders.single(
        "ConvTranspose", {"x": IMAGE, "w": weight, "b": bias}, strides=[2, 2], pads=[1, 1, 1, 1]
    )
    (want,) = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": IMAGE, "w": weight, "b": bias})
    np.testing.assert_allclose(_deconv(IMAGE, weight, bias), want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ExecutionError, match="wanted 3 channels"):
        _deconv(IMAGE, _floats(3, 4, 3, 3))
    with pytest.raises(ExecutionError, match=r"input 1 has shape \[2, 5, 3, 3\]"):
        _deconv(IMAGE, _floats(2, 5, 3, 3))
    with pytest.raises(ExecutionError, match="input 2 has shape"):
        _deconv(IMAGE, weight, _floats(5))


def test_pooling_indices_of_padded_windows() -> None:
    x = _floats(2, 3, 7, 6) - 9
    values, indices = run_op(
        "Pooling", [x], "Pool", outputs=2, kernelX=3, kernelY=3, strideX=2, strideY=2, type="MAXPOOL", ceilModel=False,
        padType="CAFFE", pads=_ints(1, 1, 1, 1),
    )  # fmt: skip
    flat = x.reshape(2, 3, -1)
    np.testing.assert_array_equal(
        values, np.take_along_axis(flat, indices.reshape(2, 3, -1), 2).reshape(values.shape)
    )
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::2, ::2]
    np.testing.assert_array_equal(values, windows.max((-1, -2)))
