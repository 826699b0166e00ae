"""One check for every operator: convert, run in the real MNN runtime, compare with the ONNX reference."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.reference
import pytest

from mnnq.convert import convert_onnx
from mnnq.ir import Model
from mnnq.writer.to_mnn import to_bytes
from tests.peers.mnn_runtime import MnnRuntime


def reference(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What ONNX says the model computes."""
    evaluator = onnx.reference.ReferenceEvaluator(proto)
    return dict(zip([o.name for o in proto.graph.output], evaluator.run(None, dict(feeds)), strict=True))


def check(
    proto: onnx.ModelProto,
    feeds: Mapping[str, np.ndarray],
    runtime: MnnRuntime,
    *,
    rtol: float = 1e-4,
    atol: float = 1e-5,
    expected: Mapping[str, np.ndarray] | None = None,
) -> Model:
    """Fail unless the converted model computes the reference's values and shapes in the real runtime."""
    expected = expected or reference(proto, feeds)
    model = convert_onnx(proto)
    got = runtime.run(
        to_bytes(model), {name: _widened(array) for name, array in feeds.items()}, list(expected)
    )
    for name, want in expected.items():
        have = got[name]
        assert have.shape == want.shape, f"{name}: shape {have.shape}, want {want.shape}"
        if want.dtype.kind == "f":
            np.testing.assert_allclose(have, want, rtol=rtol, atol=atol, err_msg=name)
        else:
            np.testing.assert_array_equal(have.astype(np.int64), want.astype(np.int64), err_msg=name)
    return model


def _widened(array: np.ndarray) -> np.ndarray:
    """Feeds of converted models: inputs of every integer type are INT32 there."""
    return array.astype(np.int32) if array.dtype in (np.uint8, np.int8) else array


def mnn_available() -> bool:
    """Whether the MNN wheel can be imported (without importing it here)."""
    import importlib.util

    return importlib.util.find_spec("MNN") is not None


needs_mnn = pytest.mark.skipif(not mnn_available(), reason="the MNN wheel is not installed")
