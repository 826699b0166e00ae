"""The session: feeds and their errors, shapes that change, threads, observers, profiles."""

from __future__ import annotations

import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from mnnq.convert import convert_onnx
from mnnq.errors import ConfigError, FormatError, InputError, UnsupportedError
from mnnq.runtime import Dynamic, InferenceSession, Memory, Precision, SessionOptions
from mnnq.writer.to_mnn import to_bytes
from tests import builders

RNG = np.random.default_rng(3)


def _cnn() -> onnx.ModelProto:
    """A small network with a residual addition, dynamic in batch and size."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b1"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["y"]),
    ]
    constants = {
        "w1": RNG.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "w2": RNG.standard_normal((8, 8, 3, 3)).astype(np.float32) / 8,
        "b1": RNG.standard_normal(8).astype(np.float32),
    }
    x = np.zeros((1, 3, 8, 8), np.float32)
    return builders.model(nodes, {"x": x}, ["y"], constants, shapes={"x": ["n", 3, "h", "w"]})


@pytest.fixture(scope="module")
def cnn() -> onnx.ModelProto:
    return _cnn()


@pytest.fixture(scope="module")
def session(cnn: onnx.ModelProto) -> InferenceSession:
    return InferenceSession(cnn, SessionOptions(threads=2))


def _reference(proto: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    return list(onnx.reference.ReferenceEvaluator(proto).run(None, feeds))


def test_inputs_and_outputs_are_described(session: InferenceSession) -> None:
    (feed,) = session.get_inputs()
    assert (feed.name, feed.type, feed.shape) == ("x", "tensor(float)", ["n", 3, "h", "w"])
    (output,) = session.get_outputs()
    assert (output.name, output.type, len(output.shape), output.shape[1]) == ("y", "tensor(float)", 4, 8)
    assert output.shape[0] == "n"
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_a_file_on_disk_keeps_the_types_of_its_source(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Greater", ["ids", "zero"], ["y"])
    ids = np.array([[-1, 0, 1 << 20]], np.int64)
    proto = builders.model([node], {"ids": ids}, ["y"], {"zero": np.int64(0)}, shapes={"ids": ["batch", 3]})
    path = tmp_path / "m.mnn"
    convert_onnx(proto).save(path)
    session = InferenceSession(path)
    (feed,), (output,) = session.get_inputs(), session.get_outputs()
    assert (feed.type, feed.shape) == ("tensor(int64)", ["batch", 3])
    assert output.type == "tensor(bool)"
    (got,) = session.run(None, {"ids": ids})
    assert got.dtype == np.bool_
    np.testing.assert_array_equal(got, ids > 0)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (2, 3, 5, 9), (1, 3, 1, 1), (0, 3, 4, 4)])
def test_any_admissible_shape_runs(cnn: onnx.ModelProto, session: InferenceSession, shape: Any) -> None:
    x = RNG.standard_normal(shape).astype(np.float32)
    (got,) = session.run(None, {"x": x})
    assert got.shape == (shape[0], 8, *shape[2:])
    if x.size:
        np.testing.assert_allclose(got, _reference(cnn, x=x)[0], rtol=1e-4, atol=1e-5)


def test_arrays_of_any_strides_are_read(cnn: onnx.ModelProto, session: InferenceSession) -> None:
    x = RNG.standard_normal((1, 8, 8, 3)).astype(np.float32).transpose(0, 3, 1, 2)
    (got,) = session.run(["y"], {"x": x})
    np.testing.assert_allclose(got, _reference(cnn, x=np.ascontiguousarray(x))[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("feeds", "key"),
    [
        ({}, "x"),
        ({"x": np.zeros((1, 3, 8, 8), np.float32), "z": np.zeros(1, np.float32)}, "z"),
        ({"x": np.zeros((3, 8, 8), np.float32)}, "x"),
        ({"x": np.zeros((1, 4, 8, 8), np.float32)}, "x"),
        ({"x": np.zeros((1, 3, 8, 8), np.float64)}, "x"),
        ({"x": np.zeros((1, 3, 8, 8), np.int32)}, "x"),
        ({"x": np.where(np.arange(192) == 70, np.nan, 0).astype(np.float32).reshape(1, 3, 8, 8)}, "x"),
    ],
    ids=["missing", "unknown", "rank", "length", "double", "integer", "nan"],
)
def test_wrong_feeds_are_named(session: InferenceSession, feeds: dict[str, np.ndarray], key: str) -> None:
    with pytest.raises(InputError, match=f"'{key}'|\"{key}\"") as caught:
        session.run(None, feeds)
    assert caught.value.key == key


@pytest.mark.parametrize("place", [0, 1023, 1024, 5000])
def test_nan_is_refused_unless_admitted(place: int) -> None:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "g", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    values = np.arange(5001, dtype=np.float32)
    values[[place, -1]] = np.nan
    with pytest.raises(InputError, match=f"NaN, first at element {place}; the option allow_nan"):
        InferenceSession(model).run(None, {"x": values})
    (got,) = InferenceSession(model, {"allow_nan": True}).run(None, {"x": values})
    np.testing.assert_array_equal(got, -values)
    values[[place, -1]] = np.inf
    (got,) = InferenceSession(model).run(None, {"x": values})
    np.testing.assert_array_equal(got, -values)


def test_unknown_outputs_are_named(session: InferenceSession) -> None:
    with pytest.raises(InputError, match="nothing"):
        session.run(["nothing"], {"x": np.zeros((1, 3, 8, 8), np.float32)})


def test_runs_at_once_do_not_disturb_each_other(session: InferenceSession) -> None:
    feeds = [RNG.standard_normal((1, 3, 6 + i % 3, 8)).astype(np.float32) for i in range(24)]
    alone = [session.run(None, {"x": x})[0] for x in feeds]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: session.run(None, {"x": x})[0], feeds))
    for a, b in zip(alone, together, strict=True):
        assert a.tobytes() == b.tobytes()


def test_more_shapes_than_cached_plans(cnn: onnx.ModelProto) -> None:
    session = InferenceSession(cnn, {"threads": 1, "plan_cache": 2})
    for height in (3, 4, 5, 3, 6, 4):
        x = RNG.standard_normal((1, 3, height, 4)).astype(np.float32)
        np.testing.assert_allclose(
            session.run(None, {"x": x})[0], _reference(cnn, x=x)[0], rtol=1e-4, atol=1e-5
        )


def test_observers_see_every_tensor(cnn: onnx.ModelProto, session: InferenceSession) -> None:
    x = RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)
    seen: dict[str, np.ndarray] = {}
    (y,) = session.observe({"x": x}, lambda name, array: seen.__setitem__(name, array))
    np.testing.assert_array_equal(seen["x"], x)
    np.testing.assert_allclose(seen["y"], y, rtol=1e-6)
    relu = _reference_of(cnn, "r1", x)
    np.testing.assert_allclose(seen["r1"], relu, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], y, rtol=1e-5, atol=1e-6)


def _reference_of(proto: onnx.ModelProto, name: str, x: np.ndarray) -> np.ndarray:
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    changed.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return _reference(changed, x=x)[1]


def test_an_observer_that_fails_stops_the_run(session: InferenceSession) -> None:
    def fail(name: str, array: np.ndarray) -> None:
        raise KeyError(name)

    with pytest.raises(KeyError):
        session.observe({"x": np.zeros((1, 3, 8, 8), np.float32)}, fail)


def test_profile_tells_what_ran(cnn: onnx.ModelProto) -> None:
    session = InferenceSession(cnn, SessionOptions(threads=1))
    session.run(None, {"x": np.zeros((1, 3, 8, 8), np.float32)})
    steps = [step for step in session.profile() if step.runs]
    convolutions = [step for step in steps if step.op_type == "Convolution"]
    assert len(convolutions) == 2
    assert "add" in convolutions[1].kernel
    assert "sigmoid" in convolutions[1].kernel
    assert not any(step.op_type == "BinaryOp" for step in steps)
    low = InferenceSession(cnn, SessionOptions(threads=1, precision=Precision.LOW))
    low.run(None, {"x": np.zeros((1, 3, 8, 8), np.float32)})
    words = ("float16 gemm_half", "no 16-bit float products")
    assert any(word in step.kernel for step in low.profile() for word in words)


def test_low_memory_keeps_the_bits(cnn: onnx.ModelProto) -> None:
    import mnnq

    model = mnnq.quantize_weights(convert_onnx(cnn), bits=4)
    x = RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)
    low = InferenceSession(
        to_bytes(model), SessionOptions(threads=1, memory=Memory.LOW, dynamic=Dynamic.ALWAYS)
    )
    normal = InferenceSession(to_bytes(model), SessionOptions(threads=1))
    want = normal.run(None, {"x": x})[0]
    np.testing.assert_allclose(low.run(None, {"x": x})[0], want, atol=0.02 * np.abs(want).max())
    assert any("4-bit weights" in step.kernel for step in low.profile())
    assert not any("4-bit weights" in step.kernel for step in normal.profile())


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"threads": 0}, "threads"),
        ({"plan_cache": 0}, "plan_cache"),
        ({"precision": "exact"}, "precision"),
        ({"memory": "none"}, "memory"),
        ({"dynamic": "maybe"}, "dynamic"),
        ({"colour": 1}, "colour"),
    ],
)
def test_wrong_options_are_named(cnn: onnx.ModelProto, options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        InferenceSession(cnn, options)
    assert caught.value.key == key


def test_other_providers_are_refused(cnn: onnx.ModelProto) -> None:
    with pytest.raises(ConfigError, match="CPUExecutionProvider"):
        InferenceSession(cnn, providers=["CUDAExecutionProvider"])


def test_integer_inputs_of_any_width_and_declared_types() -> None:
    node = helper.make_node("Gather", ["table", "i"], ["y"])
    table = RNG.standard_normal((5, 3)).astype(np.float32)
    proto = builders.model([node], {"i": np.zeros(2, np.int64)}, ["y"], {"table": table}, shapes={"i": ["n"]})
    session = InferenceSession(proto)
    assert session.get_inputs()[0].type == "tensor(int64)"
    for dtype in (np.int64, np.int32, np.uint8):
        (y,) = session.run(None, {"i": np.asarray([4, 0, 1], dtype)})
        np.testing.assert_array_equal(y, table[[4, 0, 1]])
    with pytest.raises(InputError, match="32 bits"):
        session.run(None, {"i": np.asarray([2**40])})


def test_everything_unsupported_is_named_at_once(cnn: onnx.ModelProto) -> None:
    model = convert_onnx(cnn)
    for op in model.ops:
        if op.type == "Convolution":
            op.type, op.param_type, op.params = "Svd", None, {}
    with pytest.raises(UnsupportedError) as caught:
        InferenceSession(to_bytes(model))
    assert len(caught.value.problems) == 2


def test_broken_bytes_are_an_error() -> None:
    with pytest.raises(FormatError):
        InferenceSession(b"\x20\0\0\0 not a model")


@pytest.mark.slow
def test_memory_does_not_grow_with_runs() -> None:
    session = InferenceSession(_cnn(), SessionOptions(threads=2))
    feeds = {"x": RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)}
    for _ in range(1000):
        session.run(None, feeds)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(10_000):
        session.run(None, feeds)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1024  # KiB; 0.1 byte per run


def test_errors_name_an_input_once() -> None:
    session = InferenceSession(_cnn())
    for feeds in ({}, {"x": np.zeros(3, np.float32)}, {"x": np.zeros((1, 3, 8, 8), np.int32)}):
        with pytest.raises(InputError) as error:
            session.run(None, feeds)
        assert error.value.key == "x"
        assert not str(error.value).startswith("x:")
