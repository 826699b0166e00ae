"""``quant.json``: every key, every wrong value, and what the real tool crashes on or ignores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnnq.data import ImageFolder, InputSpec, SequenceFolder
from mnnq.data.preprocess import ColorFormat, Resize
from mnnq.errors import ConfigError, InputError
from mnnq.quantization.quant_json import InputEntry, parse_quant_json, read_quant_json
from tests.data.pictures import noise, save

INPUTS = [InputSpec("x", "float32", (1, 3, 9, 11))]

MINIMAL: dict[str, Any] = {"path": "images", "width": 11, "height": 9}


def parse(**changes: Any) -> Any:
    record = {**MINIMAL, **changes}
    return parse_quant_json(json.dumps({key: value for key, value in record.items() if value is not ...}))


def test_defaults_are_those_of_mnn() -> None:
    config = parse()
    assert (config.format, config.mean, config.normal) == (ColorFormat.BGR, (), ())
    assert (config.center_crop_h, config.center_crop_w) == (1.0, 1.0)
    assert config.used_image_num == 0
    assert config.offline_options() == {
        "feature_method": "kl",
        "weight_method": "max_abs",
        "feature_clamp": 127,
        "weight_clamp": 127,
        "bits": 8,
        "skip": (),
    }
    process = config.process()
    assert (process.format, process.resize, process.size) == (ColorFormat.BGR, Resize.MNN, (9, 11))
    assert (process.mean, process.normal) == ((0.0,), (1.0,))
    assert config.notes == ()


def test_every_key_arrives() -> None:
    config = parse(
        format="RGB", mean=[1, 2, 3], normal=[0.1, 0.2, 0.3], center_crop_h=0.5, center_crop_w=0.25,
        used_image_num=7, feature_quantize_method="ADMM", weight_quantize_method="ADMM", feature_clamp_value=100,
        weight_clamp_value=90, quant_bits=6, skip_quant_op_names=["conv1", "head*"], debug=True,
        input_type="image", inputs=[{"name": "x", "shape": [1, 3, 9, 11]}, {"name": "s", "value": 2}],
    )  # fmt: skip
    process = config.process()
    assert (process.mean, process.normal) == ((1.0, 2.0, 3.0), (0.1, 0.2, 0.3))
    assert process.center_crop == (0.5, 0.25)
    assert config.offline_options() == {
        "feature_method": "admm",
        "weight_method": "admm",
        "feature_clamp": 100,
        "weight_clamp": 90,
        "bits": 6,
        "skip": ("conv1", "head*"),
    }
    assert config.used_image_num == 7
    assert config.debug is True
    assert config.inputs == (InputEntry("x", (1, 3, 9, 11)), InputEntry("s", None, 2))


def test_compat_asks_for_what_mnn_does_and_nothing_more() -> None:
    options = parse(feature_quantize_method="EMA").offline_options(compat=True)
    assert options["compat"] is True
    assert (options["bias_correction"], options["equalization"], options["keep_float"]) == (
        False,
        False,
        False,
    )


def test_options_are_those_of_the_quantizer() -> None:
    offline = pytest.importorskip("mnnq.quantization.offline")
    for method in ("KL", "ADMM", "EMA"):
        for compat in (False, True):
            config = offline.OfflineConfig(
                **parse(feature_quantize_method=method).offline_options(compat=compat)
            )
            assert config.feature_method.value == method.lower()


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("format", "RGB888", "one of RGB, BGR, RGBA, BGRA, GRAY"),
        ("format", 3, "one of"),
        ("mean", "127.5", "a list of numbers"),
        ("mean", [1, 2, 3, 4, 5], "at most 4"),
        ("mean", [1, "2", 3], "a list of numbers"),
        ("mean", [], "a list of numbers"),
        ("mean", [127.5], "has 1 numbers, BGR has 3 channels"),
        ("normal", [1, 1], "has 2 numbers, BGR has 3 channels"),
        ("normal", [1, 0, 1], "other than 0"),
        ("width", "64", "a whole number from 1"),
        ("width", ..., "missing; images need the width"),
        ("height", ..., "missing"),
        ("height", 0, "a whole number from 1"),
        ("height", 64.5, "a whole number from 1"),
        ("width", True, "a whole number from 1"),
        ("center_crop_h", 1.5, "a number above 0, at most 1"),
        ("center_crop_w", 0, "a number above 0"),
        ("path", ..., "missing; it names the folder"),
        ("path", "", "the name of a folder"),
        ("path", 3, "the name of a folder"),
        ("used_image_num", -1, "0 or more"),
        ("used_sample_num", "10", "0 or more"),
        ("feature_quantize_method", "kl", "one of KL, ADMM, EMA"),
        ("feature_quantize_method", "MINMAX", "one of KL, ADMM, EMA"),
        ("weight_quantize_method", "HQQ", "one of MAX_ABS, ADMM"),
        ("feature_clamp_value", 200, "from 1 to 127"),
        ("feature_clamp_value", 0, "from 1 to 127"),
        ("weight_clamp_value", 128, "from 1 to 127"),
        ("quant_bits", 9, "from 2 to 8"),
        ("quant_bits", 1, "from 2 to 8"),
        ("quant_bits", "8", "from 2 to 8"),
        ("batch_size", 0, "1 or more"),
        ("skip_quant_op_names", "conv1", "a list of names"),
        ("skip_quant_op_names", [1], "a list of names"),
        ("winogradOpt", "yes", "true or false"),
        ("debug", 2, "true or false"),
        ("input_type", "text", "one of image, sequence"),
        ("inputs", {"name": "x"}, "a list of"),
        ("inputs", [{"shape": [1]}], '{"name"'),
        ("inputs", [{"name": "x", "dims": [1]}], '{"name"'),
        ("inputs", [{"name": "x", "shape": [0]}], "lengths, 1 or more"),
        ("inputs", [{"name": "x", "value": "1"}], "a value that is a number"),
        ("inputs", [{"name": "x"}, {"name": "x"}], "each input once"),
        ("model", 3, "text"),
    ],
    ids=str,
)
def test_wrong_values_name_key_value_and_what_is_allowed(key: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(**{key: value})
    assert caught.value.key == key
    assert allowed in str(caught.value)
    if value is not ... and not isinstance(value, (list, dict)):
        assert json.dumps(value) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("used_images_num", "did you mean 'used_image_num'?"),
        ("feature_quantize_methods", "did you mean 'feature_quantize_method'?"),
        ("widht", "did you mean 'width'?"),
        ("zzz", "there are format, mean"),
    ],
)
def test_unknown_keys_are_errors(key: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="no such key") as caught:
        parse(**{key: 1})
    assert caught.value.key == key
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[1]", r"wanted an object"),
        ('{"width": 1, "width": 2}', "width: it is there twice"),
        ('{"path": "a", "center_crop_h": NaN}', "NaN is no number of JSON"),
        ('{"path": "a", "width": 5, "height": 5, "mean": [1e999, 0, 0]}', "a list of numbers"),
    ],
    ids=["broken", "list", "twice", "nan", "infinite"],
)
def test_files_that_are_no_configuration(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "quant.json").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_quant_json(tmp_path / "quant.json")
    assert caught.value.file == str(tmp_path / "quant.json")
    (tmp_path / "quant.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file"):
        read_quant_json(tmp_path / "quant.json")


def test_keys_that_change_nothing_say_so() -> None:
    config = parse(batch_size=8, winogradOpt=True, model="x.mnn", used_image_num=3, used_sample_num=4)
    notes = "\n".join(config.notes)
    for key in (
        "batch_size changes nothing",
        "winogradOpt changes nothing",
        "model changes nothing, as in MNN",
    ):
        assert key in notes
    assert "used_sample_num wins" in notes
    assert config.used_image_num == 4
    assert parse(winogradOpt=False).notes == ()
    assert parse(debug=1).debug is True


def test_numbers_for_channels_that_are_not_there_are_a_note() -> None:
    config = parse(format="GRAY", mean=[127.5, 127.5, 127.5])
    assert config.process().mean == (127.5,)
    assert "mean: the last 2 of 3 numbers are unused for GRAY" in config.notes[0]


# -- data


def test_images_are_read_as_mnn_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "images", ["b.png", "a.jpg", "c.png"])
    config = parse(used_image_num=2, mean=[1, 2, 3], normal=[0.5, 0.5, 0.5])
    data = config.dataset(INPUTS)
    assert isinstance(data, ImageFolder)
    assert [data.source(i) for i in range(2)] == ["a.jpg", "b.png"]
    assert data[0]["x"].shape == (1, 3, 9, 11)


def test_the_path_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "work").mkdir()
    save(tmp_path / "config/images", ["a.png"])
    (tmp_path / "config/quant.json").write_text(json.dumps({**MINIMAL, "path": "images/"}))
    monkeypatch.chdir(tmp_path / "work")
    config = read_quant_json(tmp_path / "config/quant.json")
    with pytest.raises(ConfigError, match="relative to the working directory") as caught:
        config.dataset(INPUTS)
    assert caught.value.key == "path"
    monkeypatch.chdir(tmp_path / "config")
    assert len(config.dataset(INPUTS)) == 1


def test_missing_empty_and_wrong_paths_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder") as caught:
        parse(path=str(tmp_path / "nothing")).dataset(INPUTS)
    assert caught.value.key == "path"
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="no folder"):
        parse(path=str(tmp_path / "file")).dataset(INPUTS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="there are no images in it"):
        parse(path=str(tmp_path / "empty")).dataset(INPUTS)


def test_unreadable_images_are_named_and_not_counted(tmp_path: Path) -> None:
    save(tmp_path, ["a.png"])
    (tmp_path / "b.txt").write_text("x")
    data = parse(path=str(tmp_path), used_image_num=5).dataset(INPUTS)
    assert len(data) == 1
    assert "b.txt" in data.warnings[0]


def test_a_size_that_the_model_does_not_take_is_an_error(tmp_path: Path) -> None:
    save(tmp_path, ["a.png"])
    with pytest.raises(ConfigError, match="but input 'x' is float32 1x3x9x11") as caught:
        parse(path=str(tmp_path), width=64).dataset(INPUTS)
    assert caught.value.key == "size"


def test_constants_of_other_inputs(tmp_path: Path) -> None:
    save(tmp_path, ["a.png"])
    inputs = [*INPUTS, InputSpec("scale", "float32", (1, 2))]
    data = parse(path=str(tmp_path), inputs=[{"name": "x"}, {"name": "scale", "value": 2.5}]).dataset(inputs)
    np.testing.assert_array_equal(data[0]["scale"], [[2.5, 2.5]])
    for entry, message in (
        ({"name": "y"}, "no input 'y'; it has x, scale"),
        ({"name": "scale", "shape": [3]}, "shape 3, the model has 1x2"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            parse(path=str(tmp_path), inputs=[entry]).dataset(inputs)
        assert caught.value.key == "inputs"
    with pytest.raises(ConfigError, match=r"is int32; 0.5 is no whole number"):
        parse(path=str(tmp_path), inputs=[{"name": "n", "value": 0.5}]).dataset(
            [*INPUTS, InputSpec("n", "int32", (1,))]
        )


def test_sequences(tmp_path: Path) -> None:
    for index in (0, 1, 2):
        folder = tmp_path / f"input_{index}"
        folder.mkdir()
        (folder / "input.json").write_text(json.dumps({"inputs": [{"name": "x", "shape": [1, 2]}]}))
        (folder / "x.txt").write_text(f"{index} 5")
    inputs = [InputSpec("x", "float32", (1, 2)), InputSpec("n", "int32", (1,))]
    settings = {
        "path": str(tmp_path),
        "input_type": "sequence",
        "used_sample_num": 2,
        "inputs": [{"name": "n", "value": 3}],
    }
    config = parse_quant_json(json.dumps({**settings, "width": 8}))
    assert "width: for images only" in config.notes[0]
    data = config.dataset(inputs)
    assert len(data) == 2
    np.testing.assert_array_equal(data[1]["x"], [[1, 5]])
    np.testing.assert_array_equal(data[1]["n"], [3])
    plain = parse_quant_json(json.dumps({"path": str(tmp_path), "input_type": "sequence"}))
    assert isinstance(plain.dataset(inputs[:1]), SequenceFolder)


def test_sequence_with_files_instead_of_folders(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1 2")
    config = parse_quant_json(json.dumps({"path": str(tmp_path), "input_type": "sequence"}))
    with pytest.raises(InputError, match="it has no sub-folders"):
        config.dataset(INPUTS)


def test_pixels_are_those_of_the_process(tmp_path: Path) -> None:
    from PIL import Image

    pixels = noise(9, 11)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = parse(path=str(tmp_path), mean=[1, 2, 3], normal=[0.5, 0.25, 2]).dataset(INPUTS)
    want = (pixels[..., ::-1].astype(np.float32) - [1, 2, 3]) * [0.5, 0.25, 2]
    np.testing.assert_allclose(data[0]["x"][0], want.transpose(2, 0, 1), rtol=1e-6)
