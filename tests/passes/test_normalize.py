"""Forms of older opsets become the form of opset 23 and mean the same."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from mnnq.errors import UnsupportedError
from mnnq.frontends.onnx.importer import load_graph
from mnnq.passes.normalize import TARGET_OPSET, normalize
from tests import builders
from tests.passes.helpers import kinds, normal, rewritten

X = normal(2, 6, 4)
IMAGE = normal(1, 3, 7, 8)


def _node(op: str, inputs: int = 1, **attrs: object):
    return helper.make_node(op, ["x", "c", "d"][:inputs], ["y"], **attrs)


# operator, attributes of the old form, opset, input, inputs expected afterwards
OLD_FORMS = [
    ("Squeeze", {"axes": [0]}, 11, X[:1], 2),
    ("Unsqueeze", {"axes": [0, 3]}, 11, X, 2),
    ("ReduceSum", {"axes": [1], "keepdims": 0}, 11, X, 2),
    ("ReduceMean", {"axes": [-1]}, 17, X, 2),
    ("ReduceMean", {"keepdims": 1}, 17, X, 1),
    ("ReduceL2", {"axes": [0, 2]}, 13, X, 2),
    ("Slice", {"starts": [1, 0], "ends": [9, -1]}, 9, X, 3),
    ("Slice", {"starts": [1], "ends": [3], "axes": [1]}, 9, X, 4),
    ("Clip", {"min": -0.5, "max": 0.25}, 10, X, 3),
    ("Clip", {"max": 0.25}, 7, X, 3),
    ("Pad", {"pads": [0, 1, 0, 2, 0, 0], "value": 1.5}, 10, X, 3),
    ("Pad", {"pads": [0, 1, 0, 2, 0, 0], "mode": "edge"}, 10, X, 2),
    ("Softmax", {"axis": 2}, 11, X, 1),
    ("LogSoftmax", {"axis": -1}, 12, X, 1),
]


@pytest.mark.parametrize(("op", "attrs", "opset", "x", "count"), OLD_FORMS)
def test_attributes_become_inputs(op, attrs, opset, x, count):
    proto = builders.model([_node(op, **attrs)], {"x": x}, ["y"], opset=opset)
    graph = load_graph(proto)
    normalize(graph)
    assert graph.opset == TARGET_OPSET
    (node,) = graph.nodes
    assert (node.op_type, len(node.inputs)) == (op, count)
    assert not {"axes", "starts", "ends", "pads", "value", "min", "max"} & set(node.attrs)
    rewritten(proto, {"x": x})


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.parametrize("shapes", [None, {"x": ["n", 6, "w"]}])
def test_softmax_over_several_axes(op, axis, shapes):
    attrs = {} if axis is None else {"axis": axis}
    proto = builders.model([_node(op, **attrs)], {"x": X}, ["y"], opset=11, shapes=shapes)
    graph = rewritten(proto, {"x": X})
    assert kinds(graph).count("Reshape") == 2


def test_softmax_keeps_its_axis_when_the_rest_is_1():
    x = normal(2, 5, 1, 1)
    proto = builders.model([_node("Softmax", axis=1)], {"x": x}, ["y"], opset=11)
    assert kinds(rewritten(proto, {"x": x})) == ["Softmax"]


def test_topk_attribute():
    node = helper.make_node("TopK", ["x"], ["y", "i"], k=2)
    proto = builders.model([node], {"x": X}, ["y", "i"], opset=9)
    graph = load_graph(proto)
    normalize(graph)
    assert graph.constant(graph.nodes[0].inputs[1]).tolist() == [2]
    assert "k" not in graph.nodes[0].attrs


@pytest.mark.parametrize(("size", "count", "sizes"), [(6, 3, [2, 2, 2]), (7, 3, [3, 3, 1]), (7, 2, [4, 3])])
def test_split_gets_explicit_sizes(size, count, sizes):
    x = normal(2, size)
    node = helper.make_node("Split", ["x"], [f"y{i}" for i in range(count)], axis=-1, num_outputs=count)
    proto = builders.model([node], {"x": x}, list(node.output), opset=18)
    graph = rewritten(proto, {"x": x})
    assert graph.constant(graph.nodes[0].inputs[1]).tolist() == sizes
    assert "num_outputs" not in graph.nodes[0].attrs


def test_split_of_an_unknown_size_keeps_the_number():
    node = helper.make_node("Split", ["x"], ["a", "b"], axis=0)
    proto = builders.model([node], {"x": X}, ["a", "b"], opset=13, shapes={"x": ["n", 6, 4]})
    graph = load_graph(proto)
    normalize(graph)
    assert graph.nodes[0].attrs["num_outputs"] == 2


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("opset", [7, 9])
def test_upsample(mode, opset):
    scales = np.array([1, 1, 2, 3], np.float32)
    if opset == 7:
        node = helper.make_node("Upsample", ["x"], ["y"], mode=mode, scales=scales.tolist())
        proto = builders.model([node], {"x": IMAGE}, ["y"], opset=7)
    else:
        node = helper.make_node("Upsample", ["x", "s"], ["y"], mode=mode)
        proto = builders.model([node], {"x": IMAGE}, ["y"], {"s": scales}, opset=9)
    graph = load_graph(proto)
    normalize(graph)
    (node,) = graph.nodes
    assert node.op_type == "Resize"
    np.testing.assert_array_equal(graph.constant(node.inputs[2]), scales)
    if mode == "nearest":
        modern = helper.make_node(
            "Resize", ["x", "", "s"], ["y"], coordinate_transformation_mode="asymmetric", nearest_mode="floor"
        )
        wanted = builders.model([modern], {"x": IMAGE}, ["y"], {"s": scales})
        from tests.passes.helpers import same

        same(graph, wanted, {"x": IMAGE})


def test_resize_10_rounds_up_when_shrinking():
    x = np.arange(1, 9, dtype=np.float32).reshape(1, 1, 2, 4)
    scales = np.array([1, 1, 0.6, 0.6], np.float32)
    node = helper.make_node("Resize", ["x", "s"], ["y"], mode="nearest")
    graph = load_graph(builders.model([node], {"x": x}, ["y"], {"s": scales}, opset=10))
    normalize(graph)
    from mnnq.frontends.onnx.to_proto import to_proto
    from tests.passes.helpers import run

    np.testing.assert_array_equal(run(to_proto(graph), {"x": x})[0], [[[[1, 3]]]])


def test_dropout_disappears_and_its_mask_is_ones():
    nodes = [helper.make_node("Dropout", ["x"], ["d", "m"]), helper.make_node("Neg", ["d"], ["y"])]
    proto = builders.model(nodes, {"x": X}, ["y", "m"], opset=13)
    graph = rewritten(proto, {"x": X})
    assert "Dropout" not in kinds(graph)


def test_dropout_in_training_mode_is_refused():
    node = helper.make_node("Dropout", ["x", "r", "t"], ["y"])
    constants = {"r": np.array(0.5, np.float32), "t": np.array(True)}
    proto = builders.model([node], {"x": X}, ["y"], constants, opset=15)
    with pytest.raises(UnsupportedError, match="training mode"):
        normalize(load_graph(proto))


def test_batch_norm_in_training_mode_takes_the_statistics_of_its_input():
    node = helper.make_node(
        "BatchNormalization", ["x", *"abcd"], ["y", "m", "v"], training_mode=1, momentum=0.7, epsilon=1e-3
    )
    x = normal(3, 6, 5)
    constants = {k: np.abs(normal(6, seed=i)) for i, k in enumerate("abcd")}
    proto = builders.model([node], {"x": x}, ["y", "m", "v"], constants, opset=15)
    assert "BatchNormalization" not in kinds(rewritten(proto, {"x": x}))


def test_batch_norm_in_training_mode_of_a_constant_folds():
    nodes = [
        helper.make_node("BatchNormalization", ["w", *"abcd"], ["n", "m", "v"], training_mode=1),
        helper.make_node("MatMul", ["x", "n"], ["y"]),
    ]
    x = normal(2, 6)
    constants = {"w": normal(6, 4), **{k: np.ones(4, np.float32) for k in "abcd"}}
    proto = builders.model(nodes, {"x": x}, ["y"], constants, opset=15)
    assert kinds(rewritten(proto, {"x": x})) == ["MatMul"]


def test_identity_disappears_but_outputs_keep_their_names():
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Identity", ["b"], ["y"]),
        helper.make_node("Identity", ["x"], ["z"]),
    ]
    proto = builders.model(nodes, {"x": X}, ["y", "z"])
    graph = rewritten(proto, {"x": X})
    assert kinds(graph) == ["Neg", "Identity"]
    assert graph.nodes[0].outputs == ["y"]


def test_group_normalization_18_gets_a_scale_per_channel():
    x = normal(2, 6, 5)
    node = helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=3)
    constants = {"s": normal(3, seed=1), "b": normal(3, seed=2)}
    proto = builders.model([node], {"x": x}, ["y"], constants, opset=18)
    graph = rewritten(proto, {"x": x})
    np.testing.assert_array_equal(graph.constant(graph.nodes[0].inputs[1]), np.repeat(constants["s"], 2))


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [2, 3, 5])
def test_auto_pad_of_conv(mode, stride, kernel):
    node = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad=mode, strides=[stride, stride])
    proto = builders.model([node], {"x": IMAGE}, ["y"], {"w": normal(4, 3, kernel, kernel)})
    graph = rewritten(proto, {"x": IMAGE})
    assert "auto_pad" not in graph.nodes[0].attrs


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_auto_pad_of_pooling(op, mode):
    node = helper.make_node(op, ["x"], ["y"], auto_pad=mode, kernel_shape=[3, 2], strides=[2, 2])
    proto = builders.model([node], {"x": IMAGE}, ["y"])
    graph = rewritten(proto, {"x": IMAGE})
    assert "auto_pad" not in graph.nodes[0].attrs


@pytest.mark.parametrize(
    "attrs",
    [
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"output_shape": [14, 15], "strides": [2, 2]},
        {"auto_pad": "VALID", "strides": [2, 2]},
    ],
)
def test_auto_pad_of_transposed_conv(attrs):
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], **attrs)
    proto = builders.model([node], {"x": IMAGE}, ["y"], {"w": normal(3, 2, 3, 3)})
    graph = rewritten(proto, {"x": IMAGE})
    assert not {"auto_pad", "output_shape"} & set(graph.nodes[0].attrs)


def test_auto_pad_of_unknown_size_stays_unless_the_stride_is_1():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[1, 1]),
        helper.make_node("Conv", ["x", "w"], ["z"], auto_pad="SAME_UPPER", strides=[2, 2]),
    ]
    weights = {"w": normal(4, 3, 3, 3)}
    proto = builders.model(nodes, {"x": IMAGE}, ["y", "z"], weights, shapes={"x": ["n", 3, "h", "w"]})
    graph = load_graph(proto)
    normalize(graph)
    assert graph.nodes[0].attrs["pads"] == [1, 1, 1, 1]
    assert graph.nodes[1].attrs["auto_pad"] == "SAME_UPPER"
