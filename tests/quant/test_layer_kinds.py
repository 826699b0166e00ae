"""Every kind of layer that holds weights, from ONNX through quantization to the real runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mnnq
from mnnq.writer.to_mnn import to_bytes
from tests.ops.harness import needs_mnn
from tests.peers.mnn_runtime import MnnRuntime

pytestmark = [needs_mnn, pytest.mark.peer]

#: Largest error of the output relative to its largest value, 8 bit, normal weights and inputs.
TOLERANCE = 0.03


def normal(*shape: int) -> np.ndarray:
    return (np.random.default_rng(sum(shape)).standard_normal(shape) * 0.1).astype(np.float32)


def save(path: Path, op_type: str, shape: list[int], constants: dict[str, np.ndarray], **attrs: Any) -> Path:
    order = ["w", "x"] if attrs.pop("weight_first", False) else ["x", *constants]
    kind = TensorProto.INT64 if op_type == "Gather" else TensorProto.FLOAT
    inputs = [*constants, "x"] if op_type == "Gather" else order
    graph = helper.make_graph(
        [helper.make_node(op_type, inputs, ["y"], **attrs)],
        "layer",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(proto), path)
    return path


CASES: dict[str, tuple[str, list[int], dict[str, np.ndarray], dict[str, Any], int]] = {
    "conv": ("Conv", [1, 64, 6, 6], {"w": normal(32, 64, 3, 3), "b": normal(32)}, {}, 1),
    "conv 1d": ("Conv", [1, 64, 9], {"w": normal(32, 64, 3)}, {}, 1),
    "conv 3d": ("Conv", [1, 16, 5, 5, 5], {"w": normal(8, 16, 3, 3, 3)}, {}, 1),
    "grouped conv": ("Conv", [1, 64, 5, 5], {"w": normal(32, 32, 3, 3)}, {"group": 2}, 2),
    "depthwise conv": ("Conv", [1, 64, 5, 5], {"w": normal(64, 1, 3, 3)}, {"group": 64}, 1),
    "deconv": ("ConvTranspose", [1, 32, 5, 5], {"w": normal(32, 16, 3, 3)}, {"strides": [2, 2]}, 1),
    "grouped deconv": ("ConvTranspose", [1, 32, 5, 5], {"w": normal(32, 16, 3, 3)}, {"group": 2}, 2),
    "matmul": ("MatMul", [2, 5, 64], {"w": normal(64, 40)}, {}, 1),
    "gemm": ("Gemm", [3, 64], {"w": normal(20, 64), "b": normal(20)}, {"transB": 1, "alpha": 0.5}, 1),
    "lstm": ("LSTM", [7, 2, 48], {"w": normal(2, 256, 48), "r": normal(2, 256, 64), "b": normal(2, 512)},
             {"hidden_size": 64, "direction": "bidirectional"}, 4),
    "gru": ("GRU", [7, 2, 48], {"w": normal(1, 192, 48), "r": normal(1, 192, 64), "b": normal(1, 384)},
            {"hidden_size": 64, "linear_before_reset": 1}, 2),
    "embedding": ("Gather", [2, 5], {"w": normal(300, 64)}, {}, 1),
}  # fmt: skip


@pytest.mark.parametrize("block", [None, 32], ids=["channel", "block32"])
@pytest.mark.parametrize("name", CASES)
def test_quantized_layers_compute_what_the_float_ones_do(
    name: str, block: int | None, tmp_path: Path, mnn_runtime: MnnRuntime
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    op_type, shape, constants, attrs, layers = CASES[name]
    source = save(tmp_path / "layer.onnx", op_type, shape, constants, **attrs)
    result = mnnq.quantize_weights(mnnq.load(source), bits=8, block=block)
    assert len(result.report.quantized) == layers
    assert not result.report.left_float
    rng = np.random.default_rng(0)
    x = rng.integers(0, 300, shape) if op_type == "Gather" else rng.standard_normal(shape).astype(np.float32)
    # Not onnx.reference: it refuses grouped transposed convolutions.
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    want = session.run(["y"], {"x": x})[0]
    for low in (False, True):
        got = mnn_runtime.run(to_bytes(result), {"x": x}, ["y"], memory_low=low)["y"]
        assert got.shape == want.shape
        assert np.abs(got - want).max() < TOLERANCE * np.abs(want).max()


@pytest.mark.parametrize(
    ("weight", "shape", "first"), [((4, 32, 64), [4, 8, 32], False), ((200, 32), [32, 5], True)],
    ids=["batched", "left operand"],
)  # fmt: skip
def test_products_with_other_constants_stay_float_and_are_listed(
    weight: tuple[int, ...], shape: list[int], first: bool, tmp_path: Path
) -> None:
    source = save(tmp_path / "layer.onnx", "MatMul", shape, {"w": normal(*weight)}, weight_first=first)
    report = mnnq.quantize_weights(mnnq.load(source), bits=8).report
    (layer,) = report.layers
    assert (layer.op_type, layer.bits, layer.bytes_after) == ("Const", 32, 4 * int(np.prod(weight)))
    assert "read by MatMul" in report.warnings()[0]
