"""Files that MNN's own converter writes with its options for recurrent networks, attention and volumes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from mnnq.runtime import InferenceSession
from tests import builders
from tests.ops.harness import needs_mnn

RNG = np.random.default_rng(17)
HIDDEN, FEATURES = 5, 3

pytestmark = [
    needs_mnn,
    pytest.mark.peer,
    pytest.mark.skipif(shutil.which("mnnconvert") is None, reason="MNN's converter is not installed"),
]


def _floats(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.4).astype(np.float32)


def _check(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], folder: Path, *options: str) -> set[str]:
    """Outputs of the converted file are those of onnxruntime; the operator types that ran."""
    runtime = pytest.importorskip("onnxruntime")
    source, target = folder / "model.onnx", folder / "model.mnn"
    onnx.save(proto, source)
    command = [
        "mnnconvert",
        "-f",
        "ONNX",
        "--modelFile",
        str(source),
        "--MNNModel",
        str(target),
        "--bizCode",
        "t",
    ]
    environment = {**os.environ, "PIP_NO_INDEX": "1"}
    subprocess.run([*command, *options], check=True, capture_output=True, env=environment, timeout=120)
    names = [output.name for output in proto.graph.output]
    session = InferenceSession(target)
    got = session.run(names, feeds)
    for ours, want in zip(got, runtime.InferenceSession(source).run(names, feeds), strict=True):
        np.testing.assert_allclose(ours.reshape(want.shape), want, rtol=1e-4, atol=2e-5)
    return {step.op_type for step in session.profile()}


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize(("op_type", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_networks(op_type: str, gates: int, direction: str, original: bool, tmp_path: Path) -> None:
    if op_type == "RNN" and not original:
        pytest.skip("the converter keeps it one operator in any case")
    dirs = 2 if direction == "bidirectional" else 1
    outputs = ["y", "y_h", "y_c"][: 3 if op_type == "LSTM" else 2]
    attributes = {"linear_before_reset": 1} if op_type == "GRU" else {}
    if op_type == "RNN":
        attributes["activations"] = ["Tanh"] * dirs
    node = helper.make_node(
        op_type, ["x", "w", "r", "b"], outputs, hidden_size=HIDDEN, direction=direction, **attributes
    )
    constants = {
        "w": _floats(dirs, gates * HIDDEN, FEATURES),
        "r": _floats(dirs, gates * HIDDEN, HIDDEN),
        "b": _floats(dirs, 2 * gates * HIDDEN),
    }
    x = _floats(7, 2, FEATURES)
    proto = builders.model([node], {"x": x}, outputs, constants)
    types = _check(proto, {"x": x}, tmp_path, *(["--useOriginRNNImpl"] if original else []))
    assert original == bool(types & {"LSTM", "RNNSequenceGRU", "RNN"})


def test_fused_attention(tmp_path: Path) -> None:
    length, heads, size = 6, 2, 8
    width = heads * size
    nodes, constants = (
        [],
        {"shape": np.asarray([1, length, heads, size]), "flat": np.asarray([1, length, width])},
    )
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        constants |= {f"w{name}": _floats(width, width), f"b{name}": _floats(width)}
        nodes += [
            helper.make_node("MatMul", ["x", f"w{name}"], [f"{name}0"]),
            helper.make_node("Add", [f"{name}0", f"b{name}"], [f"{name}1"]),
            helper.make_node("Reshape", [f"{name}1", "shape"], [f"{name}2"]),
            helper.make_node("Transpose", [f"{name}2"], [f"{name}3"], perm=order),
        ]
    constants |= {"root": np.asarray(size**0.5, np.float32), "wo": _floats(width, width)}
    nodes += [
        helper.make_node("MatMul", ["q3", "k3"], ["s0"]),
        helper.make_node("Div", ["s0", "root"], ["s1"]),
        helper.make_node("Add", ["s1", "mask"], ["s2"]),
        helper.make_node("Softmax", ["s2"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v3"], ["o0"]),
        helper.make_node("Transpose", ["o0"], ["o1"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["o1", "flat"], ["o2"]),
        helper.make_node("MatMul", ["o2", "wo"], ["y"]),
    ]
    mask = np.where(RNG.random((1, 1, length, length)) < 0.3, -1e4, 0).astype(np.float32)
    feeds = {"x": _floats(1, length, width), "mask": mask}
    types = _check(builders.model(nodes, feeds, ["y"], constants), feeds, tmp_path, "--transformerFuse", "1")
    assert "Attention" in types


def test_convolution_of_volumes(tmp_path: Path) -> None:
    node = helper.make_node(
        "Conv", ["x", "w", "b"], ["y"], pads=[1] * 6, strides=[1, 2, 1], kernel_shape=[3] * 3
    )
    x = _floats(1, 4, 6, 9, 8)
    proto = builders.model([node], {"x": x}, ["y"], {"w": _floats(6, 4, 3, 3, 3), "b": _floats(6)})
    assert {"Im2Col", "Eltwise"} <= _check(proto, {"x": x}, tmp_path)


def test_gather_with_batch_axes(tmp_path: Path) -> None:
    node = helper.make_node("GatherND", ["x", "i"], ["y"], batch_dims=1)
    x, indices = _floats(2, 3, 4), np.asarray([[[1], [0]], [[2], [2]]])
    proto = builders.model([node], {"x": x}, ["y"], {"i": indices})
    assert "GatherND" in _check(proto, {"x": x}, tmp_path)
