"""What the network sees, and whether it can be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mnnq.data import ArrayDataset, InputSpec, open_dataset, preview, range_warnings
from mnnq.errors import ConfigError
from mnnq.ir.model import Model
from tests import mnn_models
from tests.data.pictures import save, smooth

INPUTS = [InputSpec("x", "float32", (1, 3, 16, 16))]


def test_the_sheet_shows_the_pictures_again(tmp_path: Path) -> None:
    images = save(tmp_path / "images", [f"{i}.png" for i in range(5)], 16, 16)
    data = open_dataset(images, INPUTS, preset="imagenet", format="BGR", resize="none")
    result = preview(data, INPUTS, tmp_path / "sheet.png")
    assert (result.samples, result.file) == (5, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (4 + 2 * 20, 4 + 3 * 20, 3)
    for i in range(5):
        top, left = 4 + i // 3 * 20, 4 + i % 3 * 20
        np.testing.assert_array_equal(sheet[top : top + 16, left : left + 16], smooth(16, 16, i))


def test_ranges_are_those_of_the_values() -> None:
    values = np.random.default_rng(0).normal(3, 2, (2, 3, 16, 16)).astype(np.float32)
    (found,) = preview(ArrayDataset(values, INPUTS), INPUTS).ranges
    assert found.minimum == pytest.approx(values.min())
    assert found.maximum == pytest.approx(values.max())
    assert found.mean == pytest.approx(values.mean(), rel=1e-4)
    assert found.std == pytest.approx(values.std(), rel=1e-4)
    assert not found.whole
    assert "input 'x' (1x3x16x16)" in str(found)


def test_arrays_are_stretched(tmp_path: Path) -> None:
    values = np.zeros((1, 1, 16, 16), np.float32)
    values[0, 0, :8] = -3
    inputs = [InputSpec("x", "float32", (1, 1, 16, 16))]
    preview(ArrayDataset(values, inputs), inputs, tmp_path / "a.png")
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    assert sheet[4, 4].tolist() == [0, 0, 0]
    assert sheet[19, 4].tolist() == [255, 255, 255]


def test_wide_sheets_are_shrunk(tmp_path: Path) -> None:
    inputs = [InputSpec("x", "float32", (1, 3, 40, 2000))]
    preview(ArrayDataset(np.zeros((2, 3, 40, 2000), np.float32), inputs), inputs, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.width <= 1600 + 8


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    inputs = [InputSpec("ids", "int64", (1, 4))]
    data = ArrayDataset([{"ids": np.zeros((1, 4), np.int64)}], inputs)
    with pytest.raises(ConfigError, match=r"no input can be drawn as a picture: ids \(int64 1x4\)"):
        preview(data, inputs, tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"let its name end in .png"):
        preview(data, inputs, tmp_path / "a.jpg")
    assert preview(data, inputs).ranges[0].whole


# -- ranges


def network(scale: float, bias: float = 1.0) -> Model:
    """A convolution made for inputs of deviation `1 / scale`."""
    weight = np.random.default_rng(0).normal(0, 0.2 * scale, (8, 3, 3, 3)).astype(np.float32)
    model = mnn_models.single_conv(weight, size=16)
    model.ops[2].params["bias"] = np.linspace(-bias, bias, 8, dtype=np.float32)
    return model


def pixels() -> np.ndarray:
    return np.stack([smooth(16, 16, i).transpose(2, 0, 1) for i in range(3)]).astype(np.float32)


def warnings(model: Model, values: np.ndarray) -> tuple[str, ...]:
    return range_warnings(model, ArrayDataset(values, INPUTS))


def test_raw_pixels_for_a_network_of_scaled_ones() -> None:
    (line,) = warnings(network(1.0), pixels())
    assert "whole numbers from" in line
    assert "'conv'" in line
    assert warnings(network(1.0), pixels() / 255 * 4 - 2) == ()
    assert warnings(network(1 / 64), pixels()) == ()


def test_scaled_pixels_for_a_network_of_raw_ones() -> None:
    (line,) = warnings(network(1 / 64), pixels() / 255)
    assert "hardly matter beside the biases" in line


def test_large_values_that_are_no_raw_pixels_are_not_complained_about() -> None:
    assert warnings(network(1.0, bias=0.01), pixels() - np.float32(120.5)) == ()


def test_constant_inputs() -> None:
    (line,) = warnings(network(1.0), np.full((2, 3, 16, 16), 7, np.float32))
    assert "all values are 7, in every sample" in line


@pytest.mark.parametrize(
    "change",
    [{"bias": None}, {"group": 3}, {"reader": "ReLU"}],
    ids=["no bias", "depthwise", "another reader"],
)
def test_says_nothing_where_it_cannot_tell(change: dict[str, Any]) -> None:
    model = network(1.0)
    op = model.ops[2]
    if "bias" in change:
        del op.params["bias"]
    if "group" in change:
        op.params["common"]["group"] = 3
    if "reader" in change:
        op.type = "ReLU"
    assert warnings(model, pixels()) == ()
