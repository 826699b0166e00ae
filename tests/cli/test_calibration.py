"""Commands that take data: options, what they do, and what they refuse. A stand-in quantizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mnnq
from mnnq.cli.main import run
from mnnq.ir.model import Model
from tests import mnn_models
from tests.cli import offline_stand_in
from tests.cli.offline_stand_in import StandIn
from tests.data.pictures import save


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return offline_stand_in.install(monkeypatch)


def network() -> Model:
    """A network for 16x16 pictures of 0 to 1."""
    weight = np.random.default_rng(0).normal(0, 1, (40, 3, 3, 3)).astype(np.float32)
    model = mnn_models.single_conv(weight, size=16)
    model.ops[2].params["common"]["pads"] = np.ones(4, np.int32)
    return model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.mnn"
    network().save(path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return save(tmp_path / "images", [f"{i}.png" for i in range(4)], 16, 16)


def failed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that is used wrongly."""
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.strip().splitlines()[-1]


# -- quant


def test_calib_makes_static_int8(
    model: Path, images: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["quant", str(model), "--calib", str(images), "--preset", "unit"]) == 0
    output = model.with_name("net-int8.mnn")
    assert output.exists()
    ((config, samples),) = stand_in.calls
    assert (config.feature_method, config.skip, config.bits) == ("mse", (), 8)
    assert len(samples) == 4
    assert 0 <= samples[0]["x"].min() < samples[0]["x"].max() <= 1
    captured = capsys.readouterr()
    assert "1 of 1 layers compute in int8; data: 4 images of" in captured.out
    assert "output 'y': cosine 0.999000, SQNR 30.0 dB" in captured.out
    assert captured.err == ""


def test_options_arrive(model: Path, images: Path, stand_in: StandIn, tmp_path: Path) -> None:
    arguments = [
        "quant", str(model), "-o", str(tmp_path / "o.mnn"), "--int8", "--calib", str(images), "--preset", "imagenet",
        "--range", "kl", "--symmetric-activations", "--bits", "6", "--skip", "conv", "--min-sqnr", "12", "--fix",
        "--force", "--samples", "2", "--shuffle", "1", "--format", "BGR", "--mean", "1,2,3", "--normal", "0.5",
        "--resize", "stretch", "--threads", "1",
    ]  # fmt: skip
    assert run(arguments) == 0
    ((config, samples),) = stand_in.calls
    assert (config.feature_method, config.symmetric, config.bits, config.skip) == ("kl", True, 6, ("conv",))
    assert (config.min_sqnr_db, config.fix, config.force, config.threads) == (12.0, True, True, 1)
    assert len(samples) == 2
    pixels = [np.asarray(Image.open(images / f"{i}.png"), np.float32) for i in range(4)]
    wanted = [((p[..., ::-1] - [1, 2, 3]) * 0.5).transpose(2, 0, 1)[None] for p in pixels]
    assert any(np.allclose(samples[0]["x"], one) for one in wanted)


def test_json_holds_report_and_data(
    model: Path, images: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["quant", str(model), "--calib", str(images), "--preset", "unit", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["layers"][0]["integer"] is True
    assert record["data"].startswith("4 images of")
    assert record["bytes"] == model.with_name("net-int8.mnn").stat().st_size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--int8"], "--int8 needs real data; give them with --calib"),
        (["--fix"], "--fix needs real data"),
        (["--max-drop", "1%"], "--max-drop needs real data"),
        (["--preset", "unit"], "--preset goes with data from files"),
        (["--samples", "3"], "--samples goes with --calib"),
        (["--preview", "a.png"], "--preview goes with data from files"),
        (["--calib", "DIR", "--preset", "unit", "--labels", "l.txt"], "--labels goes with --max-drop"),
        (["--metric", "accuracy"], "--metric goes with --max-drop"),
        (["--calib", "DIR"], "say how pixels become values of the input: a preset (imagenet"),
        (
            ["--calib", "DIR", "--preset", "unit", "--method", "hqq", "--fix"],
            "--fix is for static int8, but --method",
        ),
        (["--calib", "DIR", "--preset", "unit", "--int8", "--block", "32"], "--block is for weights alone"),
        (["--calib", "DIR", "--preset", "unit", "--eval", "DIR"], "--eval goes with --max-drop"),
        (["--calib", "DIR", "--preset", "unit", "--max-drop", "-1"], "use a drop such as 0.5% or 0.005"),
        (["--calib", "DIR", "--preset", "unit", "--size", "8x8"], "size: (8, 8), but input 'x'"),
        (["--calib", "DIR", "--preset", "unit", "--mean", "1,2"], "mean: 2 numbers for RGB"),
        (
            ["--calib", "DIR", "--preset", "unit", "--max-drop", "1%", "--fallback", "8"],
            "static int8 leaves layers",
        ),
        (["--calib", "DIR", "--preset", "unit", "--fallback", "8"], "--fallback goes with --max-drop"),
        (["--calib", "NOTHING", "--preset", "unit"], "No such file or directory"),
        (
            ["--calib", "DIR", "--preset", "unit", "--max-drop", "1%", "--metric", "accuracy"],
            "accuracy needs labels",
        ),
        (["--calib", "DIR", "--preset", "unit", "--image-input", "z"], "the model has no input 'z'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_named(
    options: list[str],
    message: str,
    model: Path,
    images: Path,
    stand_in: StandIn,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [
        str(images) if o == "DIR" else str(images / "nothing") if o == "NOTHING" else o for o in options
    ]
    assert message in failed(["quant", str(model), *options], capsys)
    assert not model.with_name("net-int8.mnn").exists()
    assert not model.with_name("net-w8.mnn").exists()


def test_unreadable_files_and_strange_ranges_are_warnings(
    model: Path, images: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "notes.txt").write_text("x")
    assert run(["quant", str(model), "--calib", str(images), "--preset", "raw", "--samples", "9"]) == 0
    err = capsys.readouterr().err
    assert "warning: " in err
    assert "1 file is no readable image and not used: notes.txt" in err
    assert "like raw pixels" in err
    assert "9 samples were asked for, there are 4 images of" in err


def test_preview_is_written_and_ranges_printed(
    model: Path, images: Path, stand_in: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    assert (
        run(["quant", str(model), "--calib", str(images), "--preset", "unit", "--preview", str(sheet)]) == 0
    )
    with Image.open(sheet) as picture:
        assert picture.size == (44, 44)
    err = capsys.readouterr().err
    assert "note: input 'x' (1x3x16x16): 0" in err
    assert "shows the first 4 samples" in err


def test_the_preview_replaces_neither_model_nor_images(
    model: Path, images: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["quant", str(model), "--calib", str(images / "0.png"), "--preset", "unit"]
    message = failed([*arguments, "--preview", str(images / "0.png")], capsys)
    assert "would replace the data" in message


# -- a metric


def test_max_drop_leaves_layers_float(
    tmp_path: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "chain.mnn"
    mnn_models.chain().save(path)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((24, 96, 8, 8)).astype(np.float32))
    arguments = ["quant", str(path), "--calib", str(tmp_path / "x.npy"), "--max-drop", "5%", "--json"]
    assert run(arguments) == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert record["metric"]["met"] is True
    assert record["metric"]["reference"] == 1.0
    assert record["metric"]["value"] >= 0.95 - 1e-9
    skipped = record["metric"]["skipped"]
    assert skipped
    last = stand_in.calls[-1][0]
    assert set(skipped) <= set(last.skip)
    assert "trial 1 of at most" in captured.err
    assert "s left" in captured.err


def test_max_drop_with_a_metric_of_the_user(
    tmp_path: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "chain.mnn"
    mnn_models.chain().save(path)
    np.save(tmp_path / "x.npy", np.zeros((2, 96, 8, 8), np.float32))
    (tmp_path / "metric.py").write_text("def score(outputs, sample):\n    return 0.25\n")
    arguments = ["quant", str(path), "--calib", str(tmp_path / "x.npy"), "--max-drop", "0"]
    assert run([*arguments, "--metric", f"{tmp_path}/metric.py:score"]) == 0
    assert "metric 0.2500 -> 0.2500 (kept); layers left float: none" in capsys.readouterr().out


def test_max_drop_for_weights_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "chain.mnn"
    mnn_models.chain().save(path)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((24, 96, 8, 8)).astype(np.float32))
    arguments = [
        "quant",
        str(path),
        "-b",
        "2",
        "--calib",
        str(tmp_path / "x.npy"),
        "--max-drop",
        "5%",
        "--json",
    ]
    assert run(arguments) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["metric"]["met"] is True
    skipped = set(record["metric"]["skipped"])
    assert skipped
    assert {layer["name"] for layer in record["layers"] if layer["bits"] == 32} == skipped


def test_weights_fall_back_to_more_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "chain.mnn"
    mnn_models.chain().save(path)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((24, 96, 8, 8)).astype(np.float32))
    arguments = ["quant", str(path), "-b", "2", "--calib", str(tmp_path / "x.npy"), "--max-drop", "5%"]
    assert run([*arguments, "--fallback", "8", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    skipped = set(record["metric"]["skipped"])
    assert skipped
    assert {layer["name"] for layer in record["layers"] if layer["bits"] == 8} == skipped
    assert run([*arguments, "--fallback", "16"]) == 0
    assert "layers left at 16 bits: " in capsys.readouterr().out


def test_a_target_that_cannot_be_met_writes_the_best(
    tmp_path: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "chain.mnn"
    mnn_models.chain().save(path)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((24, 96, 8, 8)).astype(np.float32))
    arguments = [
        "quant",
        str(path),
        "--calib",
        str(tmp_path / "x.npy"),
        "--max-drop",
        "0",
        "--max-trials",
        "1",
    ]
    assert run(arguments) == 0
    captured = capsys.readouterr()
    assert "the best model found is written" in captured.err
    assert "1 trials are done" in captured.err
    assert "NOT kept" in captured.out
    assert path.with_name("chain-int8.mnn").exists()


# -- mnnquant


def settings(images: Path, **changes: Any) -> dict[str, Any]:
    return {
        "format": "RGB", "mean": [0, 0, 0], "normal": [1 / 255] * 3, "width": 16, "height": 16, "path": str(images),
        "used_image_num": 3, "feature_quantize_method": "KL", "weight_quantize_method": "MAX_ABS", **changes,
    }  # fmt: skip


def mnnquant(model: Path, config: dict[str, Any], *options: str) -> int:
    path = model.with_name("quant.json")
    path.write_text(json.dumps(config))
    return run(["mnnquant", str(model), str(model.with_name("out.mnn")), str(path), *options])


def test_mnnquant_does_what_the_file_says(
    model: Path, images: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"quant_bits": 4, "skip_quant_op_names": ["conv"], "feature_clamp_value": 100, "batch_size": 8}
    assert mnnquant(model, settings(images, **changes)) == 0
    ((config, samples),) = stand_in.calls
    assert (config.feature_method, config.weight_method, config.bits) == ("kl", "max_abs", 4)
    assert (config.skip, config.feature_clamp, config.compat) == (("conv",), 100, False)
    assert len(samples) == 3
    captured = capsys.readouterr()
    assert "note: batch_size changes nothing" in captured.err
    assert "asked for" not in captured.err
    assert mnnquant(model, settings(images, used_image_num=30)) == 0
    assert "30 samples were asked for, there are 4 images" in capsys.readouterr().err
    assert "overflow" not in captured.out
    assert model.with_name("out.mnn").exists()


def test_mnnquant_debug_shows_every_layer(
    model: Path, images: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mnnquant(model, settings(images, debug=True), "--compat") == 0
    out = capsys.readouterr().out
    assert "cosine" in out
    assert "overflow %" in out
    assert stand_in.calls[0][0].compat is True


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "RBG"}, 'quant.json: format: "RBG", wanted one of RGB'),
        ({"feature_quantize_method": "MAE"}, 'feature_quantize_method: "MAE", wanted one of KL, ADMM, EMA'),
        ({"path": "/nothing/here"}, "quant.json: path: '/nothing/here': no such folder"),
        ({"width": "16"}, 'width: "16", wanted a whole number'),
        ({"quant_bit": 8}, "quant_bit: no such key; did you mean 'quant_bits'?"),
        ({"width": 64}, "but input 'x' is float32 1x3x16x16"),
        ({"inputs": [{"name": "y"}]}, "inputs: the model has no input 'y'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mnnquant_names_what_is_wrong(
    changes: dict[str, Any],
    message: str,
    model: Path,
    images: Path,
    stand_in: StandIn,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert mnnquant(model, settings(images, **changes)) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not model.with_name("out.mnn").exists()


def test_mnnquant_without_its_files(
    model: Path, images: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Missing argument" in failed(["mnnquant", str(model), "out.mnn"], capsys)
    assert "No such file" in failed(
        ["mnnquant", str(model), str(model.with_name("o.mnn")), "none.json"], capsys
    )
    path = model.with_name("quant.json")
    path.write_text(json.dumps(settings(images)))
    missing = str(model.with_name("missing.mnn"))
    assert "No such file" in failed(["mnnquant", missing, str(model.with_name("o.mnn")), str(path)], capsys)
    assert "would replace the configuration" in failed(["mnnquant", str(model), str(path), str(path)], capsys)
    assert "would replace the input" in failed(["mnnquant", str(model), str(model), str(path)], capsys)


# -- compare


def test_compare_shows_layers_and_fails_below_the_threshold(
    model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = model.with_name("small.mnn")
    mnnq.quantize_weights(mnnq.load(model), bits=4).save(small)
    arguments = ["compare", str(model), str(small), "--data", str(images), "--preset", "unit"]
    assert run(arguments) == 0
    out = capsys.readouterr().out
    assert "conv" in out
    assert "passed: " in out
    assert run([*arguments, "--min-sqnr", "80"]) == 1
    assert "is below 80" in capsys.readouterr().out
    assert run([*arguments, "--min-cosine", "1", "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert record["passed"] is False
    assert record["samples"] == 4
    assert record["layers"][0]["node"] == "conv"
    assert run([*arguments, "--no-layers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == []


def test_compare_on_random_data(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["compare", str(model), str(model), "--random", "1", "--samples", "2", "--min-sqnr", "100"]) == 0
    )
    assert "2 samples (2 random samples)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give the data to compare on: --data DIR or FILE, or --random SEED"),
        (["--random", "1", "--data", "x.npy"], "give the data to compare on"),
        (["--random", "1", "--preset", "unit"], "--preset goes with data from files, not with --random"),
        (["--data", "none.npy"], "No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_compare_used_wrongly(
    options: list[str], message: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in failed(["compare", str(model), str(model), *options], capsys)
