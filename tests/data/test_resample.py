"""MNN's resizing: against its formula, the wheel's image processing, and the quantization tool itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from mnnq.convert import convert_onnx
from mnnq.data.preprocess import ColorFormat, ImageProcess, Resize
from mnnq.data.resample import corner_aligned
from tests.data.pictures import noise
from tests.ops.harness import needs_mnn

SIZES = [
    (37, 53, 9, 11),
    (64, 48, 32, 32),
    (20, 30, 41, 77),
    (200, 300, 24, 600),
    (5, 7, 1, 1),
    (3, 2, 8, 1030),
]

#: MNN's worker: no telemetry package is installed behind our back.
ENVIRONMENT = {**os.environ, "PIP_NO_INDEX": "1"}


def plain(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The formula in double precision, before the fraction is cut off."""
    out = np.empty((height, width, pixels.shape[2]))
    for y in range(height):
        for x in range(width):
            fy = y * (pixels.shape[0] - 1) / (height - 1) if height > 1 else 0.0
            fx = x * (pixels.shape[1] - 1) / (width - 1) if width > 1 else 0.0
            y0, x0 = int(fy + 1e-9), int(fx + 1e-9)
            y1, x1 = min(y0 + 1, pixels.shape[0] - 1), min(x0 + 1, pixels.shape[1] - 1)
            a, b = fy - y0, fx - x0
            upper = (1 - b) * pixels[y0, x0] + b * pixels[y0, x1]
            lower = (1 - b) * pixels[y1, x0] + b * pixels[y1, x1]
            out[y, x] = (1 - a) * upper + a * lower
    return out


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_is_bilinear_with_aligned_corners(size: tuple[int, int, int, int]) -> None:
    pixels = noise(size[0], size[1])
    got = corner_aligned(pixels, size[2], size[3]).astype(float)
    exact = plain(pixels, size[2], size[3])
    drift = 0.05 if size[3] < 300 else 1.0  # positions are sums of single precision
    assert (got <= exact + drift).all()
    assert (got >= exact - 1 - drift).all()


def test_the_same_size_changes_nothing() -> None:
    pixels = noise(31, 17)
    np.testing.assert_array_equal(corner_aligned(pixels, 31, 17), pixels)


def test_corners_stay_where_they_are() -> None:
    pixels = noise(40, 60)
    small = corner_aligned(pixels, 8, 13)
    np.testing.assert_array_equal(small[[0, 0], [0, -1]], pixels[[0, 0], [0, -1]])


def test_the_crop_is_the_middle() -> None:
    pixels = noise(40, 60)
    got = corner_aligned(pixels, 20, 30, (0.5, 0.5))
    np.testing.assert_array_equal(got, pixels[10:30, 15:45])


_IMAGE_PROCESS = """
import sys
import numpy as np
import MNN

pixels = np.load(sys.argv[1])
height, width, color = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
channels = {"GRAY": 1, "RGB": 3, "BGR": 3}.get(color, 4)
H, W = pixels.shape[:2]
matrix = MNN.CVMatrix()
f = np.float32
step = [float(f(1) / f(n - 1) * f(N - 1)) if n > 1 else 0.0 for n, N in ((width, W), (height, H))]
matrix.write([step[0], 0.0, 0.0, 0.0, step[1], 0.0, 0.0, 0.0, 1.0])
process = MNN.CVImageProcess({
    "sourceFormat": MNN.CV_ImageFormat_RGBA, "destFormat": getattr(MNN, "CV_ImageFormat_" + color),
    "filterType": MNN.CV_Filter_BILINEAL, "mean": (10.0, 20.0, 30.0, 0.0), "normal": (0.5, 0.25, 2.0, 1.0)})
process.setMatrix(matrix)
target = MNN.Tensor((1, channels, height, width), MNN.Halide_Type_Float,
                    np.zeros((1, channels, height, width), np.float32), MNN.Tensor_DimensionType_Caffe)
process.convert(pixels, W, H, 0, target)
np.save(sys.argv[5], np.asarray(target.getNumpyData()).reshape(channels, height, width))
"""


@pytest.mark.peer
@needs_mnn
@pytest.mark.parametrize("color", ["RGB", "BGR", "GRAY", "BGRA", "RGBA"])
@pytest.mark.parametrize("size", [(37, 53, 9, 11), (375, 500, 224, 224), (200, 300, 24, 600)], ids=str)
def test_equals_the_image_processing_of_the_wheel(
    size: tuple[int, int, int, int], color: str, tmp_path: Path
) -> None:
    pixels = noise(size[0], size[1], 4)
    np.save(tmp_path / "in.npy", pixels)
    arguments = [str(tmp_path / "in.npy"), str(size[2]), str(size[3]), color, str(tmp_path / "out.npy")]
    done = subprocess.run(
        [sys.executable, "-c", _IMAGE_PROCESS, *arguments],
        capture_output=True, text=True, env=ENVIRONMENT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    channels = ColorFormat(color).channels
    process = ImageProcess(
        ColorFormat(color),
        (10.0, 20.0, 30.0, 0.0)[:channels],
        (0.5, 0.25, 2.0, 1.0)[:channels],
        resize=Resize.MNN,
    )
    got = process.apply(Image.fromarray(pixels, "RGBA"), (size[2], size[3])).transpose(2, 0, 1)
    np.testing.assert_array_equal(got, np.load(tmp_path / "out.npy"))


def probe(height: int, width: int) -> onnx.ModelProto:
    """A model with an output per input value, so that the scales of the tool show what it was fed."""
    count = 3 * height * width
    eye = np.eye(count, dtype=np.float32).reshape(count, 1, 3, height, width)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", f"w{i}"], [f"y{i}"]) for i in range(count)],
        "probe",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, height, width])],
        [helper.make_tensor_value_info(f"y{i}", onnx.TensorProto.FLOAT, [1, 1, 1, 1]) for i in range(count)],
        [numpy_helper.from_array(eye[i], f"w{i}") for i in range(count)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.peer
@needs_mnn
@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "crop", "color", "differ"),
    [((37, 53), (1.0, 1.0), "RGB", 0), ((61, 44), (1.0, 1.0), "BGR", 0), ((64, 100), (0.8, 0.8), "RGB", 15)],
    ids=["whole", "bgr", "crop"],
)
def test_equals_what_the_quantization_tool_feeds(
    size: tuple[int, int], crop: tuple[float, float], color: str, differ: int, tmp_path: Path
) -> None:
    height, width = 9, 11
    convert_onnx(probe(height, width)).save(tmp_path / "probe.mnn")
    pixels = noise(*size)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images/a.png")
    settings = {
        "format": color, "mean": [0, 0, 0], "normal": [1, 1, 1], "width": width, "height": height,
        "center_crop_h": crop[0], "center_crop_w": crop[1], "path": "images/", "used_image_num": 1,
        "feature_quantize_method": "KL", "weight_quantize_method": "MAX_ABS",
    }  # fmt: skip
    (tmp_path / "quant.json").write_text(json.dumps(settings))
    call = "import MNN, _tools; _tools.mnnquant(['mnnquant', 'probe.mnn', 'out.mnn', 'quant.json'])"
    done = subprocess.run(
        [sys.executable, "-c", call],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # The threshold of a small tensor is its largest magnitude: scale = (2047.5 / 2048) |x| / 127.
    scales = {e["name"]: e for e in json.loads((tmp_path / "out.mnn.json").read_text())}
    values = [
        scales[f"y{i}"]["outputs"][0]["scales"][0] * 127 * 2048 / 2047.5 for i in range(3 * height * width)
    ]
    fed = np.rint(values).reshape(3, height, width)
    process = ImageProcess(ColorFormat(color), resize=Resize.MNN, center_crop=crop)
    got = process.apply(Image.fromarray(pixels), (height, width)).transpose(2, 0, 1)
    wrong = np.abs(got - fed)
    assert wrong.max() <= 1
    assert np.count_nonzero(wrong) <= differ
