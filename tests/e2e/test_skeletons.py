"""Real exports end to end: convert, run in the real MNN runtime, compare with onnxruntime on the source.

The exports come without their weights, beside the repository; the tests skip when they are not there.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from mnnq.convert import convert_onnx
from mnnq.ir.model import Model
from tests.ops.harness import needs_mnn
from tests.peers.mnn_runtime import MnnRuntime

onnxruntime = pytest.importorskip("onnxruntime")

SKELETONS = Path(__file__).parents[3] / "shared" / "data" / "onnx_skeletons"
NAMES = sorted(path.stem for path in SKELETONS.glob("*.onnx"))

#: Largest difference to onnxruntime, relative to the largest value of an output.
TOLERANCE = 1e-3

#: Dynamic axes are tried at these sizes besides the default ones.
OTHER_SIZES = {"N": 3}

pytestmark = [
    pytest.mark.skipif(not NAMES, reason="the exported models are not there"),
    pytest.mark.slow,
]

#: What the main operators of a converted model are: a lost fusion shows as other numbers.
EXPECTED_OPS = {
    "bert_base.jit": {"Convolution": 73, "LayerNorm": 25, "Softmax": 12, "MatMul": 24, "Reshape": 100},
    "efficientnet_b0.dyn": {
        "Convolution": 66,
        "ConvolutionDepthwise": 16,
        "Pooling3D": 17,
        "ConvertTensor": 2,
    },
    "mobilenetv2.jit": {"Convolution": 36, "ConvolutionDepthwise": 17, "BinaryOp": 10, "ConvertTensor": 2},
    "resnet18.jitbn": {"Convolution": 21, "BinaryOp": 8, "Pooling": 1, "ConvertTensor": 2},
    "shufflenetv2.jitdynb": {"Convolution": 38, "StridedSlice": 26, "Permute": 16, "ConvertTensor": 2},
    "unet.jit": {"Convolution": 19, "Deconvolution": 4, "Concat": 4, "ConvertTensor": 2},
    "vit_s16.jit": {"Convolution": 50, "LayerNorm": 25, "MatMul": 24, "Softmax": 12},
    "llama2l.dyn": {"Convolution": 15, "LayerNorm": 5, "MatMul": 4},
    "yolov8n.dyn": {"Convolution": 64, "Interp": 2, "Pooling": 3, "Concat": 19},
}


def _refill() -> ModuleType:
    spec = importlib.util.spec_from_file_location("refill", SKELETONS / "refill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["refill"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=NAMES)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, ...]]:
    """Name, source file, description and converted model of one export."""
    name = request.param
    folder = tmp_path_factory.mktemp(name.replace(".", "_"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the script leaves closing to the interpreter
        proto, meta = _refill().refill(name)
    source = folder / "model.onnx"
    onnx.save(proto, source)
    del proto
    yield name, source, meta, convert_onnx(source)
    source.unlink()


def _relative_error(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-30))


def _compare(
    source: Path, model: Model, feeds: dict[str, np.ndarray], runtime: MnnRuntime, path: Path
) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    wanted = onnxruntime.InferenceSession(str(source), options).run(None, feeds)
    model.save(path)
    got = runtime.run(path, feeds, model.outputs)
    for name, want in zip(model.outputs, wanted, strict=True):
        assert _relative_error(got[name], want) < TOLERANCE, name


@needs_mnn
@pytest.mark.peer
def test_outputs_agree(case: tuple[Any, ...], mnn_runtime: MnnRuntime, tmp_path: Path) -> None:
    _, source, meta, model = case
    _compare(source, model, _refill().sample_inputs(meta), mnn_runtime, tmp_path / "model.mnn")


@needs_mnn
@pytest.mark.peer
def test_outputs_agree_at_other_sizes(case: tuple[Any, ...], mnn_runtime: MnnRuntime, tmp_path: Path) -> None:
    _, source, meta, model = case
    if all(isinstance(dim, int) for entry in meta["inputs"] for dim in entry["shape"]):
        pytest.skip("all axes are static")
    feeds = _refill().sample_inputs(meta, seed=1, dims=OTHER_SIZES)
    _compare(source, model, feeds, mnn_runtime, tmp_path / "model.mnn")


def test_main_operators(case: tuple[Any, ...]) -> None:
    name, _, meta, model = case
    expected = EXPECTED_OPS.get(name, {})
    found = Counter(op.type for op in model.ops)
    assert {kind: found[kind] for kind in expected} == expected
    assert len(model.inputs) == len(meta["inputs"])


def test_descriptions_belong_to_models() -> None:
    for name in NAMES:
        assert json.loads((SKELETONS / f"{name}.json").read_text())["inputs"]
