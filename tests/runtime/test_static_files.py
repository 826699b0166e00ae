"""Files with fixed shapes that MNN's own converter writes (``--saveStaticModel``): rasters and loops of commands."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from mnnq.errors import MnnqError
from mnnq.runtime import InferenceSession, SessionOptions
from tests import builders
from tests.ops.harness import needs_mnn

RNG = np.random.default_rng(29)

pytestmark = [
    needs_mnn,
    pytest.mark.peer,
    pytest.mark.skipif(shutil.which("mnnconvert") is None, reason="MNN's converter is not installed"),
]


def _floats(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.6).astype(np.float32)


def _static(proto: onnx.ModelProto, folder: Path, *options: str) -> Path:
    source, target = folder / "model.onnx", folder / "model.mnn"
    onnx.save(proto, source)
    command = ["mnnconvert", "-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(target)]
    command += ["--bizCode", "t", "--saveStaticModel", *options]
    environment = {**os.environ, "PIP_NO_INDEX": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment, timeout=120)
    return target


def _check(
    proto: onnx.ModelProto, feeds: dict[str, np.ndarray], folder: Path, *options: str, atol: float = 2e-5
) -> InferenceSession:
    """The file gives what onnxruntime gives for the model; the session that ran it."""
    runtime = pytest.importorskip("onnxruntime")
    target = _static(proto, folder, *options)
    names = [output.name for output in proto.graph.output]
    session = InferenceSession(target, SessionOptions(threads=2))
    got = session.run(names, feeds)
    reference = runtime.InferenceSession(proto.SerializeToString())
    for ours, want in zip(got, reference.run(names, feeds), strict=True):
        np.testing.assert_allclose(ours.reshape(want.shape), want, rtol=1e-4, atol=atol)
    observed: dict[str, np.ndarray] = {}
    session.observe(feeds, lambda name, array: observed.update({name: np.array(array)}))
    for name, ours in zip(names, got, strict=True):
        np.testing.assert_allclose(observed[name], ours, rtol=1e-4, atol=atol)
    return session


def _node(
    op_type: str,
    feeds: dict[str, np.ndarray],
    constants: dict[str, np.ndarray] | None = None,
    **attrs: object,
) -> onnx.ModelProto:
    node = helper.make_node(op_type, [*feeds, *(constants or {})], ["y"], **attrs)
    return builders.model([node], feeds, ["y"], constants or {})


CASES = {
    "products": ("MatMul", {"a": _floats(3, 4, 5), "b": _floats(3, 5, 7)}, {}),
    "products with one matrix": ("MatMul", {"a": _floats(3, 4, 5), "b": _floats(5, 7)}, {}),
    "products of broadcast matrices": ("MatMul", {"a": _floats(2, 1, 4, 5), "b": _floats(1, 3, 5, 7)}, {}),
    "products with a vector": ("MatMul", {"a": _floats(3, 4, 5), "b": _floats(5)}, {}),
    "einsum": (
        "Einsum",
        {"a": _floats(2, 3, 5, 4), "b": _floats(2, 3, 6, 4)},
        {"equation": "bhid,bhjd->bhij"},
    ),
    "gather": ("Gather", {"a": _floats(2, 5, 3), "b": np.asarray([4, 0, 2, 2])}, {"axis": 1}),
    "gather of elements": (
        "GatherElements",
        {"a": _floats(2, 5, 3), "b": RNG.integers(0, 5, (2, 4, 3))},
        {"axis": 1},
    ),
    "gather of slices": ("GatherND", {"a": _floats(2, 5, 3), "b": np.asarray([[1, 4], [0, 2]])}, {}),
    "scatter of slices": (
        "ScatterND",
        {"a": _floats(5, 3), "b": np.asarray([[3], [0]]), "c": _floats(2, 3)},
        {},
    ),
    "scatter of elements": (
        "ScatterElements",
        {"a": _floats(5, 3), "b": np.asarray([[0, 1, 2], [4, 0, 3]]), "c": _floats(2, 3)},
        {"axis": 0},
    ),
    "broadcast": ("Sub", {"a": _floats(5, 1, 3), "b": _floats(2, 5, 4, 3)}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_operators_that_become_loops(case: str, tmp_path: Path) -> None:
    op_type, feeds, attrs = CASES[case]
    session = _check(_node(op_type, feeds, **attrs), feeds, tmp_path)
    assert "While" in {step.op_type for step in session.profile()}


@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("exclusive", [0, 1])
def test_cumulated_sums(reverse: int, exclusive: int, tmp_path: Path) -> None:
    feeds = {"x": _floats(2, 5, 3)}
    proto = _node("CumSum", feeds, {"axis": np.asarray(1)}, reverse=reverse, exclusive=exclusive)
    _check(proto, feeds, tmp_path)


@pytest.mark.parametrize(
    ("direction", "states"), [("forward", False), ("forward", True), ("bidirectional", False)]
)
@pytest.mark.parametrize(("op_type", "gates"), [("LSTM", 4), ("RNN", 1)])
def test_recurrent_networks(op_type: str, gates: int, direction: str, states: bool, tmp_path: Path) -> None:
    # The loops of one network write the same tensors one after the other.
    dirs, hidden, features = (2 if direction == "bidirectional" else 1), 5, 3
    feeds = {"x": _floats(6, 2, features)}
    constants = {
        "w": _floats(dirs, gates * hidden, features),
        "r": _floats(dirs, gates * hidden, hidden),
        "b": _floats(dirs, 2 * gates * hidden),
    }
    outputs = ["y", "y_h", "y_c"][: 3 if op_type == "LSTM" else 2]
    if states:
        feeds |= {name: _floats(dirs, 2, hidden) for name in ("h0", "c0")[: len(outputs) - 1]}
    inputs = ["x", *constants, *(["", *list(feeds)[1:]] if states else [])]
    node = helper.make_node(op_type, inputs, outputs, hidden_size=hidden, direction=direction)
    _check(builders.model([node], feeds, outputs, constants), feeds, tmp_path, "--useOriginRNNImpl")


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_resizing_has_its_coordinates_in_the_file(mode: str, scale: float, tmp_path: Path) -> None:
    feeds = {"x": _floats(1, 3, 8, 6)}
    form = "asymmetric" if mode == "nearest" else "half_pixel"
    more = {"nearest_mode": "floor"} if mode == "nearest" else {}
    node = helper.make_node(
        "Resize", ["x", "", "scales"], ["y"], mode=mode, coordinate_transformation_mode=form, **more
    )
    constants = {"scales": np.asarray([1, 1, scale, scale], np.float32)}
    _check(builders.model([node], feeds, ["y"], constants), feeds, tmp_path)


def test_a_raster_of_several_inputs(tmp_path: Path) -> None:
    feeds = {"a": _floats(1, 2, 3, 4), "b": _floats(1, 5, 3, 4)}
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["c"], axis=1),
        helper.make_node("Transpose", ["c"], ["d"], perm=[0, 2, 3, 1]),
        helper.make_node("Softmax", ["d"], ["y"], axis=-1),
    ]
    _check(builders.model(nodes, feeds, ["y"]), feeds, tmp_path)


def test_attention(tmp_path: Path) -> None:
    heads, length, size = 2, 6, 4
    feeds = {"x": _floats(1, length, heads * size), "mask": _floats(1, 1, length, length)}
    split = {"shape": np.asarray([1, length, heads, size]), "flat": np.asarray([1, length, heads * size])}
    nodes, constants = [], dict(split)
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        constants[f"w{name}"] = _floats(heads * size, heads * size)
        nodes += [
            helper.make_node("MatMul", ["x", f"w{name}"], [f"{name}0"]),
            helper.make_node("Reshape", [f"{name}0", "shape"], [f"{name}1"]),
            helper.make_node("Transpose", [f"{name}1"], [name], perm=order),
        ]
    nodes += [
        helper.make_node("MatMul", ["q", "k"], ["s"]),
        helper.make_node("Add", ["s", "mask"], ["m"]),
        helper.make_node("Softmax", ["m"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["o"]),
        helper.make_node("Transpose", ["o"], ["t"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["t", "flat"], ["y"]),
    ]
    session = _check(builders.model(nodes, feeds, ["y"], constants), feeds, tmp_path)
    loops = {step.node: step.kernel for step in session.profile() if step.op_type == "While"}
    assert sum(kernel.startswith("matmul") for kernel in loops.values()) == 2, loops


def test_damaged_loops_are_refused(tmp_path: Path) -> None:
    feeds = {"x": _floats(6, 2, 3)}
    constants = {"w": _floats(1, 16, 3), "r": _floats(1, 16, 4), "b": _floats(1, 32)}
    node = helper.make_node("LSTM", ["x", *constants], ["y"], hidden_size=4)
    proto = builders.model([node], feeds, ["y"], constants)
    data = _static(proto, tmp_path, "--useOriginRNNImpl").read_bytes()
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        for at in RNG.integers(0, len(data), 3):
            damaged[at] = RNG.integers(0, 256)
        try:
            InferenceSession(bytes(damaged), SessionOptions(threads=1)).run(None, feeds)
        except (MnnqError, ValueError):
            refused += 1
    assert refused > 10
