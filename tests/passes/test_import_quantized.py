"""Quantization that a source carries becomes int8 layers and described tensors with the source's scales."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mnnq
from mnnq.convert import ConvertOptions, convert_onnx
from mnnq.errors import ConfigError, QuantizationError, UnsupportedError
from mnnq.ir.model import Model
from mnnq.quantization.stored import float_weights
from mnnq.writer.to_mnn import to_bytes
from tests.passes.helpers import onnxruntime
from tests.peers.mnn_runtime import MnnRuntime

X = np.random.default_rng(0).standard_normal((1, 8, 9, 10)).astype(np.float32)


class Net:
    """A graph in the making: methods add nodes and return the name of their result."""

    def __init__(self, kind: str = "uint8", x: np.ndarray = X) -> None:
        self.kind = kind
        self.x = x
        self.rng = np.random.default_rng(1)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def add(self, op_type: str, *inputs: str, out: str = "", **attrs: Any) -> str:
        out = out or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [out], **attrs))
        return out

    def fake(
        self,
        x: str,
        scale: float = 0.03,
        zero: int | None = None,
        *,
        out: str = "",
        clip: tuple[int, int] | None = None,
        kind: str = "",
    ) -> str:
        kind = kind or self.kind
        point = (120 if kind == "uint8" else -5) if zero is None else zero
        s, z = self.constant(np.float32(scale)), self.constant(np.dtype(kind).type(point))
        codes = self.add("QuantizeLinear", x, s, z)
        if clip is not None:
            bounds = [self.constant(np.dtype(kind).type(bound)) for bound in clip]
            codes = self.add("Clip", codes, *bounds)
        return self.add("DequantizeLinear", codes, s, z, out=out)

    def weight(
        self, *shape: int, axis: int | None = 0, zero: int = 0, kind: str = "int8", low: int = -127
    ) -> tuple[str, np.ndarray]:
        codes = self.rng.integers(max(low, np.iinfo(kind).min), np.iinfo(kind).max + 1, shape).astype(kind)
        count = shape[axis] if axis is not None else 1
        scales = self.rng.uniform(0.001, 0.004, count).astype(np.float32)
        s = scales if axis is not None else scales[0]
        z = np.full(np.shape(s), zero, kind)
        attrs = {} if axis is None else {"axis": axis}
        name = self.add("DequantizeLinear", self.constant(codes), self.constant(s), self.constant(z), **attrs)
        return name, np.asarray(s)

    def conv(self, x: str, inputs: int = 8, outputs: int = 8, **options: Any) -> str:
        """Convolution with int32 bias, as tools write it; `x` has the scale 0.03."""
        group = options.pop("group", 1)
        kernel = options.pop("kernel", 3)
        w, scales = self.weight(outputs, inputs // group, kernel, kernel, **options)
        bias = self.rng.integers(-9999, 9999, outputs).astype(np.int32)
        step = np.broadcast_to(np.float32(0.03) * scales, (outputs,)).astype(np.float32)
        b = self.add(
            "DequantizeLinear",
            self.constant(bias),
            self.constant(step),
            self.constant(np.zeros(outputs, np.int32)),
            axis=0,
        )
        return self.add("Conv", x, w, b, group=group, pads=[kernel // 2] * 4)

    def proto(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.x.shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def reference(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, {"x": x})[0]


def agree(
    proto: onnx.ModelProto, runtime: MnnRuntime, step: float, x: np.ndarray = X, share: float = 0.02
) -> Model:
    """Both runtimes differ from onnxruntime by one step of the result at most, and seldom."""
    model = convert_onnx(proto)
    data = to_bytes(model)
    want = reference(proto, x)
    for got in (mnnq.InferenceSession(data).run(None, {"x": x})[0], runtime.run(data, {"x": x}, ["y"])["y"]):
        assert got.shape == want.shape
        error = np.abs(got - want)
        assert error.max() < 1.01 * step
        assert (error > 0.01 * step).mean() < share
    return model


#: Between two float operators there is nothing that would round to the codes described.
UNAPPLIED = "neither what makes nor what reads the tensor computes on codes"


def all_int8(model: Model, *, rounded: int = 0) -> None:
    """Every layer is int8, and `rounded` tensors are rounded in float."""
    assert model.imported is not None
    assert model.imported.layers
    assert not model.imported.left_float
    assert [reason for _, reason in model.imported.rounded] == [UNAPPLIED] * rounded
    for op in model.ops:
        assert rounded or op.type != "ReLU6"
        if op.type.startswith("Convolution"):
            assert "weight" not in op.params
            assert op.params["quanParameter"]["type"] == 1


def scales(model: Model) -> set[float]:
    return {info["scale"] for info in model.tensor_quant.values() if info["type"] == "DT_INT8"}


KINDS = pytest.mark.parametrize("kind", ["uint8", "int8"])


@KINDS
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("axis", [0, None])
@pytest.mark.parametrize("group", [1, 8])
def test_convolution(mnn_runtime: MnnRuntime, kind: str, relu: bool, axis: int | None, group: int) -> None:
    net = Net(kind)
    y = net.conv(net.fake("x"), axis=axis, group=group)
    y = net.add("Relu", y) if relu else y
    zero = np.iinfo(kind).min if relu else None
    net.fake(y, 0.05, zero, out="y")
    model = agree(net.proto(), mnn_runtime, 0.05)
    all_int8(model)
    assert scales(model) == {float(np.float32(0.03)), float(np.float32(0.05))}
    (layer,) = (op for op in model.ops if op.type.startswith("Convolution"))
    codes, steps, points = (net.constants[name] for name in net.nodes[2].input)
    assert not points.any()
    np.testing.assert_array_equal(
        layer.params["quanParameter"]["alpha"], np.broadcast_to(steps.reshape(-1), (8,))
    )
    step = steps.reshape(-1, *[1] * 3) if steps.ndim else steps
    np.testing.assert_array_equal(float_weights(layer), (codes * step).reshape(8, -1).astype(np.float32))
    shift = 128 if kind == "uint8" else 0
    info = model.tensor_quant["y"]
    point = int(net.constants[net.nodes[-1].input[2]]) - shift
    assert (info["zero"], info["min"], info["max"]) == (point, -128, 127)


def test_codes_of_minus_128(mnn_runtime: MnnRuntime) -> None:
    net = Net("int8")
    net.fake(net.conv(net.fake("x"), low=-128), 0.05, out="y")
    net.constants[net.nodes[2].input[0]][:, ::2] = -128
    all_int8(agree(net.proto(), mnn_runtime, 0.05))


def test_unsigned_weights_around_128_are_shifted(mnn_runtime: MnnRuntime) -> None:
    net = Net()
    net.fake(net.conv(net.fake("x"), kind="uint8", zero=128), 0.05, out="y")
    all_int8(agree(net.proto(), mnn_runtime, 0.05))


def test_weights_with_another_zero_point_stay_float(mnn_runtime: MnnRuntime) -> None:
    net = Net()
    net.fake(net.conv(net.fake("x"), kind="uint8", zero=20), 0.05, out="y")
    model = agree(net.proto(), mnn_runtime, 0.05)
    assert [layer.reason for layer in model.imported.layers] == ["its weights are no symmetric int8 codes"]


def test_reduced_range(mnn_runtime: MnnRuntime) -> None:
    """PyTorch's default for x86: codes of 0 to 127, clamped after rounding; weights rounded in the graph."""
    net = Net()
    x = net.fake("x", 0.03, 60, clip=(0, 127))
    values = net.rng.standard_normal((8, 8, 3, 3)).astype(np.float32) * np.float32(0.1)
    s, z = net.constant(np.abs(values).max(axis=(1, 2, 3)) / 127), net.constant(np.zeros(8, np.int8))
    codes = net.add("QuantizeLinear", net.constant(values), s, z, axis=0)
    w = net.add("DequantizeLinear", codes, s, z, axis=0)
    y = net.add("Conv", x, w, net.constant(net.rng.standard_normal(8).astype(np.float32)))
    net.fake(net.add("Relu", y), 0.05, 0, clip=(0, 127), out="y")
    model = agree(net.proto(), mnn_runtime, 0.05)
    all_int8(model)
    assert model.tensor_quant["y"] == {
        "scale": float(np.float32(0.05)), "zero": -128.0, "min": -128.0, "max": -1.0, "type": "DT_INT8",
    }  # fmt: skip


def test_batch_normalization_behind_rounded_weights(mnn_runtime: MnnRuntime) -> None:
    """A convolution in training form is divided by a factor per channel and normalised: the scales take all of it."""
    net = Net()
    w, _ = net.weight(8, 8, 3, 3)
    y = net.add("Conv", net.fake("x"), w, pads=[1] * 4)
    factor = net.rng.uniform(0.5, 2, (1, 8, 1, 1)).astype(np.float32)
    y = net.add("Div", y, net.constant(factor))
    parameters = [net.rng.uniform(0.5, 1.5, 8).astype(np.float32) for _ in range(4)]
    y = net.add("BatchNormalization", y, *(net.constant(p) for p in parameters))
    net.fake(y, 0.05, out="y")
    model = agree(net.proto(), mnn_runtime, 0.05)
    all_int8(model)
    assert [op.type for op in model.ops if op.type.startswith(("Conv", "Binary", "Scale"))].count(
        "BinaryOp"
    ) == 0


@pytest.mark.parametrize("bounds", [(0.0, 6.0), (-1.0, 1.5), (0.0, 2.0)])
def test_clipping_becomes_bounds_of_the_codes(mnn_runtime: MnnRuntime, bounds: tuple[float, float]) -> None:
    net = Net()
    y = net.conv(net.fake("x"))
    y = net.add("Clip", y, *(net.constant(np.float32(bound)) for bound in bounds))
    net.fake(y, 0.07, 100, out="y")
    model = agree(net.proto(), mnn_runtime, 0.07)
    all_int8(model)
    assert model.tensor_quant["y"]["max"] == min(np.rint(bounds[1] / np.float32(0.07)) - 28, 127)


def chain_sum(net: Net) -> None:
    x = net.fake("x")
    a, b = (
        net.fake(net.conv(x), 0.04),
        net.fake(net.conv(x, kernel=1), 0.06, 128 if net.kind == "uint8" else 0),
    )
    net.fake(net.add("Add", a, b), 0.05, out="y")


def chain_sum_relu(net: Net) -> None:
    x = net.fake("x")
    a, b = net.fake(net.conv(x), 0.04), net.fake(net.conv(x, kernel=1), 0.06)
    net.fake(net.add("Relu", net.add("Add", a, b)), 0.05, np.iinfo(net.kind).min, out="y")


def chain_product(net: Net) -> None:
    x = net.fake("x")
    a, b = net.fake(net.conv(x), 0.04), net.fake(net.conv(x, kernel=1), 0.06)
    net.fake(net.add("Mul", a, b), 0.5, out="y")


def chain_concat(net: Net) -> None:
    x = net.fake("x")
    a, b = net.fake(net.conv(x), 0.05), net.fake(net.conv(x, kernel=1), 0.03)
    y = net.fake(net.add("Concat", a, b, axis=1), 0.05)
    net.fake(y, 0.05, out="y")


def chain_max_pool(net: Net) -> None:
    a = net.fake(net.conv(net.fake("x")), 0.03)
    p = net.fake(net.add("MaxPool", a, kernel_shape=[2, 2], strides=[2, 2]), 0.03)
    net.fake(net.conv(p), 0.05, out="y")


def chain_average_pool(net: Net) -> None:
    a = net.fake(net.conv(net.fake("x")), 0.03)
    p = net.fake(net.add("AveragePool", a, kernel_shape=[3, 3], strides=[2, 2]), 0.03)
    net.fake(net.conv(p), 0.05, out="y")


def chain_global_pool(net: Net) -> None:
    a = net.fake(net.conv(net.fake("x")), 0.03)
    p = net.fake(net.add("GlobalAveragePool", a), 0.03)
    flat = net.fake(net.add("Flatten", p), 0.03)
    w, _ = net.weight(5, 8)
    net.fake(net.add("Gemm", flat, w, net.constant(np.arange(5, dtype=np.float32)), transB=1), 0.02, out="y")


def chain_resize(net: Net) -> None:
    a = net.fake(net.conv(net.fake("x")), 0.03)
    grown = net.add(
        "Resize", a, "", net.constant(np.float32([1, 1, 2, 2])), mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )  # fmt: skip
    net.fake(net.conv(net.fake(grown, 0.03)), 0.05, out="y")


def chain_functions(net: Net) -> None:
    a = net.fake(net.conv(net.fake("x")), 0.05)
    s = net.fake(net.add("Sigmoid", a), 1 / 256, np.iinfo(net.kind).min)
    product = net.fake(net.add("Mul", a, s), 0.03)
    leaky = net.fake(net.add("LeakyRelu", product, alpha=0.13), 0.03)
    net.fake(net.conv(leaky), 0.05, out="y")


def chain_relu_between_equal_codes(net: Net) -> None:
    """What onnxruntime's tool writes with symmetric codes."""
    zero = 128 if net.kind == "uint8" else 0
    a = net.fake(net.conv(net.fake("x")), 0.03, zero)
    p = net.add("MaxPool", net.fake(net.add("Relu", a), 0.03, zero), kernel_shape=[2, 2])
    r = net.fake(net.add("Relu", net.fake(net.conv(net.fake(p, 0.03, zero)), 0.05, zero)), 0.05, zero)
    net.fake(net.add("GlobalAveragePool", r), 0.02, zero, out="y")


def chain_shuffle(net: Net) -> None:
    a = net.fake(net.conv(net.fake("x")), 0.03)
    shape = net.constant(np.int64([1, 2, 4, 9, 10]))
    a = net.fake(net.add("Reshape", a, shape), 0.03)
    a = net.fake(net.add("Transpose", a, perm=[0, 2, 1, 3, 4]), 0.03)
    a = net.fake(net.add("Reshape", a, net.constant(np.int64([1, 8, 9, 10]))), 0.03)
    net.fake(net.conv(a), 0.05, out="y")


def chain_matmul(net: Net) -> None:
    a = net.fake(net.add("Reshape", net.fake("x"), net.constant(np.int64([8, 9, 10]))), 0.03)
    w, _ = net.weight(10, 6, axis=1)
    y = net.fake(net.add("MatMul", a, w), 0.02)
    net.fake(net.add("Add", y, net.constant(np.linspace(-1, 1, 6, dtype=np.float32))), 0.03, out="y")


CHAINS = [value for name, value in list(globals().items()) if name.startswith("chain_")]


@KINDS
@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain.__name__)
def test_chain(mnn_runtime: MnnRuntime, chain: Callable[[Net], None], kind: str) -> None:
    net = Net(kind)
    chain(net)
    step = float(net.constants[net.nodes[-1].input[1]])
    model = agree(net.proto(), mnn_runtime, step, share=0.05)
    # A concatenation of other scales, a sum with a constant and a mean are float operators before a float output.
    all_int8(model, rounded=chain in (chain_concat, chain_matmul, chain_relu_between_equal_codes))


def test_a_tensor_read_before_its_quantization_is_rounded_in_float(mnn_runtime: MnnRuntime) -> None:
    net = Net()
    a = net.conv(net.fake("x"))
    b = net.fake(net.conv(net.fake(a, 0.03)), 0.05)
    net.fake(net.add("Add", a, b), 0.06, out="y")
    model = agree(net.proto(), mnn_runtime, 0.06, share=0.05)
    reasons = {reason for _, reason in model.imported.rounded}
    assert reasons == {"the tensor is also read before it is quantized", UNAPPLIED}
    assert [layer.reason for layer in model.imported.layers] == [
        "the source does not quantize its result",
        None,
    ]
    assert "1 of 2 layers" in model.imported.summary()[0]


def test_magnitude_stays_float(mnn_runtime: MnnRuntime) -> None:
    net = Net()
    a = net.fake(net.conv(net.fake("x")), 0.03)
    net.fake(net.add("Abs", a), 0.05, out="y")
    model = agree(net.proto(), mnn_runtime, 0.05)
    assert model.imported.rounded


def test_other_quantizations_are_written_in_float(mnn_runtime: MnnRuntime) -> None:
    """16 bits have no native form."""
    net = Net("uint16")
    net.nodes.append(helper.make_node("Relu", ["x"], ["r"]))
    s, z = net.constant(np.float32(0.001)), net.constant(np.uint16(30000))
    codes = net.add("QuantizeLinear", "r", s, z)
    net.add("DequantizeLinear", codes, s, z, out="y")
    proto = net.proto()
    proto.opset_import[0].version = 21
    proto.ir_version = 10
    model = convert_onnx(proto)
    assert model.imported is not None
    assert not model.imported.native
    assert dict(model.imported.floats) == {"QuantizeLinear": 1, "DequantizeLinear": 1}
    assert "none of it has a native form" in model.imported.summary()[0]
    assert not model.tensor_quant


def test_blocks_of_four_bits_become_the_floats_they_stand_for(
    tmp_path: Path, mnn_runtime: MnnRuntime
) -> None:
    """Weights in blocks of 16 with a scale and a zero point each, as onnxruntime's weight-only tool writes them."""
    rng = np.random.default_rng(2)
    codes, zeros = rng.integers(-8, 8, (32, 8)), rng.integers(-8, 8, (2, 8))
    scales = rng.uniform(0.01, 0.1, (2, 8)).astype(np.float32)
    int4 = onnx.TensorProto.INT4
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["f"], axis=0, block_size=16),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    tensors = [
        helper.make_tensor("w", int4, codes.shape, codes.reshape(-1)),
        helper.make_tensor("z", int4, zeros.shape, zeros.reshape(-1)),
        numpy_helper.from_array(scales, "s"),
    ]
    ports = [helper.make_tensor_value_info(n, 1, d) for n, d in (("x", [3, 32]), ("y", [3, 8]))]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(proto, tmp_path / "four.onnx")
    model = mnnq.load(tmp_path / "four.onnx")
    assert model.imported is not None
    assert dict(model.imported.floats) == {"DequantizeLinear": 1}
    x = rng.standard_normal((3, 32)).astype(np.float32)
    wanted = x @ ((codes - np.repeat(zeros, 16, 0)) * np.repeat(scales, 16, 0)).astype(np.float32)
    data = to_bytes(model)
    np.testing.assert_allclose(mnnq.InferenceSession(data).run(None, {"x": x})[0], wanted, atol=1e-4)
    np.testing.assert_allclose(mnn_runtime.run(data, {"x": x}, ["y"])["y"], wanted, atol=1e-4)
    small = mnnq.quantize_weights(model, bits=8)
    assert small is not None


def test_packed_four_bit_products_are_refused_by_name() -> None:
    node = helper.make_node(
        "MatMulNBits",
        ["x", "w", "s"],
        ["y"],
        name="packed",
        domain="com.microsoft",
        K=32,
        N=8,
        bits=4,
        block_size=16,
    )
    tensors = [
        numpy_helper.from_array(np.zeros((8, 2, 8), np.uint8), "w"),
        numpy_helper.from_array(np.ones(16, np.float32), "s"),
    ]
    ports = [helper.make_tensor_value_info(n, 1, d) for n, d in (("x", [3, 32]), ("y", [3, 8]))]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    with pytest.raises(UnsupportedError, match=r"MatMulNBits.*'packed'"):
        convert_onnx(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def test_float_mode(mnn_runtime: MnnRuntime) -> None:
    net = Net()
    net.fake(net.conv(net.fake("x")), 0.05, out="y")
    model = convert_onnx(net.proto(), ConvertOptions(qdq="float"))
    assert model.imported is None
    assert not model.tensor_quant
    got = mnn_runtime.run(to_bytes(model), {"x": X}, ["y"])["y"]
    assert np.abs(got - reference(net.proto(), X)).max() < 0.051
    with pytest.raises(ConfigError, match="native or float"):
        ConvertOptions(qdq="int8")


def test_static_quantization_wants_the_float_form() -> None:
    net = Net()
    net.fake(net.conv(net.fake("x")), 0.05, out="y")
    with pytest.raises(QuantizationError, match="qdq='float'"):
        mnnq.quantize(convert_onnx(net.proto()), [{"x": X}])


# -- files of onnxruntime's tool


def network(path: Path) -> onnx.ModelProto:
    """A small network with a residual sum, pooling, concatenation and a classifier."""
    rng = np.random.default_rng(3)
    net = Net()

    def conv(x: str, inputs: int, outputs: int, kernel: int, group: int = 1) -> str:
        w = rng.standard_normal((outputs, inputs // group, kernel, kernel)) / (
            kernel * np.sqrt(inputs / group)
        )
        b = net.constant(rng.standard_normal(outputs).astype(np.float32) * np.float32(0.1))
        return net.add("Conv", x, net.constant(w.astype(np.float32)), b, pads=[kernel // 2] * 4, group=group)

    a = net.add("Relu", conv("x", 8, 16, 3))
    b = net.add("Relu", conv(a, 16, 16, 3, 16))
    b = net.add("Add", conv(b, 16, 16, 1), a)
    p = net.add("MaxPool", net.add("Relu", b), kernel_shape=[2, 2], strides=[2, 2])
    c = net.add("Concat", p, net.add("Sigmoid", conv(p, 16, 4, 1)), axis=1)
    g = net.add("Flatten", net.add("GlobalAveragePool", net.add("Relu", conv(c, 20, 32, 3))))
    w = net.constant(rng.standard_normal((10, 32)).astype(np.float32) * np.float32(0.3))
    net.add("Gemm", g, w, net.constant(rng.standard_normal(10).astype(np.float32)), out="y", transB=1)
    proto = onnx.shape_inference.infer_shapes(net.proto())
    onnx.save(proto, path)
    return proto


# onnxruntime does not run its operators on int8 activations.
@pytest.mark.parametrize(
    ("form", "kind"), [("QDQ", "QUInt8"), ("QDQ", "QInt8"), ("QDQ", "symmetric"), ("QOperator", "QUInt8")]
)
@pytest.mark.parametrize("per_channel", [True, False])
def test_onnxruntime_static(
    tmp_path: Path, mnn_runtime: MnnRuntime, form: str, per_channel: bool, kind: str
) -> None:
    tool = pytest.importorskip("onnxruntime.quantization")
    from tests.peers.sample_reader import SampleReader

    network(tmp_path / "float.onnx")
    rng = np.random.default_rng(4)
    batches = [{"x": rng.standard_normal(X.shape).astype(np.float32)} for _ in range(8)]

    path = tmp_path / "int8.onnx"
    tool.quantize_static(
        str(tmp_path / "float.onnx"),
        str(path),
        SampleReader(batches),
        quant_format=tool.QuantFormat[form],
        per_channel=per_channel,
        weight_type=tool.QuantType.QInt8,
        activation_type=tool.QuantType.QUInt8 if kind == "QUInt8" else tool.QuantType.QInt8,
        extra_options={"ActivationSymmetric": kind == "symmetric"},
    )
    model = mnnq.load(path)
    assert model.imported is not None
    assert not model.imported.left_float
    assert all(reason == UNAPPLIED for _, reason in model.imported.rounded)
    data = to_bytes(model)
    step = model.tensor_quant["y"]["scale"]
    session = onnxruntime.InferenceSession(str(path))
    errors = []
    for batch in batches:
        want = session.run(None, batch)[0]
        mine = mnnq.InferenceSession(data).run(None, batch)[0]
        theirs = mnn_runtime.run(data, batch, ["y"])["y"]
        errors += [np.abs(got - want) / step for got in (mine, theirs)]
    assert np.max(errors) < 2.01  # a step of the result, and what steps of the layers before make of it
    assert np.mean(np.asarray(errors) > 0.1) < 0.35
