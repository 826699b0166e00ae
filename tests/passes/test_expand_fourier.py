"""STFT and DFT of known length become products with constant matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mnnq import InferenceSession
from mnnq.convert import convert_onnx
from mnnq.errors import UnsupportedError
from tests.passes.helpers import run

RNG = np.random.default_rng(0)


def model(
    op_type: str,
    x: np.ndarray,
    constants: Mapping[str, np.ndarray | None],
    attrs: Mapping[str, Any],
    opset: int,
) -> onnx.ModelProto:
    names = [name if value is not None else "" for name, value in constants.items()]
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x", *names], ["y"], **attrs)],
        "fourier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", *x.shape[1:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in constants.items() if v is not None],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


# A one-sided transform of a complex signal is not defined.
@pytest.mark.parametrize(("onesided", "channels"), [(0, 1), (1, 1), (0, 2)])
@pytest.mark.parametrize("window", [True, False])
def test_stft_becomes_a_convolution(onesided: int, window: bool, channels: int) -> None:
    x = RNG.standard_normal((2, 100, channels)).astype(np.float32)
    constants = {
        "step": np.array(7),
        "window": np.hanning(16).astype(np.float32) if window else None,
        "length": np.array(16),
    }
    proto = model("STFT", x, constants, {"onesided": onesided}, 17)
    got = InferenceSession(proto).run(None, {"x": x})[0]
    frames = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), 16, axis=1)[:, ::7]
    signal = frames[:, :, 0] + (1j * frames[:, :, 1] if channels == 2 else 0)
    signal = signal * (constants["window"] if window else 1)
    want = np.fft.rfft(signal) if onesided else np.fft.fft(signal)
    np.testing.assert_allclose(got, np.stack([want.real, want.imag], -1), atol=1e-5)


@pytest.mark.parametrize("axis", [1, 2, -2])
@pytest.mark.parametrize("length", [None, 5, 9])
@pytest.mark.parametrize(("channels", "attrs"), [(1, {}), (1, {"onesided": 1}), (2, {}), (2, {"inverse": 1})])
def test_dft_becomes_a_product(axis: int, length: int | None, channels: int, attrs: dict[str, int]) -> None:
    x = RNG.standard_normal((2, 6, 7, channels)).astype(np.float32)
    constants = {"length": None if length is None else np.array(length), "axis": np.array(axis)}
    proto = model("DFT", x, constants, attrs, 20)
    got = InferenceSession(proto).run(None, {"x": x})[0]
    signal = x[..., 0].astype(np.float64) + (1j * x[..., 1] if channels == 2 else 0)
    along = axis if axis > 0 else axis + 4
    transform = np.fft.ifft if "inverse" in attrs else np.fft.rfft if "onesided" in attrs else np.fft.fft
    want = transform(signal, n=length, axis=along)
    np.testing.assert_allclose(got, np.stack([want.real, want.imag], -1), atol=1e-5)


def test_dft_of_opset_17_agrees_with_the_reference() -> None:
    x = RNG.standard_normal((2, 6, 7, 1)).astype(np.float32)
    proto = model("DFT", x, {}, {"axis": 2}, 17)
    np.testing.assert_allclose(
        InferenceSession(proto).run(None, {"x": x})[0], run(proto, {"x": x})[0], atol=1e-5
    )


def test_a_window_that_is_computed_is_refused() -> None:
    nodes = [helper.make_node("STFT", ["x", "step", "w"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "dynamic",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 100, 1]),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [16]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(7), "step")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    with pytest.raises(UnsupportedError, match="STFT"):
        convert_onnx(proto)
