"""Shapes with dynamic axes, and what is computed from shapes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from mnnq.ir.symbolic import add, divide, divide_exactly, multiply, subtract, symbol
from tests import builders
from tests.passes.helpers import kinds, normal, prepared, rewritten

X = normal(2, 6, 4, 4)
DYNAMIC = {"x": ["n", 6, "h", "w"]}
I64 = np.int64


def _make(*specs: tuple[str, list[str], list[str]] | tuple[str, list[str], list[str], dict]) -> list:
    return [
        helper.make_node(spec[0], spec[1], spec[2], **(spec[3] if len(spec) > 3 else {})) for spec in specs
    ]


def test_polynomials_of_sizes():
    n, s = symbol("n"), symbol("s")
    assert subtract(add(multiply(n, 2), 3), 3) == multiply(2, n)
    assert subtract(n, n) == 0
    assert divide_exactly(multiply(multiply(n, s), 12), multiply(s, 4)) == multiply(n, 3)
    assert divide_exactly(add(n, 1), 2) is None
    assert divide(add(n, 1), 2) == divide(add(1, n), 2)
    assert (divide(-7, 2), divide(7, -2), divide(7, 2)) == (-3, -3, 3)
    assert str(add(multiply(multiply(n, s), 2), 1)) == "2*n*s + 1"


def test_batch_copied_by_a_shape_chain_becomes_0():
    """PyTorch's x.view(x.size(0), 2, 3, -1)."""
    nodes = _make(
        ("Shape", ["x"], ["s"]),
        ("Gather", ["s", "zero"], ["n"]),
        ("Unsqueeze", ["n", "axis"], ["n1"]),
        ("Concat", ["n1", "rest"], ["target"], {"axis": 0}),
        ("Reshape", ["x", "target"], ["y"]),
    )
    constants = {"zero": np.array(0, I64), "axis": np.array([0], I64), "rest": np.array([2, 3, -1], I64)}
    proto = builders.model(nodes, {"x": X}, ["y"], constants, shapes=DYNAMIC)
    graph = rewritten(proto, {"x": X})
    assert kinds(graph) == ["Reshape"]
    assert graph.constant(graph.nodes[0].inputs[1]).tolist() == [0, 2, 3, -1]


def test_heads_of_attention_with_dynamic_batch_and_sequence():
    """[n, s, 8] -> [n, s, 2, 4] -> [n, 2, s, 4], and back to [n, s, 8]."""
    x = normal(2, 5, 8)
    nodes = _make(
        ("Shape", ["x"], ["n"], {"end": 1}),
        ("Shape", ["x"], ["s"], {"start": 1, "end": 2}),
        ("Concat", ["n", "s", "two_four"], ["split"], {"axis": 0}),
        ("Reshape", ["x", "split"], ["a"]),
        ("Transpose", ["a"], ["b"], {"perm": [0, 2, 1, 3]}),
        ("Transpose", ["b"], ["c"], {"perm": [0, 2, 1, 3]}),
        ("Neg", ["c"], ["d"]),
        ("Concat", ["n", "s", "eight"], ["join"], {"axis": 0}),
        ("Reshape", ["d", "join"], ["y"]),
    )
    constants = {"two_four": np.array([2, 4], I64), "eight": np.array([8], I64)}
    proto = builders.model(nodes, {"x": x}, ["y"], constants, opset=15, shapes={"x": ["n", "s", 8]})
    graph = rewritten(proto, {"x": x})
    targets = [graph.constant(n.inputs[1]).tolist() for n in graph.nodes if n.op_type == "Reshape"]
    assert targets == [[0, 0, 2, 4], [0, 0, 8]]
    assert graph.info("y").shape == ("n", "s", 8)


def test_old_upsample_export_by_float_arithmetic():
    """floor(float(h) * 2) as sizes of a Resize is a scale of 2."""
    nodes = _make(
        ("Shape", ["x"], ["s"]),
        ("Slice", ["s", "two", "four"], ["hw"]),
        ("Cast", ["hw"], ["f"], {"to": 1}),
        ("Mul", ["f", "factor"], ["g"]),
        ("Floor", ["g"], ["h"]),
        ("Cast", ["h"], ["i"], {"to": 7}),
        ("Slice", ["s", "zero", "two"], ["nc"]),
        ("Concat", ["nc", "i"], ["sizes"], {"axis": 0}),
        (
            "Resize",
            ["x", "", "", "sizes"],
            ["y"],
            {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        ),
    )
    constants = {
        **{k: np.array([v], I64) for k, v in (("zero", 0), ("two", 2), ("four", 4))},
        "factor": np.array([2, 2], np.float32),
    }
    proto = builders.model(nodes, {"x": X}, ["y"], constants, shapes=DYNAMIC)
    graph = rewritten(proto, {"x": X})
    assert kinds(graph) == ["Resize"]
    assert graph.constant(graph.nodes[0].inputs[2]).tolist() == [1, 1, 2, 2]
    assert graph.info("y").shape == ("n", 6, "2*h", "2*w")


def test_expand_to_the_own_batch():
    """The target Where(shape == -1, 1, shape) that PyTorch's expand writes."""
    nodes = _make(
        ("Shape", ["x"], ["n"], {"end": 1}),
        ("Concat", ["n", "minus", "three"], ["wanted"], {"axis": 0}),
        ("Equal", ["wanted", "all_minus"], ["unknown"]),
        ("Where", ["unknown", "ones", "wanted"], ["target"]),
        ("Unsqueeze", ["v", "axis"], ["v3"]),
        ("Expand", ["v3", "target"], ["y"]),
    )
    v = normal(2, 1)
    constants = {
        "minus": np.array([-1], I64),
        "three": np.array([3], I64),
        "all_minus": np.array([-1, -1, -1], I64),
        "ones": np.array([1, 1, 1], I64),
        "axis": np.array([2], I64),
    }
    proto = builders.model(
        nodes, {"x": X, "v": v}, ["y"], constants, opset=15, shapes={**DYNAMIC, "v": ["n", 1]}
    )
    graph = rewritten(proto, {"x": X, "v": v})
    assert kinds(graph) == ["Unsqueeze", "Expand"]
    assert graph.constant(graph.nodes[1].inputs[1]).tolist() == [1, 1, 3]


def test_slice_to_the_size_of_the_axis():
    nodes = _make(
        ("Shape", ["x"], ["h"], {"start": 2, "end": 3}),
        ("Slice", ["x", "one", "h", "two"], ["y"]),
    )
    constants = {"one": np.array([1], I64), "two": np.array([2], I64)}
    proto = builders.model(nodes, {"x": X}, ["y"], constants, opset=15, shapes=DYNAMIC)
    graph = rewritten(proto, {"x": X})
    assert kinds(graph) == ["Slice"]
    assert graph.info("y").shape == ("n", 6, "h - 1", "w")


def test_halves_of_an_unknown_size_stay_computed():
    """chunk(2) of a dynamic axis has no constant form."""
    nodes = _make(
        ("Shape", ["x"], ["h"], {"start": 2, "end": 3}),
        ("Div", ["h", "two"], ["half"]),
        ("Slice", ["x", "zero", "half", "two"], ["y"]),
    )
    constants = {"zero": np.array([0], I64), "two": np.array([2], I64)}
    proto = builders.model(nodes, {"x": X}, ["y"], constants, opset=15, shapes=DYNAMIC)
    assert kinds(rewritten(proto, {"x": X})) == ["Shape", "Div", "Slice"]


def test_two_unknown_sizes_of_a_reshape_stay_computed():
    nodes = _make(("Shape", ["v"], ["target"]), ("Reshape", ["x", "target"], ["y"]))
    v = normal(8, 24)
    proto = builders.model(nodes, {"x": X, "v": v}, ["y"], {}, shapes={**DYNAMIC, "v": ["a", "b"]})
    assert kinds(rewritten(proto, {"x": X, "v": v})) == ["Shape", "Reshape"]


def test_traced_sizes_on_dynamic_axes_are_not_believed():
    nodes = _make(("Relu", ["x"], ["a"]), ("Shape", ["a"], ["y"]))
    proto = builders.model(nodes, {"x": X}, ["y"], shapes=DYNAMIC)
    del proto.graph.value_info[:]
    proto.graph.value_info.append(builders.value_info("a", normal(1, 6, 9, 9)))
    graph = prepared(proto)
    assert graph.info("a").shape == ("n", 6, "h", "w")
    assert "y" not in graph.constants


@pytest.mark.parametrize("size", [3, "n"])
def test_loop_carried_values_keep_their_shape(size):
    """A Loop that adds the input three times, collecting the sums."""
    body = helper.make_graph(
        _make(("Add", ["acc", "x"], ["next"]), ("Identity", ["cond"], ["go"]), ("Neg", ["next"], ["seen"])),
        "body",
        [
            helper.make_tensor_value_info("i", 7, []),
            helper.make_tensor_value_info("cond", 9, []),
            helper.make_tensor_value_info("acc", 1, None),
        ],
        [
            helper.make_tensor_value_info("go", 9, []),
            helper.make_tensor_value_info("next", 1, None),
            helper.make_tensor_value_info("seen", 1, None),
        ],
    )
    node = helper.make_node("Loop", ["count", "true", "x"], ["last", "all"], body=body)
    x = normal(3, 2)
    constants = {"count": np.array(3, I64), "true": np.array(True)}
    proto = builders.model([node], {"x": x}, ["last", "all"], constants, shapes={"x": [size, 2]})
    graph = rewritten(proto, {"x": x})
    assert graph.info("last").shape == (size, 2)
    assert graph.info("all").rank == 3


def test_growing_loop_values_are_not_given_a_fixed_size():
    body = helper.make_graph(
        _make(("Concat", ["acc", "x"], ["next"], {"axis": 0}), ("Identity", ["cond"], ["go"])),
        "body",
        [
            helper.make_tensor_value_info("i", 7, []),
            helper.make_tensor_value_info("cond", 9, []),
            helper.make_tensor_value_info("acc", 1, None),
        ],
        [helper.make_tensor_value_info("go", 9, []), helper.make_tensor_value_info("next", 1, None)],
    )
    nodes = [
        helper.make_node("Loop", ["count", "true", "x"], ["last"], body=body),
        helper.make_node("Shape", ["last"], ["y"]),
    ]
    x = normal(3, 2)
    constants = {"count": np.array(3, I64), "true": np.array(True)}
    proto = builders.model(nodes, {"x": x}, ["y"], constants)
    graph = rewritten(proto, {"x": x})
    shape = graph.info("last").shape
    assert shape is not None
    assert not isinstance(shape[0], int)
    assert shape[1] == 2
