"""Static int8 from data to file, as a user does it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image

import mnnq
from mnnq.cli.main import run
from mnnq.data import ArrayDataset, input_specs
from mnnq.quantization.metrics import make_evaluator
from mnnq.writer.to_mnn import to_bytes
from tests import builders, mnn_models

#: Static int8.
offline = pytest.importorskip("mnnq.quantization.offline")
pytest.importorskip("mnnq.quantization.offline.calibration")

DIGITS = Path(__file__).resolve().parents[2] / "examples/digits"


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    return Path(shutil.copy(DIGITS / "digits.onnx", tmp_path / "digits.onnx"))


def accuracy(path: Path) -> float:
    model = mnnq.load(path)
    return make_evaluator(ArrayDataset(DIGITS / "digits_test.npz", input_specs(model)), "accuracy")(model)


def test_digits_keep_their_accuracy(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quant", str(digits), "--calib", str(DIGITS / "digits_calib.npz")]) == 0
    out = capsys.readouterr().out
    assert "layers compute in int8" in out
    small = digits.with_name("digits-int8.mnn")
    assert small.stat().st_size < 0.6 * digits.stat().st_size
    assert accuracy(small) >= accuracy(digits) - 0.01
    arguments = [
        "compare",
        str(digits),
        str(small),
        "--data",
        str(DIGITS / "digits_test.npz"),
        "--min-sqnr",
        "25",
    ]
    assert run(arguments) == 0


def test_max_drop_holds_on_the_test_pictures(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "quant", str(digits), "--calib", str(DIGITS / "digits_calib.npz"), "--int8", "--bits", "3", "--force",
        "--eval", str(DIGITS / "digits_test.npz"), "--max-drop", "0.5%", "--json",
    ]  # fmt: skip
    assert run(arguments) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["metric"]["met"] is True
    before, after = accuracy(digits), accuracy(digits.with_name("digits-int8.mnn"))
    assert after >= before - 0.005 - 1e-9
    assert record["metric"]["value"] == pytest.approx(after)
    assert record["metric"]["skipped"]
    integer = {layer["name"] for layer in record["layers"] if layer["integer"]}
    assert not integer & set(record["metric"]["skipped"])


def test_mnnquant_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What MNN's own command cannot do: any valid call (it aborts)."""
    monkeypatch.chdir(tmp_path)
    weight = np.random.default_rng(0).normal(0, 0.5, (16, 3, 3, 3)).astype(np.float32)
    mnn_models.single_conv(weight, size=24).save("net.mnn")
    Path("images").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((30, 28)).save(f"images/{i}.jpg")
    settings = {
        "format": "RGB", "mean": [127.5] * 3, "normal": [1 / 127.5] * 3, "width": 24, "height": 24, "path": "images/",
        "feature_quantize_method": "KL", "weight_quantize_method": "MAX_ABS",
    }  # fmt: skip
    Path("quant.json").write_text(json.dumps(settings))
    assert run(["mnnquant", "net.mnn", "out.mnn", "quant.json"]) == 0
    assert "1 of " not in capsys.readouterr().err
    arguments = [
        "compare",
        "net.mnn",
        "out.mnn",
        "--data",
        "images",
        "--preset",
        "mobilenet",
        "--resize",
        "mnn",
    ]
    assert run([*arguments, "--min-sqnr", "20"]) == 0
    for method in ("ADMM", "EMA"):
        Path("quant.json").write_text(json.dumps({**settings, "feature_quantize_method": method}))
        assert run(["mnnquant", "net.mnn", f"{method}.mnn", "quant.json", "--compat"]) == 0
        assert run(["compare", "net.mnn", f"{method}.mnn", *arguments[3:], "--min-sqnr", "15"]) == 0


@pytest.mark.parametrize("method", ["KL", "ADMM", "EMA"])
def test_few_bits_need_no_clamp_value(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MNN stores saturated codes without ``weight_clamp_value``."""
    model = mnn_models.chain()
    data = ArrayDataset(
        np.random.default_rng(0).standard_normal((8, 96, 8, 8)).astype(np.float32), input_specs(model)
    )
    found = {}
    for bits in (8, 6, 4):
        config = offline.OfflineConfig(
            feature_method=method.lower(), weight_method="max_abs", bits=bits, force=True
        )
        result = offline.quantize_offline(model, data, config)
        found[bits] = mnnq.compare(model, result.model, data).outputs[0].sqnr_db
    assert found[8] > found[6] > found[4] > 3


def two_inputs(path: Path) -> Path:
    """A convolution of a picture, scaled by a second input."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Mul", ["r", "gain"], ["m"]),
        helper.make_node("Conv", ["m", "v"], ["y"]),
    ]
    constants = {
        "w": rng.normal(0, 0.3, (16, 3, 3, 3)).astype(np.float32),
        "b": rng.normal(0, 0.3, 16).astype(np.float32),
        "v": rng.normal(0, 0.3, (8, 16, 1, 1)).astype(np.float32),
    }
    inputs = {"image": np.zeros((1, 3, 12, 12), np.float32), "gain": np.zeros((1, 16, 1, 1), np.float32)}
    onnx.save(builders.model(nodes, inputs, ["y"], constants), path)
    return path


@pytest.mark.parametrize("method", ["mse", "kl", "admm", "ema"])
def test_models_of_several_inputs(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Crashes, NaN and layers silently left float in MNN's tool."""
    path = two_inputs(tmp_path / "two.onnx")
    rng = np.random.default_rng(1)
    images = rng.standard_normal((12, 3, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "data.npz", image=images, gain=rng.uniform(0.5, 1, (12, 16, 1, 1)).astype(np.float32))
    arguments = ["quant", str(path), "--calib", str(tmp_path / "data.npz"), "--range", method, "--json"]
    assert run(arguments) == 0
    record = json.loads(capsys.readouterr().out)
    convolutions = [layer for layer in record["layers"] if layer["op_type"] == "Convolution"]
    assert len(convolutions) == 2
    assert all(layer["integer"] for layer in convolutions)
    small = tmp_path / "two-int8.mnn"
    arguments = ["compare", str(path), str(small), "--data", str(tmp_path / "data.npz"), "--min-sqnr", "15"]
    assert run(arguments) == 0


def test_the_model_given_is_not_changed() -> None:
    model = mnn_models.chain()
    before = to_bytes(model)
    data = ArrayDataset(
        np.random.default_rng(0).standard_normal((4, 96, 8, 8)).astype(np.float32), input_specs(model)
    )
    result = offline.quantize_offline(model, data, offline.OfflineConfig(force=True))
    assert result.model is not model
    assert to_bytes(model) == before


def test_names_that_match_nothing_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mnn_models.chain().save(tmp_path / "m.mnn")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((4, 96, 8, 8)).astype(np.float32))
    arguments = ["quant", str(tmp_path / "m.mnn"), "--calib", str(tmp_path / "x.npy")]
    assert run([*arguments, "--skip", "nothing*"]) == 2
    assert "nothing*" in capsys.readouterr().err
    for method in ("mse", "kl", "admm", "ema"):
        assert run([*arguments, "--range", method, "--skip", "mid", "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert not next(layer for layer in record["layers"] if layer["name"] == "mid")["integer"]
