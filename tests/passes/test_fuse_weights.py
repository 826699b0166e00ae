"""Linear from MatMul and Gemm; affine steps and padding into convolutions."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from mnnq.passes.fuse_conv_bn import fuse_conv_bn
from mnnq.passes.fuse_linear import MAX_SHARED, fuse_linear
from tests import builders
from tests.passes.helpers import kinds, normal, rewritten

X = normal(2, 5, 3)
IMAGE = normal(2, 4, 7, 6)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("bias", [(4,), (1, 4), (1, 1, 4), (1,), ()])
def test_matmul_and_bias(bias, swap):
    operands = ["b", "m"] if swap else ["m", "b"]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", operands, ["y"])]
    constants = {"w": normal(3, 4), "b": normal(*bias, seed=1)}
    graph = rewritten(builders.model(nodes, {"x": X}, ["y"], constants), {"x": X}, fuse_linear)
    assert kinds(graph) == ["Linear"]
    assert graph.info(graph.nodes[0].inputs[2]).shape == (4,)


@pytest.mark.parametrize("bias", [(5, 4), (1, 1, 1, 4), (2, 1, 4), (5, 1)])
def test_an_add_that_is_no_bias_stays(bias):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    constants = {"w": normal(3, 4), "b": normal(*bias, seed=1)}
    graph = rewritten(builders.model(nodes, {"x": X}, ["y"], constants), {"x": X}, fuse_linear)
    assert kinds(graph) == ["Linear", "Add"]


def test_a_product_read_twice_keeps_its_add():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    constants = {"w": normal(3, 4), "b": normal(4, seed=1)}
    graph = rewritten(builders.model(nodes, {"x": X}, ["y", "m"], constants), {"x": X}, fuse_linear)
    assert kinds(graph) == ["Linear", "Add"]


@pytest.mark.parametrize("weight", [(2, 3, 4), (3,)])
def test_matrices_of_other_ranks_stay_matmul(weight):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = rewritten(builders.model([node], {"x": X}, ["y"], {"w": normal(*weight)}), {"x": X}, fuse_linear)
    assert kinds(graph) == ["MatMul"]


def test_a_matrix_shared_by_many_stays_one_constant():
    for count, kind in ((MAX_SHARED, "Linear"), (MAX_SHARED + 1, "MatMul")):
        nodes, value = [], "x"
        for i in range(count):
            nodes += [
                helper.make_node("MatMul", [value, "w"], [f"m{i}"]),
                helper.make_node("Tanh", [f"m{i}"], [f"t{i}"]),
            ]
            value = f"t{i}"
        graph = rewritten(
            builders.model(nodes, {"x": X}, [value], {"w": normal(3, 3)}), {"x": X}, fuse_linear
        )
        assert kinds(graph).count(kind) == count
        assert len(graph.constants) == 1


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 3.0), (2.0, 0.0)])
@pytest.mark.parametrize("c", [None, (4,), (1, 4), (5, 4), (5, 1), (1,), ()])
def test_gemm(trans_a, trans_b, alpha, beta, c):
    x = normal(3, 5) if trans_a else normal(5, 3)
    constants = {"w": normal(4, 3) if trans_b else normal(3, 4)}
    if c is not None:
        constants["c"] = normal(*c, seed=1)
    attrs = {"transA": trans_a, "transB": trans_b, "alpha": alpha, "beta": beta}
    node = helper.make_node("Gemm", ["x", *constants], ["y"], **attrs)
    graph = rewritten(builders.model([node], {"x": x}, ["y"], constants), {"x": x}, fuse_linear)
    wanted = ["Transpose"] * trans_a + ["Linear"]
    wanted += ["Add"] if c in ((5, 4), (5, 1)) and beta else []
    assert kinds(graph) == wanted


def test_gemm_with_a_computed_c():
    node = helper.make_node("Gemm", ["x", "w", "c"], ["y"], beta=2.0)
    feeds = {"x": normal(5, 3), "c": normal(5, 4, seed=2)}
    graph = rewritten(builders.model([node], feeds, ["y"], {"w": normal(3, 4)}), feeds, fuse_linear)
    assert kinds(graph) == ["Linear", "Mul", "Add"]


def _conv(op: str, group: int, bias: bool):
    shape = {"Conv": (6, 4 // group, 3, 2), "ConvTranspose": (4, 6 // group, 3, 2)}[op]
    constants = {"w": normal(*shape, seed=1), **({"b": normal(6, seed=2)} if bias else {})}
    return helper.make_node(op, ["x", *constants], ["c"], group=group), constants


def _batch_norm_constants():
    rng = np.random.default_rng(3)
    return {
        "gamma": normal(6, seed=4),
        "beta": normal(6, seed=5),
        "mean": normal(6, seed=6),
        "var": rng.uniform(0.1, 2, 6).astype(np.float32),
    }


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_batch_norm_behind_a_convolution(op, group, bias):
    conv, constants = _conv(op, group, bias)
    norm = helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["y"], epsilon=1e-3)
    constants |= _batch_norm_constants()
    graph = rewritten(
        builders.model([conv, norm], {"x": IMAGE}, ["y"], constants), {"x": IMAGE}, fuse_conv_bn
    )
    assert kinds(graph) == [op]
    assert graph.nodes[0].outputs == ["y"]


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("step", ["Mul", "Add", "Sub", "Div"])
@pytest.mark.parametrize("shape", [(1, 6, 1, 1), (6, 1, 1), (1,), ()])
@pytest.mark.parametrize("bias", [False, True])
def test_per_channel_steps_behind_a_convolution(op, step, shape, bias):
    conv, constants = _conv(op, 2, bias)
    constants["k"] = normal(*shape, seed=7) + 3
    last = helper.make_node(step, ["c", "k"], ["y"])
    graph = rewritten(
        builders.model([conv, last], {"x": IMAGE}, ["y"], constants), {"x": IMAGE}, fuse_conv_bn
    )
    assert kinds(graph) == [op]


@pytest.mark.parametrize(
    ("step", "inputs", "shape"),
    [
        ("Mul", ["c", "k"], (5,)),  # varies along the width
        ("Add", ["c", "k"], (1, 1, 6, 1, 1)),  # adds an axis
        ("Sub", ["k", "c"], (6, 1, 1)),
        ("Div", ["k", "c"], (6, 1, 1)),
        ("Add", ["c", "k"], (2, 6, 1, 1)),
    ],
)
def test_other_steps_stay(step, inputs, shape):
    conv, constants = _conv("Conv", 1, True)
    constants["k"] = normal(*shape, seed=7)
    last = helper.make_node(step, inputs, ["y"])
    proto = builders.model([conv, last], {"x": IMAGE}, ["y"], constants)
    assert kinds(rewritten(proto, {"x": IMAGE}, fuse_conv_bn, rtol=1e-4)) == ["Conv", step]


def test_a_convolution_read_twice_keeps_its_batch_norm():
    conv, constants = _conv("Conv", 1, True)
    norm = helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["y"])
    constants |= _batch_norm_constants()
    proto = builders.model([conv, norm], {"x": IMAGE}, ["y", "c"], constants)
    assert kinds(rewritten(proto, {"x": IMAGE}, fuse_conv_bn)) == ["Conv", "BatchNormalization"]


def test_weights_shared_by_two_convolutions_are_scaled_once_each():
    conv, constants = _conv("Conv", 1, False)
    other = helper.make_node("Conv", ["x", "w"], ["z"])
    last = helper.make_node("Mul", ["c", "k"], ["y"])
    constants["k"] = np.float32(3)
    graph = rewritten(
        builders.model([conv, other, last], {"x": IMAGE}, ["y", "z"], constants), {"x": IMAGE}, fuse_conv_bn
    )
    assert kinds(graph) == ["Conv", "Conv"]


@pytest.mark.parametrize("shape", [(4,), (1, 1, 4), ()])
def test_scale_behind_linear(shape):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Mul", ["m", "k"], ["y"])]
    constants = {"w": normal(3, 4), "k": normal(*shape, seed=1)}
    proto = builders.model(nodes, {"x": X}, ["y"], constants)
    assert kinds(rewritten(proto, {"x": X}, fuse_linear, fuse_conv_bn)) == ["Linear"]


def test_batch_norm_behind_linear_only_for_rank_2():
    for x, count in ((normal(5, 3), 1), (normal(2, 6, 3), 2)):
        columns = 6
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("BatchNormalization", ["m", "gamma", "beta", "mean", "var"], ["y"]),
        ]
        constants = {"w": normal(3, columns), **_batch_norm_constants()}
        proto = builders.model(nodes, {"x": x}, ["y"], constants)
        assert len(rewritten(proto, {"x": x}, fuse_linear, fuse_conv_bn).nodes) == count


@pytest.mark.parametrize(
    ("pads", "attrs", "axes", "merged"),
    [
        ([0, 0, 1, 2, 0, 0, 3, 0], {}, None, [1, 2, 3, 0]),
        ([0, 0, 1, 2, 0, 0, 3, 0], {"pads": [1, 1, 1, 1]}, None, [2, 3, 4, 1]),
        ([1, 2], {}, [-1], [0, 1, 0, 2]),
        ([0, 1, 0, 0, 0, 0, 0, 0], {}, None, None),  # channels
        ([0, 0, -1, 0, 0, 0, 0, 0], {}, None, None),  # crops
    ],
)
def test_zero_padding_before_a_convolution(pads, attrs, axes, merged):
    constants = {"p": np.array(pads, np.int64), "zero": np.float32(0)}
    if axes:
        constants["axes"] = np.array(axes, np.int64)
    channels = 5 if merged is None and 1 in pads else 4
    constants["w"] = normal(2, channels, 3, 3)
    nodes = [
        helper.make_node("Pad", ["x", "p", "zero", *(["axes"] if axes else [])], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["y"], **attrs),
    ]
    proto = builders.model(nodes, {"x": IMAGE}, ["y"], constants, opset=18)
    graph = rewritten(proto, {"x": IMAGE}, fuse_conv_bn)
    assert kinds(graph) == (["Conv"] if merged else ["Pad", "Conv"])
    if merged:
        assert graph.nodes[0].attrs["pads"] == merged


@pytest.mark.parametrize(("mode", "value"), [("edge", None), ("reflect", None), ("constant", 1.0)])
def test_other_padding_stays(mode, value):
    constants = {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "w": normal(2, 4, 3, 3)}
    inputs = ["x", "p"]
    if value is not None:
        constants["v"] = np.float32(value)
        inputs.append("v")
    nodes = [helper.make_node("Pad", inputs, ["a"], mode=mode), helper.make_node("Conv", ["a", "w"], ["y"])]
    proto = builders.model(nodes, {"x": IMAGE}, ["y"], constants)
    assert kinds(rewritten(proto, {"x": IMAGE}, fuse_conv_bn)) == ["Pad", "Conv"]
