"""All passes together: values, fixed point, and every operator of the ONNX test suite."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from mnnq.errors import MnnqError
from mnnq.frontends.onnx.importer import load_graph
from mnnq.frontends.onnx.to_proto import LIGHT_LIMIT, light_feeds, to_proto
from mnnq.passes.pipeline import optimize_graph
from tests import builders
from tests.passes.helpers import kinds, normal, run, same


def _attention_block() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A transformer block with dynamic batch and sequence as PyTorch's tracing exporter writes it."""
    nodes, constants = [], {"two": np.float32(2), "eps": np.float32(1e-5), "scale": np.float32(2)}

    def add(op: str, inputs: str, output: str, **attrs: object) -> str:
        nodes.append(helper.make_node(op, inputs.split(), [output], **attrs))
        return output

    def linear(x: str, name: str, rows: int, columns: int) -> str:
        constants[f"{name}_w"] = normal(rows, columns, seed=len(constants), scale=0.3)
        constants[f"{name}_b"] = normal(columns, seed=len(constants), scale=0.3)
        return add("Add", f"{add('MatMul', f'{x} {name}_w', f'{name}_m')} {name}_b", f"{name}_y")

    def sizes(x: str, name: str, rest: list[int]) -> str:
        constants[f"{name}_rest"] = np.array(rest, np.int64)
        for axis, part in enumerate("ns"):
            constants[f"i{axis}"], constants["i0v"] = np.array(axis), np.array([0], np.int64)
            add("Shape", x, f"{name}_s{part}")
            add("Gather", f"{name}_s{part} i{axis}", f"{name}_{part}")
            add("Unsqueeze", f"{name}_{part} i0v", f"{name}_{part}1")
        return add("Concat", f"{name}_n1 {name}_s1 {name}_rest", f"{name}_target", axis=0)

    add("ReduceMean", "x", "mu", axes=[-1])
    add("Sub", "x mu", "d")
    add("Pow", "d two", "sq")
    add("ReduceMean", "sq", "var", axes=[-1])
    add("Add", "var eps", "ve")
    add("Sqrt", "ve", "sd")
    add("Div", "d sd", "norm")
    for name in "qkv":
        y = linear("norm", name, 8, 8)
        add("Reshape", f"{y} {sizes(y, name, [2, 4])}", f"{name}_split")
        perm = [0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]
        add("Transpose", f"{name}_split", f"{name}_t", perm=perm)
    add("MatMul", "q_t k_t", "scores")
    add("Div", "scores scale", "scaled")
    add("Softmax", "scaled", "p", axis=-1)
    add("MatMul", "p v_t", "context")
    add("Transpose", "context", "joined", perm=[0, 2, 1, 3])
    add("Reshape", f"joined {sizes('joined', 'o', [8])}", "flat")
    add("Add", f"{linear('flat', 'out', 8, 8)} x", "y")
    x = normal(2, 5, 8)
    proto = builders.model(nodes, {"x": x}, ["y"], constants, opset=13, shapes={"x": ["batch", "seq", 8]})
    return proto, {"x": x}


def test_transformer_block_with_dynamic_axes():
    proto, feeds = _attention_block()
    graph = load_graph(proto)
    optimize_graph(graph)
    same(graph, proto, feeds)
    same(graph, proto, {"x": normal(3, 7, 8, seed=9)})
    found = kinds(graph)
    assert "Shape" not in found
    assert (found.count("Linear"), found.count("LayerNormalization"), found.count("Reshape")) == (4, 1, 4)
    assert all(graph.info(out).rank is not None for node in graph.nodes for out in node.outputs)


def test_a_second_run_changes_nothing(caplog):
    proto, _ = _attention_block()
    graph = load_graph(proto)
    optimize_graph(graph)
    before = to_proto(graph).SerializeToString(deterministic=True)
    with caplog.at_level(logging.DEBUG, "mnnq.passes.pipeline"):
        optimize_graph(graph)
    assert to_proto(graph).SerializeToString(deterministic=True) == before
    assert not [record for record in caplog.records if "rewrites" in record.message]


def test_light_form_leaves_big_constants_out():
    weight = normal(64, 64)
    proto = builders.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": normal(2, 64)}, ["y"], {"w": weight}
    )
    graph = load_graph(proto)
    optimize_graph(graph)
    light = to_proto(graph, light=True)
    assert weight.size > LIGHT_LIMIT
    assert [value.name for value in light.graph.input] == ["x", "w"]
    assert light.ByteSize() < 1000
    feeds = {"x": normal(2, 64)}
    want = run(proto, feeds)[0]
    np.testing.assert_allclose(run(light, {**feeds, **light_feeds(graph)})[0], want, rtol=1e-5, atol=1e-5)


#: Where the suite's expectation is not met, and why it says nothing about the passes.
NOT_COMPARABLE = (
    "bernoulli",  # random
    "bitcast_float64",  # bits of a type that becomes float32
    "bitcast_int64_to_float64",
    "image_decoder",  # needs Pillow, which is no dependency of the tests
    "dft",  # onnxruntime and the reference differ from the suite's values
    "stft",
    "maxunpool_export_with_output_shape",
    "resize_downsample_scales_linear_align_corners",
    "resize_downsample_scales_cubic_align_corners",
    "attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal",  # -inf - -inf
    "attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal",
    "range_float_type_positive_delta_expanded",  # the reference's Loop adds an axis
    "range_float16_type_positive_delta_expanded",
    "range_int32_type_negative_delta_expanded",
)


def _suite_cases():
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in load_model_tests(kind="node"):
            if case.model is None or any(part in case.name for part in NOT_COMPARABLE):
                continue
            values = [*case.model.graph.input, *case.model.graph.output]
            if any(value.type.WhichOneof("value") != "tensor_type" for value in values):
                continue
            feeds, wanted = ([np.asarray(a) for a in part] for part in case.data_sets[0])
            if all(array.dtype.kind in "fiub" for array in (*feeds, *wanted)):
                yield case.name, case.model, feeds, wanted


def _variant(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], *, frozen: bool, dynamic: bool):
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    names = [value.name for value in copy.graph.input]
    if dynamic:
        for i, value in enumerate(copy.graph.input):
            for j, dim in enumerate(value.type.tensor_type.shape.dim):
                dim.dim_param = f"d{i}_{j}"
        for value in copy.graph.output:
            value.type.tensor_type.ClearField("shape")
    if frozen:
        for name in names[1:]:
            copy.graph.initializer.append(numpy_helper.from_array(feeds[name], name))
        feeds = {names[0]: feeds[names[0]]}
    return copy, feeds


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("frozen", [False, True], ids=["inputs", "constants"])
def test_every_operator_of_the_suite_keeps_its_values(frozen, dynamic):
    """Optimise each single-operator model of the ONNX suite; what is not refused computes the suite's values."""
    failures, passed = [], 0
    for name, proto, arrays, wanted in _suite_cases():
        if frozen and len(arrays) < 2:
            continue
        names = [value.name for value in proto.graph.input]
        source, feeds = _variant(proto, dict(zip(names, arrays, strict=True)), frozen=frozen, dynamic=dynamic)
        try:
            graph = load_graph(source)
            optimize_graph(graph)
        except MnnqError:
            continue  # refused: an old opset, training mode
        wide = {
            k: v.astype(np.float32) if v.dtype.name in ("float16", "float64") else v for k, v in feeds.items()
        }
        got = run(to_proto(graph), wide)
        if all(_close(have, want) for have, want in zip(got, wanted, strict=True)):
            passed += 1
        else:
            failures.append(name)
    assert not failures
    assert passed > (900 if frozen else 1200)


def _close(have: np.ndarray, want: np.ndarray) -> bool:
    rtol, atol = (5e-3, 2e-3) if want.dtype == np.float16 else (1e-3, 1e-5)
    same_shape = have.shape == want.shape
    return same_shape and np.allclose(
        have.astype(np.float64), want.astype(np.float64), rtol=rtol, atol=atol, equal_nan=True
    )
