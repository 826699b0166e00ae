"""Bias correction on made-up images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mnnq
from mnnq.cli.main import run
from mnnq.errors import ConfigError
from mnnq.ir.model import Model
from mnnq.quantization.bias_correction import output_sqnr
from mnnq.quantization.generated import images, rectangles
from mnnq.quantization.generated_run import made_up_inputs, quantize_on
from mnnq.quantization.image_guess import guess_images
from mnnq.report.quantization import QuantizationReport
from mnnq.writer.to_mnn import to_bytes


def _net(folder: Path, bias: float, shape: list[int | str]) -> Path:
    """Layers whose inputs have a mean (behind ReLU), the more so with a large bias."""
    rng = np.random.default_rng(1)
    nodes, values, last = [], [], "x"
    for i in range(4):
        weight = rng.standard_normal((16, 3 if i == 0 else 16, 3, 3)) / 12 + 0.02
        values.append(numpy_helper.from_array(weight.astype(np.float32), f"w{i}"))
        values.append(numpy_helper.from_array(np.full(16, bias, np.float32), f"b{i}"))
        nodes.append(helper.make_node("Conv", [last, f"w{i}", f"b{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        last = f"r{i}"
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)],
        values,
    )
    path = folder / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), path)
    return path


@pytest.fixture
def net(tmp_path: Path) -> Model:
    return mnnq.load(_net(tmp_path, 2.0, [1, 3, 16, 16]))


def test_shifted_means_are_found_on_made_up_images(net: Model) -> None:
    plain = mnnq.quantize_weights(net, bits=2)
    small = mnnq.quantize_weights(net, bits=2, generated_range=(0, 1))
    (note,) = [note for note in small.report.notes if "generated images" in note]
    assert note.startswith("biases were corrected")
    sessions = [mnnq.InferenceSession(to_bytes(model)) for model in (net, plain, small)]
    x = images((1, 3, 16, 16), 1, 0, 1, seed=99)[0]
    exact, before, after = (session.run(None, {"x": x})[0] for session in sessions)
    assert np.abs(after - exact).mean() < 0.5 * np.abs(before - exact).mean()
    again = mnnq.quantize_weights(net, bits=2, generated_range=(0, 1), threads=1)
    assert to_bytes(again) == to_bytes(small)


def test_a_model_whose_means_hardly_moved_stays_as_it_is(net: Model) -> None:
    options = {"bits": 4, "block": 16, "method": "search", "gain_correction": True}
    small = mnnq.quantize_weights(net, generated_range=(0, 1), **options)
    (note,) = [note for note in small.report.notes if "generated images" in note]
    assert note.startswith("biases were left alone")
    assert to_bytes(small) == to_bytes(mnnq.quantize_weights(net, **options))


def test_auto_fits_weights_to_made_up_images(net: Model) -> None:
    plain = mnnq.quantize_weights(net, bits=2, method="auto", generated_inputs=False)
    small = mnnq.quantize_weights(net, bits=2, method="auto", generated_range=(0, 1))
    (note,) = [note for note in small.report.notes if "generated images" in note]
    assert note.startswith("weights and biases were fitted")
    others = [{"x": x} for x in rectangles((1, 3, 16, 16), 8, 0, 1, seed=99)]
    assert output_sqnr(small, net, others) > output_sqnr(plain, net, others) + 1


def test_a_range_is_guessed_where_the_first_biases_allow_it(tmp_path: Path) -> None:
    paths = {
        bias: _net(tmp_path, bias, [1, 3, 16, 16]) and mnnq.load(tmp_path / "net.onnx")
        for bias in (2.0, 0.0, 300.0)
    }
    found = {bias: guess_images(model) for bias, model in paths.items()}
    assert found == {2.0: ("x", (1, 3, 16, 16)), 0.0: None, 300.0: None}
    open_size = mnnq.load(_net(tmp_path, 2.0, ["n", 3, "h", "w"]))
    assert guess_images(open_size) == ("x", (1, 3, 224, 224))
    small = mnnq.quantize_weights(paths[2.0], bits=2, method="auto")
    (note,) = [note for note in small.report.notes if "generated images" in note]
    assert "the range being a guess" in note
    untouched = mnnq.quantize_weights(paths[0.0], bits=2, method="auto")
    assert not any("generated" in note for note in untouched.report.notes)


def test_a_fit_must_help_on_every_kind_of_judge(net: Model) -> None:
    plain = mnnq.quantize_weights(net, bits=2, method="auto", generated_inputs=False)
    made = made_up_inputs(net)
    assert made is not None
    zeros = [{"x": np.zeros((1, 3, 16, 16), np.float32)}]
    mixed = replace(made, judges=[*made.judges, zeros])
    model = net.copy()

    def quantize(one: Model, samples: object) -> QuantizationReport:
        found = plain if samples is None else mnnq.quantize_weights(one, bits=8)
        one.ops = found.copy().ops
        return found.report

    report = quantize_on(model, mixed, quantize, threads=1)
    assert "were fitted" in report.notes[-1]
    worse = net.copy()

    def backwards(one: Model, samples: object) -> QuantizationReport:
        found = plain if samples is not None else mnnq.quantize_weights(one, bits=8)
        one.ops = found.copy().ops
        return found.report

    report = quantize_on(worse, mixed, backwards, threads=1)
    assert "do not help" in report.notes[-1]
    assert to_bytes(worse) == to_bytes(mnnq.quantize_weights(net, bits=8))


def test_images_have_the_range_and_falling_spectra() -> None:
    made = images((2, 3, 64, 48), 6, -1, 3, seed=0)
    assert all(image.shape == (2, 3, 64, 48) and image.dtype == np.float32 for image in made)
    assert min(image.min() for image in made) >= -1
    assert max(image.max() for image in made) <= 3
    power = sum(np.abs(np.fft.rfft(image - image.mean(), axis=3)) ** 2 for image in made).mean((0, 1, 2))
    assert power[1:4].mean() > 20 * power[-8:].mean()
    other = images((2, 3, 64, 48), 6, -1, 3, seed=1)
    assert not np.array_equal(made[0], other[0])


def test_rectangles_have_the_range_and_are_mostly_plain() -> None:
    made = rectangles((1, 3, 64, 48), 4, -1, 3, seed=0)
    assert all(image.shape == (1, 3, 64, 48) and image.dtype == np.float32 for image in made)
    assert min(image.min() for image in made) >= -1
    assert max(image.max() for image in made) <= 3
    steps = np.abs(np.diff(made[0], axis=3))
    assert np.median(steps) < 0.2 < np.quantile(steps, 0.98)
    assert np.array_equal(made[0], rectangles((1, 3, 64, 48), 1, -1, 3, seed=0)[0])


def test_what_cannot_be_made_up_is_refused(net: Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no range"):
        mnnq.quantize_weights(net, bits=4, generated_range=(1, 1))
    with pytest.raises(ConfigError, match="real data"):
        mnnq.quantize_weights(
            net, bits=4, generated_range=(0, 1), calib=[{"x": np.zeros((1, 3, 16, 16), np.float32)}]
        )
    dynamic = mnnq.load(_net(tmp_path, 0.0, [1, 3, "h", "w"]))
    with pytest.raises(ConfigError, match="known size"):
        mnnq.quantize_weights(dynamic, bits=4, generated_range=(0, 1))


def test_the_command_says_that_images_were_made_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _net(tmp_path, 2.0, [1, 3, 16, 16])
    assert run(["quant", str(path), "--bits", "2", "--generated-range", "0", "1"]) == 0
    assert "corrected on generated images, not on data" in capsys.readouterr().err
