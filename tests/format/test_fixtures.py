"""Files of the real MNN tools: read, decoded, written again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mnnq import _native
from tests.format.samples import FIXTURES, arrays_of, convolutions, differences, file_of, fixtures
from tests.peers.mnn_runtime import MnnRuntime

ENTRIES = fixtures()
pytestmark = pytest.mark.skipif(not ENTRIES, reason="the fixture files are not installed")
each_fixture = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])


def storage(entry: dict[str, Any]) -> list[str]:
    """Weight storage of each convolution as the manifest records it."""
    return [re.sub(r"/.*", "", word) for word in entry["weights"] if not word.startswith("Const")]


def test_all_fixtures_are_there() -> None:
    assert len(ENTRIES) == len(list(FIXTURES.glob("*.mnn"))) == 62


@each_fixture
def test_weights_are_stored_as_recorded(entry: dict[str, Any]) -> None:
    names = {1: "type 1", 2: "type 2", 4: "type 4"}
    found = []
    for op in convolutions(_native.read_model(file_of(entry))):
        decoded = _native.decode_weights(op["main"])
        kind = decoded["kind"]
        found.append(
            {
                "float": "float",
                "sparse": "sparse-float",
                "half": "type 3",
                "quantized": names.get(op["main"].get("quanParameter", {}).get("type")),
                "old_int8": "symmetricQuan",
            }[kind]
        )
        assert decoded["weight"].dtype == np.float32
    assert found == storage(entry)


@each_fixture
def test_hand_written_weights_are_decoded(entry: dict[str, Any]) -> None:
    arrays = arrays_of(entry)
    if "weight" not in arrays:
        pytest.skip("converted from ONNX")
    (op,) = convolutions(_native.read_model(file_of(entry)))
    decoded = _native.decode_weights(op["main"])
    np.testing.assert_allclose(decoded["weight"], arrays["weight"].ravel(), rtol=0, atol=2e-7)


@each_fixture
def test_weights_are_those_of_the_source_model(entry: dict[str, Any]) -> None:
    if entry["origin"] != "tool":
        pytest.skip("hand-written")
    proto = onnx.load(FIXTURES / entry["onnx"])
    sources = [numpy_helper.to_array(t) for t in proto.graph.initializer if t.data_type == 1]
    candidates = [s for s in sources if s.ndim >= 2]
    flat = [c.ravel() for c in candidates] + [c.T.ravel() for c in candidates if c.ndim == 2]
    flat += [part.ravel() for c in candidates if len(c) % 2 == 0 for part in np.split(c, 2)]
    for op in convolutions(_native.read_model(file_of(entry))):
        decoded = _native.decode_weights(op["main"])
        weight, scale = decoded["weight"], decoded["scale"]
        if scale is not None:
            # Half a step. Calibrated (ADMM) and hand-made scales clip a little; half-float scales shift up to 255
            # steps by 2^-11 of their value.
            clipping = "admm" in entry["name"] or "fullquant" in entry["name"]
            shifted = "scale16" in entry["name"]
            bound = float(scale.max()) * (2.0 if clipping else 0.7 if shifted else 0.51)
        else:
            bound = 2e-3 if decoded["kind"] == "half" else 0.0
        errors = [np.abs(weight - c).max() for c in flat if c.size == weight.size]
        assert min(errors) <= bound, op["name"]


def convolve(x: np.ndarray, weight: np.ndarray, main: dict[str, Any], group: int) -> np.ndarray:
    """Convolution by definition; `x`: [n, c, h, w], `weight`: flat [oc, ic / group, kh, kw]."""
    common = main["common"]
    kh, kw, out = common["kernelY"], common["kernelX"], common["outputCount"]
    top, left, bottom, right = common.get(
        "pads", [common["padY"], common["padX"], common["padY"], common["padX"]]
    )
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    w = weight.astype(np.float64).reshape(out, -1, kh, kw)
    dy, dx, sy, sx = common["dilateY"], common["dilateX"], common["strideY"], common["strideX"]
    windows = np.lib.stride_tricks.sliding_window_view(x, ((kh - 1) * dy + 1, (kw - 1) * dx + 1), axis=(2, 3))
    windows = windows[:, :, ::sy, ::sx, ::dy, ::dx]
    parts = [
        np.einsum("nchwij,ocij->nohw", part, rows)
        for part, rows in zip(np.split(windows, group, 1), np.split(w, group), strict=True)
    ]
    y = np.concatenate(parts, 1) + main["bias"].reshape(1, -1, 1, 1)
    if common["relu"] or common["relu6"]:
        y = np.clip(y, 0, 6 if common["relu6"] else None)
    return y


@each_fixture
def test_convolutions_on_decoded_weights_give_the_recorded_output(entry: dict[str, Any]) -> None:
    net = _native.read_model(file_of(entry))
    ops = [op for op in net["oplists"] if op["type"] not in {"Input", "ConvertTensor"}]
    single = len(ops) == 1 and ops[0]["type"] in {"Convolution", "ConvolutionDepthwise"}
    if not single or "extraTensorDescribe" in net:
        pytest.skip("not a single float convolution")
    (op,) = ops
    arrays = arrays_of(entry)
    weight = _native.decode_weights(op["main"])["weight"]
    depthwise = op["type"] == "ConvolutionDepthwise"
    group = op["main"]["common"]["outputCount"] if depthwise else op["main"]["common"]["group"]
    y = convolve(arrays["x"], weight, op["main"], group)
    np.testing.assert_allclose(y, arrays["y"], rtol=0, atol=2e-5 * np.abs(arrays["y"]).max())


@each_fixture
def test_written_files_are_read_back_the_same(entry: dict[str, Any], tmp_path: Path) -> None:
    net = _native.read_model(file_of(entry))
    content = _native.model_to_bytes(net)
    assert int.from_bytes(content[:4], "little") in {0x18, 0x1C, 0x20}
    assert differences(_native.read_model(content), net) == []
    assert _native.model_to_bytes(_native.read_model(content)) == content
    path = tmp_path / "external.mnn"
    size = _native.write_model(net, path, external=True)
    side = Path(f"{path}.weight")
    assert size == path.stat().st_size + (side.stat().st_size if side.exists() else 0)
    assert differences(_native.read_model(path), net) == []


@pytest.mark.parametrize("name", ["conv3x3_f32", "conv3x3_w8_asym", "conv3x3_w4_asym_scale16"])
def test_external_files_are_laid_out_as_by_mnn(name: str, tmp_path: Path) -> None:
    """Writing what was read from MNN's own pair of files gives the same side file."""
    source = FIXTURES / f"{name}_ext.mnn"
    path = tmp_path / "again.mnn"
    _native.write_model(_native.read_model(source), path, external=True)
    assert Path(f"{path}.weight").read_bytes() == Path(f"{source}.weight").read_bytes()
    (tmp_path / "again.mnn.weight").unlink()
    (ours,) = convolutions(_native.read_model(path))
    alone = tmp_path / "alone.mnn"
    alone.write_bytes(source.read_bytes())
    (theirs,) = convolutions(_native.read_model(alone))
    np.testing.assert_array_equal(ours["main"]["external"], theirs["main"]["external"])


@pytest.mark.peer
@pytest.mark.parametrize("external", [False, True], ids=["one file", "external"])
@each_fixture
def test_the_real_runtime_computes_the_same(
    entry: dict[str, Any], external: bool, mnn_runtime: MnnRuntime, tmp_path: Path
) -> None:
    net = _native.read_model(file_of(entry))
    path = tmp_path / "again.mnn"
    _native.write_model(net, path, external=external)
    produced = [int(i) for op in net["oplists"] for i in op["outputIndexes"]]
    consumed = {int(i) for op in net["oplists"] for i in op.get("inputIndexes", ())}
    last = [net["tensorName"][i] for i in produced if i not in consumed]
    inputs = [op["outputIndexes"][0] for op in net["oplists"] if op["type"] == "Input"]
    feeds = {net["tensorName"][i]: arrays_of(entry)["x"] for i in inputs}
    output = net.get("outputName", last)[0]
    ours, theirs = (mnn_runtime.run(file, feeds, [output])[output] for file in (path, file_of(entry)))
    np.testing.assert_array_equal(ours, theirs)
