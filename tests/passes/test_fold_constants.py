"""What is computed when converting, and what is not."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from mnnq.frontends.onnx.importer import load_graph
from mnnq.passes.fold_constants import GROWTH_LIMIT, fold_constants
from mnnq.passes.normalize import extract_constants
from mnnq.passes.pipeline import optimize_graph
from mnnq.passes.single_precision import narrow_doubles, widen_halves
from tests import builders
from tests.passes.helpers import kinds, normal, rewritten, same

X = normal(2, 3)


def test_constant_of_empty_shape_is_one_number():
    """MNN's converter folds this to uninitialised memory."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["c"], value=np_tensor(np.array([1.5], np.float32))),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    proto = builders.model(nodes, {"x": X}, ["y"], {"shape": np.zeros(0, np.int64)})
    graph = rewritten(proto, {"x": X}, fold_constants)
    assert kinds(graph) == ["Add"]
    constant = graph.constant(graph.nodes[0].inputs[1])
    assert constant.shape == ()
    assert constant == np.float32(1.5)


def np_tensor(array: np.ndarray):
    from onnx import numpy_helper

    return numpy_helper.from_array(array)


def test_half_precision_weights_behind_cast():
    weight = normal(3, 4).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    proto = builders.model(nodes, {"x": X}, ["y"], {"w": weight})
    graph = rewritten(proto, {"x": X}, fold_constants)
    np.testing.assert_array_equal(graph.constant(graph.nodes[0].inputs[1]), weight.astype(np.float32))


def test_whole_half_precision_model_becomes_float32():
    x = X.astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Sqrt", ["f"], ["s"]),
        helper.make_node("Cast", ["s"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["h", "k"], ["y"]),
    ]
    proto = builders.model(nodes, {"x": x}, ["y"], {"k": np.array([3, 4, 5], np.float16)})
    graph = load_graph(proto)
    optimize_graph(graph)
    assert kinds(graph) == ["Sqrt", "Mul"]
    assert {graph.info(name).dtype for name in ("x", "y", *graph.constants)} == {np.dtype(np.float32)}


def test_doubles_are_rounded_only_after_folding():
    """1e9 + 1 - 1e9 is 1 in float64 and 0 in float32."""
    nodes = [
        helper.make_node("Sub", ["a", "b"], ["d"]),
        helper.make_node("Cast", ["d"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "f"], ["y"]),
    ]
    constants = {"a": np.array(1e9 + 1), "b": np.array(1e9)}
    proto = builders.model(nodes, {"x": X}, ["y"], constants)
    graph = load_graph(proto)
    optimize_graph(graph)
    same(graph, proto, {"x": X})


def test_precision_passes_count_their_changes():
    proto = builders.single("Add", {"x": X.astype(np.float64)}, {"c": np.ones(3)})
    graph = load_graph(proto)
    assert widen_halves(graph) == 0
    assert narrow_doubles(graph) == 3
    assert narrow_doubles(graph) == 0


def test_dequantized_weights_are_folded():
    q = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
    scale, zero = np.array([0.5, 0.25, 2, 1], np.float32), np.array([0, 1, -2, 3], np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    proto = builders.model(nodes, {"x": X}, ["y"], {"q": q, "s": scale, "z": zero})
    graph = rewritten(proto, {"x": X}, fold_constants)
    assert kinds(graph) == ["MatMul"]
    np.testing.assert_array_equal(graph.constant(graph.nodes[0].inputs[1]), (q - zero) * scale)


def test_views_of_big_weights_are_not_copied():
    weight = normal(256, 1024)
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("Slice", ["t", "zero", "half", "zero"], ["s"]),
        helper.make_node("Unsqueeze", ["s", "zero"], ["u"]),
        helper.make_node("MatMul", ["x", "u"], ["y"]),
    ]
    x = normal(3, 512)
    constants = {"w": weight, "zero": np.array([0], np.int64), "half": np.array([512], np.int64)}
    graph = load_graph(builders.model(nodes, {"x": x}, ["y"], constants))
    source = graph.constants["w"]
    fold_constants(graph)
    folded = graph.constant(graph.nodes[0].inputs[1])
    assert folded.shape == (1, 512, 256)
    assert np.shares_memory(folded, source)


@pytest.mark.parametrize("op", ["Expand", "ConstantOfShape", "Tile"])
def test_what_swells_the_file_stays_computed(op):
    side = int((GROWTH_LIMIT / 4) ** 0.5) + 8
    dims = np.array([side, side], np.int64)
    if op == "ConstantOfShape":
        node, constants = helper.make_node(op, ["dims"], ["c"]), {"dims": dims}
    else:
        node, constants = (
            helper.make_node(op, ["v", "dims"], ["c"]),
            {"v": np.ones((1, 1), np.float32), "dims": dims},
        )
    x = np.ones((side, side), np.float32)
    proto = builders.model([node, helper.make_node("Add", ["x", "c"], ["y"])], {"x": x}, ["y"], constants)
    graph = load_graph(proto)
    assert fold_constants(graph) == 0
    small = builders.model(
        [node, helper.make_node("Add", ["x", "c"], ["y"])],
        {"x": x[:4, :4]},
        ["y"],
        {**constants, "dims": np.array([4, 4], np.int64)},
    )
    assert fold_constants(load_graph(small)) == 1


def test_random_numbers_are_not_folded():
    node = helper.make_node("RandomUniformLike", ["c"], ["y"])
    graph = load_graph(builders.model([node], {"x": X}, ["y"], {"c": np.ones(3, np.float32)}))
    assert fold_constants(graph) == 0


@pytest.mark.parametrize("condition", [True, False])
def test_if_with_a_constant_condition_gives_its_branch(condition):
    def branch(name: str, op: str):
        # Both branches use the name of a value of the outer graph for one of their own.
        nodes = [helper.make_node(op, ["x"], ["a"]), helper.make_node("Abs", ["a"], [f"{name}_out"])]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"{name}_out", 1, None)])

    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("If", ["c"], ["i"], then_branch=branch("t", "Neg"), else_branch=branch("e", "Exp")),
        helper.make_node("Add", ["r", "i"], ["y"]),
    ]
    proto = builders.model(nodes, {"x": X}, ["y"], {"c": np.array(condition)})
    graph = load_graph(proto)
    graph.values["a"] = graph.info("r")  # the name is taken outside
    extract_constants(graph)
    assert fold_constants(graph) == 1
    assert "If" not in kinds(graph)
    assert ("Neg" in kinds(graph)) is condition
    same(graph, proto, {"x": X})


def test_constants_of_the_outer_graph_fold_inside_branches():
    then = helper.make_graph(
        [helper.make_node("Add", ["k", "k"], ["kk"]), helper.make_node("Mul", ["x", "kk"], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", 1, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, None)]
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    feeds = {"x": X, "c": np.array(True)}
    proto = builders.model([node], feeds, ["y"], {"k": np.array([1, 2, 3], np.float32)})
    graph = load_graph(proto)
    assert fold_constants(graph) == 1
    assert kinds(graph.nodes[0].attrs["then_branch"]) == ["Mul"]
    same(graph, proto, feeds)
