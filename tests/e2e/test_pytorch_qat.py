"""Exports of PyTorch's quantization-aware training (`models/make_qat.py`) keep their scales and their decisions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mnnq
from mnnq.writer.to_mnn import to_bytes
from tests.ops.harness import needs_mnn
from tests.peers.mnn_runtime import MnnRuntime

MODELS = Path(__file__).parent / "models"
DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits_test.npz"


def digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures ``[n, 1, 8, 8]`` from 0 to 1, and what they show."""
    with np.load(DIGITS) as data:
        return data["image"][:count].reshape(-1, 1, 8, 8), data["labels"][:count]


def wanted(path: Path, x: np.ndarray) -> np.ndarray:
    """Outputs of onnxruntime, node by node as the file says."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return np.asarray(runtime.InferenceSession(str(path), options).run(None, {"x": x})[0])


def sqnr_db(got: np.ndarray, want: np.ndarray) -> float:
    return float(10 * np.log10(np.square(want).sum() / np.square(got - want).sum()))


@pytest.mark.parametrize("kind", ["channel", "tensor"])
def test_scales_are_kept(kind: str) -> None:
    path = MODELS / f"qat_{kind}.onnx"
    model = mnnq.load(path)
    assert model.imported is not None
    assert [layer.reason for layer in model.imported.layers] == [
        *[None] * 5,
        "the source does not quantize its input",  # what the mean over the picture gives
    ]
    x, y = digits(200)
    want = wanted(path, x)
    session = mnnq.InferenceSession(to_bytes(model))
    got = np.concatenate([session.run(None, {"x": one[None]})[0] for one in x])
    assert (want.argmax(1) == y).mean() > 0.8
    assert (want.argmax(1) == got.argmax(1)).mean() >= 0.99
    assert sqnr_db(got, want) > 40


@needs_mnn
@pytest.mark.peer
@pytest.mark.parametrize("kind", ["channel", "tensor"])
def test_mnn_computes_the_same(kind: str, mnn_runtime: MnnRuntime) -> None:
    path = MODELS / f"qat_{kind}.onnx"
    model = mnnq.load(path)
    x, _ = digits(40)
    want = wanted(path, x)
    data = to_bytes(model)
    got = np.concatenate([mnn_runtime.run(data, {"x": one[None]}, ["y"])["y"] for one in x])
    assert (want.argmax(1) == got.argmax(1)).mean() >= 0.97
    assert sqnr_db(got, want) > 30
