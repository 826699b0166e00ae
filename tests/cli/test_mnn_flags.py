"""``mnnq mnnconvert``: each option of MNN's converter does what it says, says that it does nothing, or is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import mnnq
from mnnq.cli import mnn_flags
from mnnq.cli.main import run
from mnnq.quantization.stored import Storage, describe
from tests import mnn_models

#: What MNN 3.6.1 prints for ``mnnconvert --help`` (names only).
MNN_OPTIONS = [
    "help",
    "version",
    "framework",
    "modelFile",
    "MNNModel",
    "prototxt",
    "fp16",
    "benchmarkModel",
    "bizCode",
    "debug",
    "forTraining",
    "weightQuantBits",
    "weightQuantAsymmetric",
    "weightQuantBlock",
    "weightQuantScaleBit",
    "hqq",
    "compressionParamsFile",
    "OP",
    "saveStaticModel",
    "targetVersion",
    "customOpLibs",
    "info",
    "authCode",
    "inputConfigFile",
    "testdir",
    "testconfig",
    "thredhold",
    "JsonFile",
    "alignDenormalizedValue",
    "detectSparseSpeedUp",
    "splitBlockQuant",
    "saveExternalData",
    "useGeluApproximation",
    "convertMatmulToConv",
    "transformerFuse",
    "transformerFuseC4",
    "transformerFuseQkvProj",
    "transformerFuseGateUpProj",
    "transformerFuseLnProj",
    "groupConvNative",
    "allowCustomOp",
    "useOriginRNNImpl",
    "optimizeLevel",
    "optimizePrefer",
    "keepInputFormat",
    "batch",
    "dumpPass",
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "chain.mnn"
    mnn_models.chain().save(path)
    return path


def convert(model: Path, *flags: str) -> tuple[int, Path]:
    output = model.with_name("out.mnn")
    return run(
        ["mnnconvert", "-f", "MNN", "--modelFile", str(model), "--MNNModel", str(output), *flags]
    ), output


def bits_of(path: Path) -> list[int]:
    return [describe(op).bits for _, op in mnnq.load(path).weight_ops()]


def test_every_option_of_mnn_is_known() -> None:
    known = {"help", *(name.lstrip("-") for param in mnn_flags.command.params for name in param.opts)}
    assert set(MNN_OPTIONS) - known == set()


def test_the_line_of_the_guide_does_what_it_says(model: Path) -> None:
    status, output = convert(model, "--weightQuantBits", "4", "--weightQuantBlock", "32", "--hqq")
    assert status == 0
    ours = mnnq.load(output)
    want = mnnq.quantize_weights(mnnq.load(model), bits=4, block=32, method="hqq")
    for (_, op), (_, other) in zip(ours.weight_ops(), want.weight_ops(), strict=True):
        stored = describe(op)
        assert (stored.bits, stored.symmetric, stored.block) == (4, False, 32 if op.name == "stem" else None)
        np.testing.assert_array_equal(
            op.params["quanParameter"]["buffer"], other.params["quanParameter"]["buffer"]
        )


@pytest.mark.parametrize(
    ("flags", "symmetric"),
    [
        ([], False), (["--weightQuantAsymmetric=0"], True), (["--weightQuantAsymmetric", "0"], True),
        (["--weightQuantAsymmetric=false"], True), (["--weightQuantAsymmetric=1"], False),
        (["--weightQuantAsymmetric", "1"], False), (["--weightQuantAsymmetric=true"], False),
        (["--weightQuantAsymmetric"], False),
    ],
)  # fmt: skip
def test_asymmetric_means_asymmetric(
    flags: list[str], symmetric: bool, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, output = convert(model, "--weightQuantBits=8", *flags)
    assert status == 0
    assert {describe(op).symmetric for _, op in mnnq.load(output).weight_ops()} == {symmetric}
    assert ("MNN takes it for symmetric" in capsys.readouterr().err) == (flags == ["--weightQuantAsymmetric"])


@pytest.mark.parametrize("bits", range(2, 9))
def test_bits_are_honoured(bits: int, model: Path) -> None:
    status, output = convert(model, "--weightQuantBits", str(bits))
    assert (status, bits_of(output)) == (0, [bits] * 3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weightQuantBits", "9"], "use 2 to 8"),
        (["--weightQuantBits", "1"], "use 2 to 8"),
        (["--weightQuantBits", "-3"], "use 2 to 8"),
        (["--weightQuantBits", "16"], "use --fp16"),
        (["--weightQuantBits", "abc"], "not a valid integer"),
        (["--weightQuantBits", "4", "--weightQuantBlock", "8"], "block of 8"),
        (["--weightQuantBits", "4", "--weightQuantBlock", "10"], "block of 10"),
        (["--weightQuantBits", "4", "--hqq", "--weightQuantAsymmetric=0"], "--hqq fits an offset"),
        (["--weightQuantBits", "4", "--weightQuantAsymmetric=maybe"], "use 1 or 0"),
        (["--weightQuantBits", "4", "--weightQuantScaleBit", "8"], "32 bits or 16"),
        (["--weightQuantBlock", "32"], "does nothing without --weightQuantBits"),
        (["--hqq"], "does nothing without --weightQuantBits"),
        (["--weightQuantScaleBit", "16"], "does nothing without --weightQuantBits"),
        (["--weightQuantAsymmetric=0"], "does nothing without --weightQuantBits"),
        (["--weightQuantBit", "4"], "No such option"),
    ],
)
def test_what_mnn_clamps_or_drops_in_silence_is_an_error(
    flags: list[str], message: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, output = convert(model, *flags)
    error = capsys.readouterr().err
    assert (status, output.exists()) == (2, False)
    assert message in error
    assert error.count("\n") == 1


def test_fp16_with_bits_does_both_and_says_so(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, output = convert(model, "--fp16", "--weightQuantBits", "8")
    assert (status, bits_of(output)) == (0, [8, 8, 8])
    assert "MNN drops --weightQuantBits" in capsys.readouterr().err
    status, output = convert(model, "--fp16")
    assert (status, bits_of(output)) == (0, [16, 16, 16])


def test_scales_of_16_bits(model: Path) -> None:
    status, output = convert(model, "--weightQuantBits", "8", "--weightQuantScaleBit", "16")
    assert status == 0
    assert all(describe(op).fp16_scales for _, op in mnnq.load(output).weight_ops())


def test_external_data_and_codes_are_written(model: Path) -> None:
    status, output = convert(model, "--saveExternalData", "--bizCode", "shop", "--authCode", "me")
    assert status == 0
    assert Path(f"{output}.weight").exists()
    loaded = mnnq.load(output)
    assert (loaded.net["bizCode"], loaded.net["extraInfo"]["name"]) == ("shop", "me")


def test_sparse_weights_use_the_sparse_encoding(tmp_path: Path) -> None:
    weight = np.zeros((8, 256, 1, 1), np.float32)
    weight[:, ::37] = np.random.default_rng(0).standard_normal(weight[:, ::37].shape)
    path = tmp_path / "sparse.mnn"
    mnn_models.single_conv(weight).save(path)
    for flags, kind in (([], 1), (["--detectSparseSpeedUp"], 2)):
        status, output = convert(path, "--weightQuantBits", "8", "--weightQuantAsymmetric=0", *flags)
        assert status == 0
        (op,) = (op for _, op in mnnq.load(output).weight_ops())
        assert op.params["quanParameter"]["type"] == kind


def test_a_parameter_file_is_created_and_applied(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strategy = model.with_name("strategy.json")
    status, output = convert(model, "--weightQuantBits", "8", "--compressionParamsFile", str(strategy))
    assert status == 0
    assert "did not exist" in capsys.readouterr().err
    content = json.loads(strategy.read_text())
    layers = content["algo"][0]["quantParams"]["layer"]
    assert [layer["opName"] for layer in layers] == ["stem", "mid", "head__matmul_converted"]
    assert layers[0]["conv"] == {"inputChannel": 96, "outputChannel": 40, "kernelSize": [3, 3]}
    for layer, bits in zip(layers, (0, 16, 4), strict=True):
        layer["weight"][0]["bits"] = bits
    strategy.write_text(json.dumps(content))
    status, output = convert(model, "--weightQuantBits", "8", "--compressionParamsFile", str(strategy))
    assert (status, bits_of(output)) == (0, [32, 16, 4])
    status, output = convert(model, "--compressionParamsFile", str(strategy))
    assert (status, bits_of(output)) == (0, [32, 16, 4])


def test_an_entry_that_matches_nothing_is_an_error(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strategy = model.with_name("strategy.json")
    convert(model, "--weightQuantBits", "8", "--compressionParamsFile", str(strategy))
    strategy.write_text(strategy.read_text().replace('"opName": "stem"', '"opName": "stam"'))
    model.with_name("out.mnn").unlink()
    capsys.readouterr()
    status, output = convert(model, "--compressionParamsFile", str(strategy))
    assert (status, output.exists()) == (2, False)
    assert "no layer matches 'stam'" in capsys.readouterr().err
    status, _ = convert(model, "--compressionParamsFile", str(strategy), "--allow-unmatched")
    assert status == 0


@pytest.mark.parametrize("entry", mnn_flags._UNSUPPORTED, ids=lambda entry: entry.flag)
def test_unsupported_options_are_refused_unless_they_ask_for_nothing(
    entry: mnn_flags._Unsupported, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"0": "1", "1": "0", None: "7"}[entry.harmless]
    status, output = convert(model, f"{entry.flag}={other}")
    assert (status, output.exists()) == (2, False)
    assert f"{entry.flag} {other} is not supported: {entry.reason}" in capsys.readouterr().err
    if entry.harmless is not None:
        status, output = convert(model, f"{entry.flag}={entry.harmless}")
        assert (status, output.exists()) == (0, True)
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("entry", mnn_flags._IGNORED, ids=lambda entry: entry.flag)
def test_ignored_options_say_so(
    entry: mnn_flags._Ignored, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _ = convert(model, f"{entry.flag}=1")
    assert status == 0
    assert f"{entry.flag} changes nothing here: {entry.reason}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "-f is missing"),
        (["-f", "TF", "--modelFile", "a.pb", "--MNNModel", "b.mnn"], "-f TF is not supported"),
        (["-f", "CAFFE", "--modelFile", "a", "--MNNModel", "b.mnn"], "-f CAFFE is not supported"),
        (["-f", "ONNX", "--MNNModel", "b.mnn"], "--modelFile is missing"),
        (["-f", "ONNX", "--modelFile", "a.onnx"], "--MNNModel is missing"),
        (["-f", "ONNX", "--modelFile", "a.mnn", "--MNNModel", "b.mnn"], "does not fit the file name"),
        (["-f", "MNN", "--modelFile", "a.mnn", "--MNNModel", "b.mnn"], "a.mnn: No such file"),
    ],
)
def test_wrong_use_is_named(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["mnnconvert", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_info_and_op_print_and_write_nothing(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["mnnconvert", "-f", "MNN", "--modelFile", str(model), "--info"]) == 0
    assert "Convolution 2" in capsys.readouterr().out
    assert run(["mnnconvert", "--OP"]) == 0
    assert "Conv\n" in capsys.readouterr().out


def test_without_compression_weights_stay_float(model: Path) -> None:
    status, output = convert(model)
    assert status == 0
    assert {describe(op).storage for _, op in mnnq.load(output).weight_ops()} == {Storage.FLOAT}
