"""Factors per input channel: exact, and of use where few inputs are much stronger than the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mnnq
from mnnq.ir.model import Model
from mnnq.quantization import input_scaling
from mnnq.quantization.input_scaling import find_writer
from mnnq.writer.to_mnn import to_bytes

CHANNELS = 64


def _model(path: Path, kind: str, *, residual: bool = False) -> Model:
    """A normalization (or a convolution with ReLU) with a few strong channels, read by two layers."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.1).astype(np.float32)

    strong = np.ones(CHANNELS, np.float32)
    strong[[5, 20, 41]] = 40
    outputs = ["a", "b"]
    if kind == "norm":
        constants = {
            "g": strong,
            "s": normal(CHANNELS) * strong,
            "w": normal(CHANNELS, 48),
            "v": normal(CHANNELS, 32),
        }
        nodes = [
            helper.make_node("LayerNormalization", ["x", "g", "s"], ["h"], axis=-1),
            helper.make_node("MatMul", ["h", "w"], ["a"]),
            helper.make_node("MatMul", ["h", "v"], ["b"]),
        ]
        shape: list[int] = [1, 24, CHANNELS]
    else:
        constants = {
            "k": normal(CHANNELS, 8, 1, 1) * strong[:, None, None, None],
            "s": normal(CHANNELS) * strong,
            "w": normal(48, CHANNELS, 3, 3),
            "v": normal(32, CHANNELS, 3, 3),
        }
        nodes = [
            helper.make_node("Conv", ["x", "k", "s"], ["c"]),
            helper.make_node("Relu", ["c"], ["h"]),
            helper.make_node("Conv", ["h", "w"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Conv", ["h", "v"], ["b"], pads=[1, 1, 1, 1]),
        ]
        shape = [1, 8, 9, 9]
    if residual:
        nodes.append(helper.make_node("Sigmoid", ["h"], ["e"]))
        outputs.append("e")
    graph = helper.make_graph(
        nodes,
        kind,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(proto), path)
    return mnnq.load(path)


def _samples(kind: str, count: int, seed: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    shape = (1, 24, CHANNELS) if kind == "norm" else (1, 8, 9, 9)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def _error(model: Model, small: Model, kind: str) -> float:
    sessions = [mnnq.InferenceSession(to_bytes(m)) for m in (model, small)]
    signal = noise = 0.0
    for sample in _samples(kind, 8, 9):
        for exact, actual in zip(*(session.run(None, sample) for session in sessions), strict=True):
            signal += float(np.square(exact).sum())
            noise += float(np.square(exact - actual).sum())
    return noise / signal


@pytest.mark.parametrize("kind", ["norm", "conv"])
def test_factors_lower_the_error_of_uneven_inputs(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model(tmp_path / "m.onnx", kind)
    options = {"bits": 4, "method": "auto", "calib": _samples(kind, 16, 1)}
    small = mnnq.quantize_weights(model, **options)
    methods = [layer.method or "" for layer in small.report.layers]
    assert sum("inputs^" in method for method in methods) == 2
    monkeypatch.setattr(input_scaling, "UNEVEN", np.inf)
    plain = mnnq.quantize_weights(model, **options)
    assert not any("inputs^" in (layer.method or "") for layer in plain.report.layers)
    assert _error(model, small, kind) < 0.8 * _error(model, plain, kind)


@pytest.mark.parametrize("kind", ["norm", "conv"])
def test_factors_are_taken_back_exactly(tmp_path: Path, kind: str) -> None:
    model = _model(tmp_path / "m.onnx", kind)
    small = mnnq.quantize_weights(
        model, bits=8, method="auto", calib=_samples(kind, 16, 1), bias_correction=False
    )
    assert any("inputs^" in (layer.method or "") for layer in small.report.layers)
    assert _error(model, small, kind) < 1e-3


@pytest.mark.parametrize("kind", ["norm", "conv"])
def test_what_others_read_is_not_scaled(tmp_path: Path, kind: str) -> None:
    model = _model(tmp_path / "m.onnx", kind, residual=True)
    small = mnnq.quantize_weights(model, bits=4, method="auto", calib=_samples(kind, 16, 1))
    assert not any("inputs^" in (layer.method or "") for layer in small.report.layers)


def test_bounded_activations_do_not_take_factors(tmp_path: Path) -> None:
    model = _model(tmp_path / "m.onnx", "conv")
    convolutions = [op for op in model.ops if op.type == "Convolution"]
    readers = [op for op in convolutions if op.inputs[0] == convolutions[1].inputs[0]]
    name = readers[0].inputs[0]
    assert find_writer(model.ops, model.outputs, name, readers) is convolutions[0]
    convolutions[0].params["common"]["relu6"] = True
    assert find_writer(model.ops, model.outputs, name, readers) is None


def test_an_interrupted_run_with_factors_continues(tmp_path: Path) -> None:
    model = _model(tmp_path / "m.onnx", "norm")
    options = {"bits": 4, "method": "auto", "calib": _samples("norm", 16, 1), "state": tmp_path / "state"}
    want = to_bytes(mnnq.quantize_weights(model, **options))
    next(iter(sorted((tmp_path / "state").iterdir()))).unlink()
    assert to_bytes(mnnq.quantize_weights(model, **options)) == want
