"""Quantized operators and integer products become float ones that compute the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mnnq.convert import convert_onnx
from mnnq.frontends.onnx.importer import load_graph
from mnnq.passes.expand_quantized import expand_quantized
from mnnq.passes.pipeline import optimize_graph
from mnnq.writer.to_mnn import to_bytes
from tests import builders
from tests.ops.harness import check
from tests.passes.helpers import onnxruntime
from tests.peers.mnn_runtime import MnnRuntime

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 6, 7, 8)).astype(np.float32)
CONTRIB = "com.microsoft"


def quantized(*nodes: onnx.NodeProto, x: np.ndarray = X, **constants: np.ndarray) -> onnx.ModelProto:
    """A float model around quantized nodes: they read ``q`` (uint8, scale s, zero point z) and write ``r`` (t, u)."""
    fixed = {
        "s": np.float32(0.03),
        "z": np.uint8(120),
        "t": np.float32(0.07),
        "u": np.uint8(110),
        **constants,
    }
    every = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        *nodes,
        helper.make_node("DequantizeLinear", ["r", "t", "u"], ["y"]),
    ]
    used = {name for node in every for name in node.input}
    # Not with `builders`: onnx cannot check operators of another domain.
    graph = helper.make_graph(
        every,
        "quantized",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in fixed.items() if k in used],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def agree(proto: onnx.ModelProto, runtime: MnnRuntime, step: float, x: np.ndarray = X) -> None:
    """The converted model differs from onnxruntime by one rounding step at most, and seldom."""
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    want = session.run(None, {"x": x})[0]
    got = runtime.run(to_bytes(convert_onnx(proto)), {"x": x}, ["y"])["y"]
    assert got.shape == want.shape
    error = np.abs(got - want)
    assert error.max() < 1.01 * step
    assert (error > 1e-5).mean() < 0.02


def weights(*shape: int) -> np.ndarray:
    return RNG.integers(-127, 128, shape).astype(np.int8)


@pytest.mark.parametrize(("group", "scales"), [(1, 1), (1, 4), (2, 1), (2, 4)])
def test_qlinear_conv(mnn_runtime: MnnRuntime, group: int, scales: int) -> None:
    node = helper.make_node(
        "QLinearConv", ["q", "s", "z", "w", "ws", "wz", "t", "u", "b"], ["r"], group=group, pads=[1, 1, 1, 1]
    )
    proto = quantized(
        node,
        w=weights(4, 6 // group, 3, 3),
        ws=np.full(scales, 0.002, np.float32) if scales > 1 else np.float32(0.002),
        wz=np.zeros(scales, np.int8) if scales > 1 else np.int8(0),
        b=RNG.integers(-999, 999, 4).astype(np.int32),
    )
    agree(proto, mnn_runtime, 0.07)
    graph = load_graph(proto)
    optimize_graph(graph)
    assert [node.op_type for node in graph.nodes if "Conv" in node.op_type] == ["Conv"]


@pytest.mark.parametrize("trans", [0, 1])
def test_qgemm(mnn_runtime: MnnRuntime, trans: int) -> None:
    x = RNG.standard_normal((3, 10)).astype(np.float32)
    node = helper.make_node(
        "QGemm",
        ["q", "s", "z", "w", "ws", "wz", "b", "t", "u"],
        ["r"],
        domain=CONTRIB,
        transB=trans,
        alpha=1.0,
    )
    proto = quantized(
        node, x=x, w=weights(*((5, 10) if trans else (10, 5))), ws=np.float32(0.01), wz=np.int8(3),
        b=RNG.integers(-999, 999, 5).astype(np.int32),
    )  # fmt: skip
    agree(proto, mnn_runtime, 0.07, x)


@pytest.mark.parametrize("op_type", ["QLinearAdd", "QLinearMul"])
def test_qlinear_binary(mnn_runtime: MnnRuntime, op_type: str) -> None:
    node = helper.make_node(op_type, ["q", "s", "z", "q", "s", "z", "t", "u"], ["r"], domain=CONTRIB)
    agree(quantized(node), mnn_runtime, 0.07)


def test_qlinear_concat_and_pool(mnn_runtime: MnnRuntime) -> None:
    nodes = [
        helper.make_node("QLinearConcat", ["t", "u", *"qszqsz"], ["c"], domain=CONTRIB, axis=1),
        helper.make_node(
            "QLinearGlobalAveragePool", ["c", "t", "u", "t", "u"], ["r"], domain=CONTRIB, channels_last=0
        ),
    ]
    agree(quantized(*nodes), mnn_runtime, 0.07)


@pytest.mark.parametrize("op_type", ["ConvInteger", "MatMulInteger"])
def test_scaled_integer_products_are_float_products(mnn_runtime: MnnRuntime, op_type: str) -> None:
    depthwise = op_type == "ConvInteger"
    attrs = {"group": 6, "pads": [1, 1, 1, 1]} if depthwise else {}
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        helper.make_node(op_type, ["q", "w", "qz", "wz"], ["i"], **attrs),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "qs"], ["y"]),
    ]
    constants = {"w": weights(6, 1, 3, 3) if depthwise else weights(8, 5), "wz": np.array(2, np.int8)}
    proto = builders.model(nodes, {"x": X}, ["y"], constants, opset=17)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    want = session.run(None, {"x": X})[0]
    got = mnn_runtime.run(to_bytes(convert_onnx(proto)), {"x": X}, ["y"])["y"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    graph = load_graph(proto)
    assert expand_quantized(graph) == 1


def test_integer_products_that_stay_integers_are_kept() -> None:
    node = helper.make_node("MatMulInteger", ["q", "w"], ["y"])
    x = RNG.integers(0, 255, (3, 8)).astype(np.uint8)
    graph = load_graph(builders.model([node], {"q": x}, ["y"], {"w": weights(8, 5)}, opset=17))
    assert expand_quantized(graph) == 0


@pytest.mark.parametrize("zero", [np.uint8(0), np.uint8(120), np.int8(-3), np.int16(5)])
def test_pairs_round_to_a_grid(mnn_runtime: MnnRuntime, zero: np.generic) -> None:
    # Halves of steps show how ties are rounded, large values how the ends of the range are.
    x = np.concatenate([np.arange(-40, 40) * 0.125, [99.0, -99.0, 1e6, -1e6]]).astype(np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    constants = {"s": np.array(0.25, np.float32), "z": np.asarray(zero)}
    proto = builders.model(nodes, {"x": x}, ["y"], constants, opset=21)
    model = check(proto, {"x": x}, mnn_runtime)
    assert sum(op.type not in ("Input", "Const") for op in model.ops) == 5


def test_pairs_of_different_scales_are_kept() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "t", "z"], ["y"]),
    ]
    constants = {"s": np.array(0.25, np.float32), "t": np.array(0.5, np.float32), "z": np.array(3, np.uint8)}
    assert expand_quantized(load_graph(builders.model(nodes, {"x": X}, ["y"], constants, opset=17))) == 0
