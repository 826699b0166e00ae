"""What is known of inputs without data, and what is made of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mnnq
from mnnq import _native
from mnnq.errors import QuantizationError
from mnnq.ir.model import Model
from mnnq.quantization.bias_correction import output_sqnr
from mnnq.quantization.calibrated import MOST_DAMPING, Compensation
from mnnq.quantization.input_power import input_powers
from mnnq.writer.to_mnn import to_bytes

WIDTH = 64


@pytest.fixture
def net(tmp_path: Path) -> Model:
    """LayerNormalization with uneven gamma, a linear layer, ReLU, and a linear layer."""
    rng = np.random.default_rng(4)
    gamma = np.where(np.arange(WIDTH) % 8 == 0, 6, 0.3).astype(np.float32)
    beta = (0.1 * rng.standard_normal(WIDTH)).astype(np.float32)
    weights = [rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 8 for _ in range(2)]
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["n"], axis=-1),
        helper.make_node("MatMul", ["n", "w1"], ["m"]),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    values = {"gamma": gamma, "beta": beta, "w1": weights[0], "w2": weights[1]}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 5, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "net.onnx")
    return mnnq.load(tmp_path / "net.onnx")


def test_powers_are_those_behind_the_normalization(net: Model) -> None:
    powers = input_powers(net.ops)
    (name,) = [op.name for op in net.ops if id(op) in powers]
    assert name.startswith("m")
    (power,) = powers.values()
    norm = next(op for op in net.ops if op.type == "LayerNorm")
    want = np.square(norm.params["gamma"], dtype=np.float64) + np.square(
        norm.params["beta"], dtype=np.float64
    )
    np.testing.assert_allclose(power, want)


@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"fp16_scales": True}, {"block": 32}])
def test_auto_counts_powers_without_data(net: Model, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(5)
    fresh = [{"x": rng.standard_normal((1, 5, WIDTH)).astype(np.float32)} for _ in range(20)]
    layer = next(op.name for op in net.ops if op.name.startswith("m"))
    only = {op.name: 0 for op in net.ops if op.param_type == "Convolution2D" and op.name != layer}
    plain = mnnq.quantize_weights(net, bits=3, method="search", overrides=only, **options)
    auto = mnnq.quantize_weights(net, bits=3, method="auto", overrides=only, **options)
    assert output_sqnr(auto, net, fresh) > output_sqnr(plain, net, fresh) + 1
    assert len(to_bytes(auto)) == len(to_bytes(plain))
    report = next(entry for entry in auto.report.layers if entry.name == layer)
    assert report.method == "search, by input power"


def test_executors_give_the_same_file(net: Model) -> None:
    want = to_bytes(mnnq.quantize_weights(net, bits=4, method="auto", threads=1))
    with ThreadPoolExecutor(2) as pool:
        assert to_bytes(mnnq.quantize_weights(net, bits=4, method="auto", executor=pool)) == want


def test_one_power_per_input_is_wanted() -> None:
    weight = np.ones((2, 8), np.float32)
    with pytest.raises(QuantizationError, match="8"):
        _native.quantize_weighted(weight, np.ones(7), bits=4, symmetric=False)


def _statistics(columns: int, count: int) -> _native.InputStatistics:
    return _native.InputStatistics(1, columns, count, np.zeros(columns), np.eye(columns).reshape(-1))


def test_scarce_data_are_trusted_less() -> None:
    how = Compensation()
    assert how.ridge(_statistics(16, 1_000_000)) == pytest.approx(how.damping, abs=1e-4)
    assert how.ridge(_statistics(16, 16)) == pytest.approx(how.damping + how.scarcity)
    assert how.ridge(_statistics(16, 1)) == MOST_DAMPING
    assert Compensation(damping=5.0).ridge(_statistics(16, 1)) == 5.0
