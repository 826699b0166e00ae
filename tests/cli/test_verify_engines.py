"""``mnnq verify`` with several runtimes: which are used, what is compared with what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mnnq
from mnnq import engines, verify
from mnnq.cli.main import run
from mnnq.errors import ConfigError, UnsupportedError
from tests import mnn_models
from tests.ops.harness import needs_mnn

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "digits.mnn"
    mnnq.load(DIGITS).save(path)
    return path


def broken(path: Path) -> Path:
    """The example model with a bias that is off."""
    changed = mnnq.load(DIGITS)
    _, head = list(changed.weight_ops())[-2]
    head.params["bias"] = head.params["bias"] + 3.0 * np.abs(head.params["bias"]).max()
    changed.save(path)
    return path


def test_our_runtime_needs_no_other(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    for options in ([], ["--memory-low"], ["--precision", "high"]):
        assert run(["verify", str(DIGITS), str(model), "--engine", "mnnq", "--json", *options]) == 0
        report = json.loads(capsys.readouterr().out)
        (result,) = report["results"]
        assert report["passed"] is result["passed"] is True
        assert (result["engine"].partition(",")[0], result["reference_engine"]) == ("mnnq", "onnxruntime")
        assert 0 < result["outputs"][0]["relative"] < 1e-4


def test_our_runtime_fails_a_broken_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    assert run(["verify", str(DIGITS), str(broken(tmp_path / "b.mnn")), "--engine", "mnnq"]) == 1
    assert "FAILED: mnnq against onnxruntime" in capsys.readouterr().out


@needs_mnn
@pytest.mark.peer
def test_all_compares_both(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    for options in ([], ["--engine", "all"]):
        assert run(["verify", str(DIGITS), str(model), *options]) == 0
        text = capsys.readouterr().out
        assert "passed: MNN against onnxruntime" in text
        assert "passed: mnnq against onnxruntime" in text


@needs_mnn
@pytest.mark.peer
def test_a_file_alone_is_compared_between_the_runtimes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "w2.mnn"
    mnnq.quantize_weights(mnn_models.chain(), bits=2).save(small)
    assert run(["verify", str(small), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert (result["engine"], result["reference_engine"]) == ("mnnq", "MNN")
    assert result["threshold"] == verify.FLOAT_THRESHOLD
    # MNN's fast convolutions for 3x3 kernels are off by 1e-4.
    assert result["outputs"][0]["relative"] < 5e-4


@needs_mnn
@pytest.mark.peer
def test_dynamic_quantization_is_compared_with_that_of_mnn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "w8.mnn"
    mnnq.quantize_weights(mnn_models.chain(), bits=8).save(small)
    errors = []
    for mode in ("auto", "always", "compat"):
        assert run(["verify", str(small), "--memory-low", "--dynamic", mode, "--json"]) == 0
        (result,) = json.loads(capsys.readouterr().out)["results"]
        assert result["engine"] == "mnnq, memory low"
        assert result["threshold"] > verify.FLOAT_THRESHOLD
        errors.append(result["outputs"][0]["relative"])
    assert len(set(errors)) > 1
    assert run(["verify", str(small), "--dynamic", "always"]) == 2
    assert "dynamic" in capsys.readouterr().err


@needs_mnn
@pytest.mark.peer
def test_a_file_is_compared_with_another(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(model), str(broken(tmp_path / "b.mnn"))]) == 1
    text = capsys.readouterr().out
    assert "FAILED: MNN against MNN" in text
    assert "FAILED: mnnq against MNN" in text


def test_without_mnn_only_our_runtime_is_compared(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    real = engines.installed
    monkeypatch.setattr(engines, "installed", lambda engine: engine != "mnn" and real(engine))
    assert run(["verify", str(DIGITS), str(model)]) == 0
    captured = capsys.readouterr()
    assert "note: MNN is not installed" in captured.err
    assert "passed: mnnq against onnxruntime" in captured.out
    for options in (["--engine", "all"], ["--engine", "mnn"]):
        assert run(["verify", str(DIGITS), str(model), *options]) == 2
        assert "MNN is not installed" in capsys.readouterr().err


def test_a_model_our_runtime_lacks_operators_for_is_left_to_mnn(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def lacking(
        reference: Path, model: Path, names: tuple[str, ...], **_: Any
    ) -> tuple[verify.VerifyResult, ...]:
        asked.append(names)
        if "mnnq" in names:
            raise UnsupportedError(["operator 'Nope' of node 'n'"], file=str(model))
        good = verify.OutputError("y", (1,), 0.0, 0.0, 1.0, float("inf"))
        return (verify.VerifyResult("a", "b", "MNN", 1, 0.1, (good,)),)

    monkeypatch.setattr(verify, "verify_engines", lacking)
    monkeypatch.setattr(engines, "installed", lambda _: True)
    assert run(["verify", str(DIGITS), str(model)]) == 0
    assert "warning: mnnq's own runtime is left out" in capsys.readouterr().err
    assert asked == [("mnn", "mnnq"), ("mnn",)]
    assert run(["verify", str(DIGITS), str(model), "--engine", "all"]) == 2
    assert "Nope" in capsys.readouterr().err


def test_unsupported_operators_come_back_from_the_worker(tmp_path: Path) -> None:
    network = mnn_models.chain()
    op = next(op for op in network.ops if op.name == "mid")
    op.type, op.param_type, op.params = "Svd", None, {}
    network.save(tmp_path / "svd.mnn")
    feeds = {"x": np.zeros((1, 96, 8, 8), np.float32)}
    with pytest.raises(UnsupportedError, match="Svd") as caught:
        engines.run_engine("mnnq", tmp_path / "svd.mnn", feeds, ["y"])
    assert len(caught.value.problems) == 1


def test_other_engines_are_refused(model: Path) -> None:
    with pytest.raises(ConfigError, match="use mnn, mnnq"):
        verify.verify(DIGITS, model, engine="onnxruntime")
