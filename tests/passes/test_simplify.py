"""What does nothing goes away, what is said twice is said once, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from mnnq.passes.infer_shapes import infer_shapes
from mnnq.passes.simplify import simplify
from tests import builders
from tests.passes.helpers import kinds, normal, rewritten

X = normal(2, 6, 4, 4)
I64 = np.int64


def _n(op: str, inputs: str, output: str, **attrs: object):
    return helper.make_node(op, inputs.split(), output.split(), **attrs)


CONSTANTS = {
    "one": np.float32(1),
    "ones": np.ones((1, 6, 1, 1), np.float32),
    "ones5": np.ones((1, 1, 1, 1, 1), np.float32),
    "zero": np.float32(0),
    "four": np.float32(4),
    "three": np.float32(3),
    "true": np.array(True),
    "own": np.array([2, 6, 4, 4], I64),
    "flat": np.array([2, -1], I64),
    "copy": np.array([0, -1], I64),
    "pads": np.zeros(8, I64),
    "i0": np.array([0], I64),
    "i1": np.array([1], I64),
    "i9": np.array([9], I64),
    "m1": np.array([-1], I64),
    "scales": np.ones(4, np.float32),
    "hw": np.array([2, 3], I64),
    "c": normal(2, 6, 4, 4, seed=3),
}

# nodes between x and y, what is left of them
REWRITES = [
    ([_n("Mul", "x one", "a")], []),
    ([_n("Mul", "ones x", "a")], []),
    ([_n("Mul", "x ones5", "a")], ["Mul"]),  # adds an axis
    ([_n("Add", "zero x", "a")], []),
    ([_n("Sub", "x zero", "a")], []),
    ([_n("Sub", "zero x", "a")], ["Sub"]),
    ([_n("Div", "x one", "a")], []),
    ([_n("Pow", "x one", "a")], []),
    ([_n("Div", "x four", "a")], ["Mul"]),
    ([_n("Div", "x three", "a")], ["Div"]),  # 1/3 is not exact
    ([_n("Transpose", "x", "a", perm=[0, 1, 2, 3])], []),
    ([_n("Transpose", "x", "a", perm=[0, 2, 3, 1]), _n("Transpose", "a", "b", perm=[0, 3, 1, 2])], []),
    (
        [_n("Transpose", "x", "a", perm=[0, 2, 3, 1]), _n("Transpose", "a", "b", perm=[3, 0, 1, 2])],
        ["Transpose"],
    ),
    ([_n("Reshape", "x own", "a")], []),
    ([_n("Reshape", "x flat", "a"), _n("Reshape", "a own", "b")], []),
    ([_n("Unsqueeze", "x i1", "a"), _n("Squeeze", "a i1", "b")], []),
    ([_n("Unsqueeze", "x i0", "a"), _n("Reshape", "a flat", "b")], ["Reshape"]),
    ([_n("Flatten", "x", "a", axis=3), _n("Reshape", "a copy", "b")], ["Flatten"]),  # 0 copies 48
    ([_n("Reshape", "x flat", "a"), _n("Reshape", "a copy", "b")], ["Reshape"]),
    ([_n("Expand", "x own", "a")], []),
    ([_n("Tile", "x own1", "a")], []),
    ([_n("Pad", "x pads", "a")], []),
    ([_n("Slice", "x i0 i9 i1", "a")], []),
    ([_n("Slice", "x m1 mhuge i1 m1", "a")], ["Slice"]),  # same shape, reversed
    ([_n("Resize", "x _ scales", "a")], []),
    ([_n("Cast", "x", "a", to=1)], []),
    ([_n("Concat", "x", "a", axis=0)], []),
    ([_n("Max", "x", "a")], []),
    ([_n("Where", "true x c", "a")], []),
    ([_n("ReduceMean", "x", "a", axes=[2, 3])], ["GlobalAveragePool"]),
    ([_n("ReduceMean", "x", "a", axes=[-1, -2], keepdims=0)], ["GlobalAveragePool", "Squeeze"]),
    ([_n("ReduceMean", "x", "a", axes=[1, 2])], ["ReduceMean"]),
]


@pytest.mark.parametrize(("nodes", "left"), REWRITES, ids=[str([n.op_type for n in c[0]]) for c in REWRITES])
@pytest.mark.parametrize("shape", [None, ["n", 6, 4, 4]])
def test_rewrites(nodes, left, shape):
    if shape is not None and any({"own", "c"} & set(node.input) for node in nodes):
        pytest.skip("the target states the batch")
    for node in nodes:
        names = [name.replace("_", "") if name == "_" else name for name in node.input]
        del node.input[:]
        node.input.extend(names)
    constants = {
        **CONSTANTS,
        "own1": np.ones(4, I64),
        "mhuge": np.array([-(2**40)], I64),
    }
    last = nodes[-1].output[0]
    proto = builders.model(
        [_n("Relu", "x", "r"), *_renamed(nodes), _n("Neg", last, "y")],
        {"x": X},
        ["y"],
        constants,
        opset=14,
        shapes=None if shape is None else {"x": shape},
    )
    graph = rewritten(proto, {"x": X}, simplify, infer_shapes, simplify)
    assert kinds(graph) == ["Relu", *left, "Neg"]


def _renamed(nodes):
    """The nodes reading r, the value of a node, in place of x."""
    copies = []
    for node in nodes:
        copy = type(node)()
        copy.CopyFrom(node)
        names = ["r" if name == "x" else name for name in node.input]
        del copy.input[:]
        copy.input.extend(names)
        copies.append(copy)
    return copies


def test_a_neutral_node_at_an_output_leaves_the_name():
    nodes = [_n("Neg", "x", "a"), _n("Mul", "a one", "y")]
    graph = rewritten(builders.model(nodes, {"x": X}, ["y"], CONSTANTS), {"x": X}, simplify)
    assert kinds(graph) == ["Neg"]
    assert graph.nodes[0].outputs == ["y"]


def test_an_input_passed_through_stays():
    nodes = [_n("Mul", "x one", "y"), _n("Neg", "x", "z")]
    graph = rewritten(builders.model(nodes, {"x": X}, ["y", "z"], CONSTANTS), {"x": X}, simplify)
    assert kinds(graph) == ["Identity", "Neg"]


def test_duplicates_and_equal_constants_are_merged():
    nodes = [
        _n("Transpose", "x", "a", perm=[0, 2, 3, 1]),
        _n("Transpose", "x", "b", perm=[0, 2, 3, 1]),
        _n("Transpose", "x", "t", perm=[0, 1, 3, 2]),
        _n("Add", "a k1", "c"),
        _n("Add", "b k2", "d"),
        _n("Mul", "c d", "y"),
    ]
    constants = {"k1": np.float32(2.5), "k2": np.float32(2.5)}
    graph = rewritten(builders.model(nodes, {"x": X}, ["y", "t"], constants), {"x": X}, simplify, simplify)
    assert sorted(kinds(graph)) == ["Add", "Mul", "Transpose", "Transpose"]
    assert len(graph.constants) == 1


def test_random_numbers_are_not_merged():
    nodes = [_n("RandomNormalLike", "x", "a"), _n("RandomNormalLike", "x", "b"), _n("Sub", "a b", "y")]
    from tests.passes.helpers import prepared

    graph = prepared(builders.model(nodes, {"x": X}, ["y"]))
    assert simplify(graph) == 0


def test_the_guard_against_nan_is_kept():
    """Attention of the dynamo exporter: Where(IsNaN(p), 0, p) with p = softmax(x + mask)."""
    mask = np.zeros((4, 4), np.float32)
    mask[1] = -np.inf
    nodes = [
        _n("Add", "x mask", "s"),
        _n("Softmax", "s", "p", axis=-1),
        _n("IsNaN", "p", "n"),
        _n("Where", "n zero p", "y"),
    ]
    proto = builders.model(nodes, {"x": X}, ["y"], {"mask": mask, "zero": np.float32(0)})
    graph = rewritten(proto, {"x": X}, simplify)
    assert kinds(graph) == ["Add", "Softmax", "IsNaN", "Where"]
