"""Every fixture that the real tools wrote runs and gives what the real runtime recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnnq.runtime import InferenceSession, SessionOptions

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures" / "mnn"
MANIFEST = FIXTURES / "manifest.json"
ENTRIES: list[dict[str, Any]] = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else []
NAMES = [entry["name"] for entry in ENTRIES]

#: Largest difference relative to the largest value: float rounding.
ROUNDING = 1e-5

#: Offline-quantized networks with pooling, which MNN computes differently (`docs/runtime.md`): difference without `compat`.
POOLED = {"tinycnn_int8_kl": 0.15, "tinycnn_int8_ema": 1e-4, "tinycnn_int8_kl_skip": 0.15}

pytestmark = pytest.mark.skipif(not ENTRIES, reason="the fixtures are not there")


def _run(name: str, **options: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    arrays = dict(np.load(FIXTURES / f"{name}.npz"))
    session = InferenceSession(FIXTURES / f"{name}.mnn", SessionOptions(**{"threads": 1, **options}))
    (feed,) = session.get_inputs()
    (output,) = session.run(None, {feed.name: arrays["x"]})
    return output, arrays


def _error(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("name", NAMES)
def test_output_is_that_of_the_real_runtime(name: str) -> None:
    got, arrays = _run(name, int8="compat")
    assert _error(got, arrays["y"]) <= ROUNDING


@pytest.mark.parametrize("name", [name for name in NAMES if "int8" in name])
def test_only_pooling_of_codes_departs_from_the_real_runtime(name: str) -> None:
    exact, arrays = _run(name)
    error = _error(exact, arrays["y"])
    assert error <= POOLED.get(name, ROUNDING)
    assert (error > ROUNDING) == (name in POOLED)


@pytest.mark.parametrize("name", [name for name in NAMES if "int8" in name])
def test_fusion_changes_no_bit_of_codes(name: str) -> None:
    assert _run(name)[0].tobytes() == _run(name, fuse=False)[0].tobytes()


@pytest.mark.parametrize("name", ["tinycnn_int8_kl", "hand_old_convint8"])
def test_profile_says_what_ran_on_codes(name: str) -> None:
    session = InferenceSession(FIXTURES / f"{name}.mnn", SessionOptions(threads=1))
    session.run(None, {session.get_inputs()[0].name: np.load(FIXTURES / f"{name}.npz")["x"]})
    convolutions = [
        step for step in session.profile() if "onv" in step.op_type and step.op_type != "ConvertTensor"
    ]
    assert convolutions
    assert all("int8 gemm_i8_" in step.kernel or "int8 depthwise_i8_" in step.kernel for step in convolutions)


def test_observers_see_real_numbers_of_codes() -> None:
    name = "tinycnn_int8_kl"
    session = InferenceSession(FIXTURES / f"{name}.mnn", SessionOptions(threads=1))
    seen: dict[str, np.ndarray] = {}
    feed = {session.get_inputs()[0].name: np.load(FIXTURES / f"{name}.npz")["x"]}
    session.observe(feed, lambda key, array: seen.update({key: array.copy()}))
    scale = 0.04100991040468216
    assert seen["r1"].dtype == np.float32
    assert np.allclose(seen["r1"] / scale, np.round(seen["r1"] / scale), atol=1e-4)
    assert seen["r1"].max() > 10 * scale


@pytest.mark.parametrize("name", NAMES)
def test_threads_and_repetition_change_no_bit(name: str) -> None:
    one, arrays = _run(name)
    session = InferenceSession(FIXTURES / f"{name}.mnn", SessionOptions(threads=2))
    feed = {session.get_inputs()[0].name: arrays["x"]}
    for _ in range(3):
        assert session.run(None, feed)[0].tobytes() == one.tobytes()


@pytest.mark.parametrize("name", [name for name in NAMES if "int8" not in name])
def test_low_memory_computes_nearly_the_same_from_stored_bits(name: str) -> None:
    got, arrays = _run(name, memory="low")
    # Activations are quantized to 8 bits where weights are quantized.
    assert _error(got, _run(name)[0]) <= (0.03 if "_w" in name else ROUNDING)
    assert got.shape == arrays["y"].shape


@pytest.mark.parametrize("name", ["conv3x3_f32", "tblock_f32"])
def test_precisions_stay_within_their_errors(name: str) -> None:
    normal, _ = _run(name)
    assert _error(_run(name, precision="high")[0], normal) <= ROUNDING
    # Eight or eleven significant bits where the CPU has such products, none less elsewhere.
    assert _error(_run(name, precision="low")[0], normal) <= 1e-2


@pytest.mark.parametrize("name", ["tinycnn_f32", "tblock_w8_asym"])
def test_fusion_changes_no_more_than_rounding(name: str) -> None:
    fused, _ = _run(name)
    plain, _ = _run(name, fuse=False)
    assert _error(plain, fused) <= ROUNDING


def test_external_weights_may_be_missing_only_with_an_error(tmp_path: Path) -> None:
    from mnnq.errors import FormatError, UnsupportedError

    alone = tmp_path / "alone.mnn"
    alone.write_bytes((FIXTURES / "conv3x3_f32_ext.mnn").read_bytes())
    with pytest.raises((FormatError, UnsupportedError), match=r"weight|external"):
        InferenceSession(alone)
