"""Errors of a kernel's taps that cancel: what ``auto`` does with convolutions without data."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mnnq
from mnnq import _native
from mnnq.errors import QuantizationError
from mnnq.ir.model import Model
from mnnq.quantization.bias_correction import output_sqnr
from mnnq.quantization.choices import KERNEL_CORRELATION
from mnnq.writer.to_mnn import to_bytes


@pytest.fixture
def net(tmp_path: Path) -> Model:
    """A 3x3, a depthwise 3x3 and a 1x1 convolution with ReLU between them."""
    rng = np.random.default_rng(2)
    values = {
        "w0": rng.standard_normal((32, 16, 3, 3)) / 12,
        "w1": rng.standard_normal((32, 1, 3, 3)) / 3,
        "w2": rng.standard_normal((8, 32, 1, 1)) / 6,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["c"], pads=[1, 1, 1, 1], group=32),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "w2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 24, 24])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "net.onnx")
    return mnnq.load(tmp_path / "net.onnx")


def _smoothed(x: np.ndarray) -> np.ndarray:
    for _ in range(2):
        x = sum(np.roll(np.roll(x, i, 2), j, 3) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 3
    return x


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "block"), [(3, 16), (4, None), (8, None)])
def test_outputs_are_nearer_on_smooth_inputs(
    net: Model, bits: int, block: int | None, symmetric: bool
) -> None:
    rng = np.random.default_rng(3)
    samples = [{"x": _smoothed(rng.standard_normal((1, 16, 24, 24))).astype(np.float32)} for _ in range(4)]
    gain = bits <= 5
    plain = mnnq.quantize_weights(
        net, bits=bits, block=block, symmetric=symmetric, method="search", gain_correction=gain
    )
    auto = mnnq.quantize_weights(net, bits=bits, block=block, symmetric=symmetric, method="auto")
    assert output_sqnr(auto, net, samples) > output_sqnr(plain, net, samples) + 0.3
    methods = {layer.name: layer.method for layer in auto.report.layers if layer.bits == bits}
    assert sorted(methods.values()) == ["search", "search, by kernel", "search, by kernel"]


def test_files_do_not_depend_on_threads_or_executors(net: Model) -> None:
    one = mnnq.quantize_weights(net, bits=4, method="auto", threads=1)
    two = mnnq.quantize_weights(net, bits=4, method="auto", threads=2)
    with ThreadPoolExecutor(2) as executor:
        ahead = mnnq.quantize_weights(net, bits=4, method="auto", executor=executor)
    assert to_bytes(one) == to_bytes(two) == to_bytes(ahead)


def test_what_does_not_fit_is_refused() -> None:
    weight = np.ones((2, 18), np.float32)
    for taps, correlation in [(4, 0.3), (0, 0.3), (9, 1.0), (9, -0.5)]:
        with pytest.raises(QuantizationError) as caught:
            _native.quantize_correlated(weight, taps=taps, correlation=correlation, bits=4, symmetric=False)
        assert caught.value.key == "taps"
    weight[1, 3] = np.inf
    with pytest.raises(QuantizationError, match="finite"):
        _native.quantize_correlated(weight, taps=9, correlation=KERNEL_CORRELATION, bits=4, symmetric=False)
