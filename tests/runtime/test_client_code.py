"""Client code written for onnxruntime's session, and other ways in which sessions are used."""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from mnnq.errors import ConfigError, InputError, UnsupportedError
from mnnq.runtime import InferenceSession, SessionOptions
from tests import builders

RNG = np.random.default_rng(11)
X = RNG.standard_normal((40, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def proto() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Softmax", ["m"], ["y"])]
    constants = {"w": RNG.standard_normal((64, 96)).astype(np.float32)}
    return builders.model(nodes, {"x": X}, ["y"], constants, shapes={"x": ["n", 64]})


def test_options_of_onnxruntime(proto: onnx.ModelProto) -> None:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 3
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    providers = ["CUDAExecutionProvider", ("CPUExecutionProvider", {})]
    session = InferenceSession(proto, sess_options=options, providers=providers, provider_options=[{}, {}])
    assert session.get_session_options() == SessionOptions(threads=3)
    default = InferenceSession(proto, runtime.SessionOptions()).get_session_options()
    assert default == SessionOptions()
    options.enable_profiling = True
    with pytest.raises(ConfigError, match="enable_profiling"):
        InferenceSession(proto, options)


@pytest.mark.parametrize(
    "arguments",
    [
        {"sess_options": 5},
        {"providers": [("CPUExecutionProvider", {"use_arena": "0"})]},
        {"providers": ["CPUExecutionProvider"], "provider_options": [{"use_arena": "0"}]},
        {"sess_options": {"threads": "2"}},
        {"sess_options": {"threads": 2.0}},
        {"sess_options": {"fuse": "no"}},
        {"sess_options": {"plan_cache": "all"}},
    ],
)
def test_other_options_are_refused(proto: onnx.ModelProto, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        InferenceSession(proto, **arguments)


def test_what_a_session_says_of_its_model(proto: onnx.ModelProto) -> None:
    session = InferenceSession(proto)
    meta = session.get_modelmeta()
    assert (meta.producer_name, meta.custom_metadata_map) == ("mnnq", {})
    assert session.get_provider_options() == {"CPUExecutionProvider": {}}
    assert session.get_overridable_initializers() == []


def test_bound_memory_is_refused(proto: onnx.ModelProto) -> None:
    session = InferenceSession(proto)
    for call in (
        session.io_binding,
        lambda: session.run_with_iobinding(None),
        lambda: session.run_with_ort_values(["y"], {}),
    ):
        with pytest.raises(UnsupportedError, match="run"):
            call()


def test_feeds_of_python_numbers_and_foreign_byte_order(proto: onnx.ModelProto) -> None:
    session = InferenceSession(proto)
    (want,) = session.run(None, {"x": X})
    np.testing.assert_array_equal(session.run(None, {"x": X.tolist()})[0], want)
    np.testing.assert_array_equal(session.run(None, {"x": X.astype(">f4")})[0], want)
    with pytest.raises(InputError, match="float64"):
        session.run(None, {"x": X.astype(np.float64)})


def test_scalars() -> None:
    proto = builders.model(
        [helper.make_node("Add", ["a", "b"], ["y"])],
        {"a": np.float32(1), "b": np.float32(1)},
        ["y"],
        shapes={"a": [], "b": []},
    )
    (got,) = InferenceSession(proto).run(None, {"a": 2.5, "b": np.float32(1)})
    assert (got.shape, got.dtype, float(got)) == ((), np.float32, 3.5)


@pytest.mark.parametrize(("names", "feeds"), [("y", {"x": X}), (None, [X]), (None, None)])
def test_arguments_of_other_kinds_are_named(proto: onnx.ModelProto, names: Any, feeds: Any) -> None:
    with pytest.raises(InputError, match="wanted a"):
        InferenceSession(proto).run(names, feeds)


def _child(session: InferenceSession, answers: SimpleQueue[Any]) -> None:
    answers.put(session.run(None, {"x": X})[0])


@pytest.mark.skipif(sys.platform != "linux", reason="processes are not forked")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_process_runs_the_session_of_its_parent(proto: onnx.ModelProto, threads: int) -> None:
    session = InferenceSession(proto, SessionOptions(threads=threads))
    (want,) = session.run(None, {"x": X})
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_child, args=(session, answers))
    child.start()
    child.join(30)
    alive = child.is_alive()
    child.kill()
    assert not alive, "the forked process hangs"
    assert not answers.empty()
    np.testing.assert_array_equal(answers.get(), want)


def test_paths_and_bytes_of_either_kind(proto: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    data = path.read_bytes()
    for source in (path, str(path), data, bytearray(data), memoryview(data), proto):
        assert InferenceSession(source).run(None, {"x": X})[0].shape == (40, 96)
    nonsense: list[Any] = [None, 5, [data]]
    for wrong in nonsense:
        with pytest.raises(TypeError):
            InferenceSession(wrong)
