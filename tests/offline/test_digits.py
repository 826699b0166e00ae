"""The model that the project ships, through the whole job."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import mnnq
from tests.ops.harness import needs_mnn
from tests.peers.mnn_runtime import MnnRuntime

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("digits_int8", EXAMPLE / "int8.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_accuracy_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = example().main(tmp_path / "digits.mnn")
    assert before > 0.98
    assert after >= before - 0.006
    assert "int8" in capsys.readouterr().out


@needs_mnn
@pytest.mark.peer
def test_the_real_runtime_decides_the_same(tmp_path: Path, mnn_runtime: MnnRuntime) -> None:
    path = tmp_path / "digits.mnn"
    example().main(path)
    with np.load(EXAMPLE / "digits_test.npz") as data:
        images = data["image"]
    ours = mnnq.InferenceSession(path).run(None, {"image": images})[0]
    theirs = mnn_runtime.run(path, {"image": images}, ["logits"])["logits"].reshape(ours.shape)
    assert np.mean(ours.argmax(1) == theirs.argmax(1)) > 0.99
