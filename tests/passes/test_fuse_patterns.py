"""Normalisations and activations recognised from primitives, and near misses that are not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import helper

from mnnq.passes.fuse_activation_patterns import fuse_activation_patterns
from mnnq.passes.fuse_normalization import fuse_normalization
from mnnq.passes.simplify import simplify
from tests import builders
from tests.passes.helpers import kinds, normal, rewritten

X = normal(2, 5, 8) * 2


def _n(op: str, inputs: str, output: str, **attrs: object):
    return helper.make_node(op, inputs.split(), [output], **attrs)


def _norm_nodes(square: str, root: str, *, centred: bool, axes: list[int]):
    """The primitives of a normalisation whose square and inverse root are written in the given way."""
    nodes = []
    d = "x"
    if centred:
        nodes += [_n("ReduceMean", "x", "mu", axes=axes), _n("Sub", "x mu", "d")]
        d = "d"
    nodes.append(_n("Pow", f"{d} two", "sq") if square == "pow" else _n("Mul", f"{d} {d}", "sq"))
    nodes += [_n("ReduceMean", "sq", "var", axes=axes), _n("Add", "var eps", "ve")]
    if root == "div":
        return [*nodes, _n("Sqrt", "ve", "s"), _n("Div", f"{d} s", "n")]
    if root == "reciprocal":
        return [*nodes, _n("Sqrt", "ve", "s"), _n("Reciprocal", "s", "r"), _n("Mul", f"{d} r", "n")]
    if root == "one_over":
        return [*nodes, _n("Sqrt", "ve", "s"), _n("Div", "one s", "r"), _n("Mul", f"r {d}", "n")]
    return [*nodes, _n("Pow", "ve minus_half", "r"), _n("Mul", f"r {d}", "n")]


NORM_CONSTANTS = {
    "two": np.float32(2),
    "eps": np.float32(1e-5),
    "one": np.float32(1),
    "minus_half": np.float32(-0.5),
    "g": normal(8, seed=1),
    "b": normal(8, seed=2),
}


@pytest.mark.parametrize("square", ["pow", "mul"])
@pytest.mark.parametrize("root", ["div", "reciprocal", "one_over", "power"])
@pytest.mark.parametrize("affine", ["", "g", "gb"])
@pytest.mark.parametrize("centred", [True, False])
def test_normalisation_from_primitives(square, root, affine, centred):
    nodes = _norm_nodes(square, root, centred=centred, axes=[-1])
    if "g" in affine:
        nodes.append(_n("Mul", "g n", "ng"))
    if "b" in affine:
        nodes.append(_n("Add", "ng b", "nb"))
    nodes.append(_n("Neg", nodes[-1].output[0], "y"))
    proto = builders.model(nodes, {"x": X}, ["y"], NORM_CONSTANTS, shapes={"x": ["n", "s", 8]})
    graph = rewritten(proto, {"x": X}, fuse_normalization)
    op = "LayerNormalization" if centred else "RMSNormalization"
    rest = ["Add"] if affine == "gb" and not centred else []
    assert kinds(graph) == [op, *rest, "Neg"]
    assert graph.nodes[0].attrs == {"axis": -1, "epsilon": pytest.approx(1e-5)}


def test_normalisation_over_two_axes_with_a_gamma_for_one():
    nodes = [*_norm_nodes("mul", "div", centred=True, axes=[1, 2]), _n("Mul", "n g", "y")]
    graph = rewritten(builders.model(nodes, {"x": X}, ["y"], NORM_CONSTANTS), {"x": X}, fuse_normalization)
    assert kinds(graph) == ["LayerNormalization"]
    assert graph.nodes[0].attrs["axis"] == -2
    assert graph.info(graph.nodes[0].inputs[1]).shape == (5, 8)


@pytest.mark.parametrize(
    ("axes", "extra", "shapes"),
    [
        ([1], None, None),  # not the last axis
        (
            [-1],
            "var",
            None,
        ),  # the variance is a graph output too: the primitives stay for it, the result is fused
        ([-1], None, {"x": [2, 5, "c"]}),  # the size of gamma is unknown
    ],
)
def test_normalisation_near_misses(axes, extra, shapes):
    nodes = [*_norm_nodes("pow", "div", centred=True, axes=axes), _n("Neg", "n", "y")]
    outputs = ["y", *([extra] if extra else [])]
    graph = rewritten(
        builders.model(nodes, {"x": X}, outputs, NORM_CONSTANTS, shapes=shapes), {"x": X}, fuse_normalization
    )
    assert ("LayerNormalization" in kinds(graph)) is bool(extra)


def test_gamma_along_another_axis_is_not_taken():
    nodes = [*_norm_nodes("pow", "div", centred=True, axes=[-1]), _n("Mul", "n g5", "y")]
    constants = {**NORM_CONSTANTS, "g5": normal(5, 1)}
    graph = rewritten(builders.model(nodes, {"x": X}, ["y"], constants), {"x": X}, fuse_normalization)
    assert kinds(graph) == ["LayerNormalization", "Mul"]


def test_different_means_are_not_a_layer_norm():
    """The mean that is removed runs over another axis than the variance."""
    nodes = [
        _n("ReduceMean", "x", "mu", axes=[1]),
        _n("Sub", "x mu", "d"),
        _n("Mul", "d d", "sq"),
        _n("ReduceMean", "sq", "var", axes=[-1]),
        _n("Add", "var eps", "ve"),
        _n("Sqrt", "ve", "s"),
        _n("Div", "d s", "y"),
    ]
    graph = rewritten(builders.model(nodes, {"x": X}, ["y"], NORM_CONSTANTS), {"x": X}, fuse_normalization)
    assert "LayerNormalization" not in kinds(graph)
    assert "RMSNormalization" in kinds(graph)


ROOT_HALF, ROOT_2, ROOT_2_PI = math.sqrt(0.5), math.sqrt(2), math.sqrt(2 / math.pi)
CONSTANTS = {
    name: np.float32(value)
    for name, value in {
        "half": 0.5,
        "one": 1,
        "two": 2,
        "three": 3,
        "six": 6,
        "sixth": 1 / 6,
        "zero": 0,
        "rh": ROOT_HALF,
        "r2": ROOT_2,
        "c": ROOT_2_PI,
        "k": 0.044715,
        "q": 1.702,
        "r2_half_precision": np.float16(ROOT_2),
        "wrong": 1.5,
    }.items()
}

# name, nodes from x to y, operator and attributes expected
ACTIVATIONS = [
    ("erf", [_n("Div", "x r2", "a"), _n("Erf", "a", "e"), _n("Add", "e one", "p"), _n("Mul", "x p", "m"), _n("Mul", "m half", "y")], "Gelu", {}),
    ("erf_mul", [_n("Mul", "rh x", "a"), _n("Erf", "a", "e"), _n("Add", "one e", "p"), _n("Mul", "x half", "h"), _n("Mul", "h p", "y")], "Gelu", {}),
    ("erf_inner_half", [_n("Mul", "x rh", "a"), _n("Erf", "a", "e"), _n("Add", "e one", "p"), _n("Mul", "p half", "h"), _n("Mul", "x h", "y")], "Gelu", {}),
    ("erf_halved", [_n("Div", "x r2_half_precision", "a"), _n("Erf", "a", "e"), _n("Add", "e one", "p"), _n("Mul", "x p", "m"), _n("Div", "m two", "y")], "Gelu", {}),
    ("tanh_pow", [_n("Pow", "x three", "x3"), _n("Mul", "x3 k", "t"), _n("Add", "x t", "s"), _n("Mul", "s c", "v"), _n("Tanh", "v", "e"), _n("Add", "e one", "p"), _n("Mul", "x half", "h"), _n("Mul", "h p", "y")], "Gelu", {"approximate": "tanh"}),
    ("tanh_mul", [_n("Mul", "x x", "x2"), _n("Mul", "x2 k", "t"), _n("Add", "one t", "s"), _n("Mul", "x c", "xc"), _n("Mul", "xc s", "v"), _n("Tanh", "v", "e"), _n("Add", "e one", "p"), _n("Mul", "half p", "h"), _n("Mul", "x h", "y")], "Gelu", {"approximate": "tanh"}),
    ("swish", [_n("Sigmoid", "x", "s"), _n("Mul", "s x", "y")], "Swish", {}),
    ("quick_gelu", [_n("Mul", "x q", "a"), _n("Sigmoid", "a", "s"), _n("Mul", "x s", "y")], "Swish", {"alpha": pytest.approx(1.702)}),
    ("hard_swish", [_n("HardSigmoid", "x", "s", alpha=1 / 6), _n("Mul", "x s", "y")], "HardSwish", {}),
    ("relu6_div", [_n("Add", "x three", "a"), _n("Clip", "a zero six", "r"), _n("Mul", "x r", "m"), _n("Div", "m six", "y")], "HardSwish", {}),
    ("relu6_mul", [_n("Add", "x three", "a"), _n("Clip", "a zero six", "r"), _n("Mul", "r sixth", "g"), _n("Mul", "x g", "y")], "HardSwish", {}),
    ("hard_sigmoid", [_n("Add", "x three", "a"), _n("Clip", "a zero six", "r"), _n("Div", "r six", "y")], "HardSigmoid", {"alpha": pytest.approx(1 / 6), "beta": 0.5}),
    ("mish", [_n("Softplus", "x", "a"), _n("Tanh", "a", "t"), _n("Mul", "x t", "y")], "Mish", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "nodes", "op", "attrs"), ACTIVATIONS, ids=[case[0] for case in ACTIVATIONS])
def test_activation_from_primitives(name, nodes, op, attrs):
    proto = builders.model(nodes, {"x": X}, ["y"], CONSTANTS)
    tolerance = 1e-3 if name == "erf_halved" else 2e-6
    graph = rewritten(proto, {"x": X}, simplify, fuse_activation_patterns, atol=tolerance)
    if op == "HardSwish" and kinds(graph) == ["HardSigmoid", "Mul"]:
        fuse_activation_patterns(graph)
    assert kinds(graph) == [op]
    assert graph.nodes[0].attrs == attrs


NEAR_MISSES = [
    [_n("Div", "x wrong", "a"), _n("Erf", "a", "e"), _n("Add", "e one", "p"), _n("Mul", "x p", "m"), _n("Mul", "m half", "y")],
    [_n("Div", "x r2", "a"), _n("Erf", "a", "e"), _n("Add", "e half", "p"), _n("Mul", "x p", "m"), _n("Mul", "m half", "y")],
    [_n("Div", "x r2", "a"), _n("Erf", "a", "e"), _n("Add", "e one", "p"), _n("Mul", "x p", "y")],
    [_n("Relu", "x", "z"), _n("Sigmoid", "z", "s"), _n("Mul", "x s", "y")],
    [_n("HardSigmoid", "x", "s"), _n("Mul", "x s", "y")],
    [_n("Add", "x three", "a"), _n("Clip", "a half six", "r"), _n("Mul", "x r", "m"), _n("Div", "m six", "y")],
    [_n("Sigmoid", "x", "s"), _n("Mul", "s x", "m"), _n("Mul", "m half", "y")],
]  # fmt: skip


@pytest.mark.parametrize("nodes", NEAR_MISSES, ids=range(len(NEAR_MISSES)))
def test_activation_near_misses(nodes):
    proto = builders.model(nodes, {"x": X}, ["y"], CONSTANTS)
    graph = rewritten(proto, {"x": X}, fuse_activation_patterns)
    assert not {"Gelu", "HardSwish", "HardSigmoid"} & set(kinds(graph)) - {node.op_type for node in nodes}


def test_a_constant_that_adds_an_axis_is_no_activation():
    nodes = [
        _n("Div", "x r2", "a"),
        _n("Erf", "a", "e"),
        _n("Add", "e one", "p"),
        _n("Mul", "x p", "m"),
        _n("Mul", "m half4", "y"),
    ]
    constants = {**CONSTANTS, "half4": np.full((1, 1, 1, 1), 0.5, np.float32)}
    graph = rewritten(builders.model(nodes, {"x": X}, ["y"], constants), {"x": X}, fuse_activation_patterns)
    assert "Gelu" not in kinds(graph)
