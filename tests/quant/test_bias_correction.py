"""Bias correction, and the stepping through layers that it rests on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mnnq
from mnnq.errors import ConfigError, InputError
from mnnq.ir.model import Model
from mnnq.quantization.bias_correction import correct_bias, output_sqnr
from mnnq.quantization.stepwise import Stepper
from mnnq.quantization.windows import Windows
from mnnq.writer.to_mnn import to_bytes


def _weights(rng: np.random.Generator, name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array((rng.standard_normal(shape) * 0.2 + 0.05).astype(np.float32), name)


@pytest.fixture
def net(tmp_path: Path) -> Model:
    """Padding, strides, groups, depthwise, transposed convolution, a matrix product, a residual."""
    rng = np.random.default_rng(5)
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1, 0, 1, 2], group=16),
        helper.make_node("Conv", ["r1", "w3"], ["c3"], pads=[2, 2, 2, 2], dilations=[2, 2], group=2),
        helper.make_node("Add", ["c3", "r1"], ["s"]),
        helper.make_node("Relu", ["s"], ["r3"]),
        helper.make_node("ConvTranspose", ["r3", "w4"], ["c4"], strides=[2, 2], pads=[1, 1, 0, 0]),
        helper.make_node("GlobalAveragePool", ["c4"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "w5"], ["y"]),
        helper.make_node("ReduceMean", ["c2"], ["z"], axes=[2, 3], keepdims=0),
    ]
    values = [
        _weights(rng, "w1", 16, 3, 3, 3),
        _weights(rng, "b1", 16),
        _weights(rng, "w2", 16, 1, 3, 3),
        _weights(rng, "w3", 16, 8, 3, 3),
        _weights(rng, "w4", 16, 8, 3, 3),
        _weights(rng, "w5", 8, 12),
    ]
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "h", "w"])
    sinks = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "z")]
    graph = helper.make_graph(nodes, "net", [source], sinks, values)
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), path)
    return mnnq.load(path)


@pytest.fixture
def samples() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(6)
    sizes = [(14, 18), (13, 18), (14, 18)]
    return [{"x": rng.random((1, 3, h, w)).astype(np.float32)} for h, w in sizes]


@pytest.mark.parametrize("memory", [1 << 30, 0, 20_000])
def test_stepping_gives_the_outputs_of_the_whole_models(
    net: Model, samples: list[dict[str, np.ndarray]], memory: int
) -> None:
    small = mnnq.quantize_weights(net, bits=3)
    with Stepper(net, small, samples, memory=memory) as stepper:
        seen = [layer for step in stepper for layer in step.layers]
        pairs = list(stepper.outputs())
    assert len(seen) == len(set(seen)) == stepper.layers == 6
    sessions = [mnnq.InferenceSession(to_bytes(model)) for model in (net, small)]
    for sample, sides in zip(samples, pairs, strict=True):
        for session, got in zip(sessions, sides, strict=True):
            for a, b in zip(session.run(net.outputs, sample), got, strict=True):
                np.testing.assert_array_equal(a, b)


def test_mean_outputs_become_those_of_the_float_model(
    net: Model, samples: list[dict[str, np.ndarray]]
) -> None:
    """Each layer is checked before its activation against the runtime itself."""
    small = mnnq.quantize_weights(net, bits=2)
    report = correct_bias(small, net, samples, measure=True)
    assert report.samples == 3
    assert len(report.layers) == 6
    assert all(shift.after < 1e-6 < shift.before for shift in report.layers)
    assert report.sqnr_before is not None
    assert report.sqnr_after is not None
    assert report.sqnr_after > report.sqnr_before + 3
    means: list[dict[str, np.ndarray]] = [{}, {}]
    with Stepper(net, small, samples) as stepper:
        for step in stepper:
            for layer in step.layers:
                ops = stepper.layer(layer)
                for side, op in enumerate(ops):
                    ys = [stepper.linear(op)(pair[side]) for pair in step.inputs(layer)]
                    total = sum(y.sum((0, 2, 3), dtype=np.float64) for y in ys)
                    count = sum(y[:, 0].size for y in ys)
                    bias = np.asarray(op.params.get("bias"), np.float64)
                    means[side][layer] = total / count + bias
    for layer, mean in means[0].items():
        np.testing.assert_allclose(means[1][layer], mean, atol=2e-5 * np.abs(mean).max())


def test_only_biases_change(net: Model, samples: list[dict[str, np.ndarray]]) -> None:
    small = mnnq.quantize_weights(net, bits=2)
    before = to_bytes(small)
    exact = to_bytes(net)
    correct_bias(small, net, samples)
    after = to_bytes(small)
    assert to_bytes(net) == exact
    assert len(before) == len(after)
    assert before != after


def test_a_model_that_is_exact_stays_as_it_is(net: Model, samples: list[dict[str, np.ndarray]]) -> None:
    same = net.copy()
    report = correct_bias(same, net, samples)
    assert all(shift.before == shift.after == 0 for shift in report.layers)
    assert output_sqnr(same, net, samples) == float("inf")


def test_samples_are_checked(net: Model) -> None:
    small = mnnq.quantize_weights(net, bits=4)
    with pytest.raises(ConfigError, match="empty"):
        correct_bias(small, net, [])
    with pytest.raises(InputError, match="'y'"):
        correct_bias(small, net, [{"y": np.zeros((1, 3, 8, 8), np.float32)}])
    with pytest.raises(InputError, match="float64"):
        correct_bias(small, net, [{"x": np.zeros((1, 3, 8, 8))}])


def test_models_must_have_the_same_layers(net: Model, samples: list[dict[str, np.ndarray]]) -> None:
    other = net.copy()
    other.ops = [op for op in other.ops if op.type != "ConvolutionDepthwise"]
    other.outputs = ["y"]
    with pytest.raises(ConfigError, match="same layers"):
        correct_bias(other, net, samples)


@pytest.mark.parametrize("pads", [None, (0, 0, 0, 0), (1, 2, 3, 0), (4, 4, 4, 4)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 2)])
def test_tap_sums_are_sums_over_windows(
    pads: tuple[int, int, int, int] | None, stride: int, dilation: int
) -> None:
    windows = Windows((3, 2), (stride, stride), (dilation, dilation), 1, pads)
    x = np.random.default_rng(1).standard_normal((2, 3, 7, 5)).astype(np.float32)
    (top, rows), (left, columns) = windows.axis(0, 7), windows.axis(1, 5)
    padded = np.pad(x, ((0, 0), (0, 0), (top, 20), (left, 20)))
    want = np.zeros((3, 3, 2))
    for oy in range(rows):
        for ox in range(columns):
            part = padded[:, :, oy * stride :, ox * stride :][
                :, :, : 3 * dilation : dilation, : 2 * dilation : dilation
            ]
            want += part.sum(0)
    sums, count = windows.tap_sums(x)
    np.testing.assert_allclose(sums, want, atol=1e-5)
    assert count == 2 * rows * columns
