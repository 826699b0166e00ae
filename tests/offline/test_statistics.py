"""The native statistics and the choice of codes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from mnnq import _native
from mnnq.errors import QuantizationError
from mnnq.ir.model import Model, Op
from mnnq.quantization.offline.config import WeightRange
from mnnq.quantization.offline.equalize import equalize, factors
from mnnq.quantization.offline.layout import plan_layout
from mnnq.quantization.offline.tables import put_table
from mnnq.runtime.session import InferenceSession
from mnnq.writer.to_mnn import to_bytes
from tests.mnn_models import single_conv


def observed(arrays: list[np.ndarray]) -> tuple[_native.NativeStatistics, str]:
    """Statistics of the input of a small network."""
    model = single_conv(np.ones((4, 3, 1, 1), np.float32), size=arrays[0].shape[2])
    session = InferenceSession(to_bytes(model))
    name = session.get_inputs()[0].name
    found = _native.NativeStatistics([name], [name])
    for array in arrays:
        found.observe(session.native, {name: array})
    return found, name


def normal(count: int, scale: float = 1.0) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(1, 3, 6, 6)) * scale).astype(np.float32) for _ in range(count)]


def test_counts_extremes_and_means() -> None:
    arrays = normal(5)
    found, name = observed(arrays)
    values = np.concatenate([array.ravel() for array in arrays])
    summary = found.summary(name)
    assert (summary["min"], summary["max"]) == (values.min(), values.max())
    assert summary["count"] == values.size == summary["counts"].sum() + summary["zeros"]
    edges = summary["centres"] - summary["width"] / 2
    wanted = np.array([np.sum((values >= e) & (values < e + summary["width"])) for e in edges])
    assert np.array_equal(summary["counts"], wanted)
    means, low, high = found.channel_statistics(name)
    stacked = np.concatenate(arrays)
    assert np.allclose(means, stacked.mean(axis=(0, 2, 3)), atol=1e-6)
    assert np.array_equal(low, stacked.min(axis=(0, 2, 3)))
    assert np.array_equal(high, stacked.max(axis=(0, 2, 3)))


def test_state_and_merge() -> None:
    arrays = [*normal(3), *normal(2, 100.0)]
    whole, name = observed(arrays)
    first, second = observed(arrays[:2])[0], observed(arrays[2:])[0]
    copied = _native.NativeStatistics.from_state(first.state())
    copied.merge(second)
    a, b = whole.summary(name), copied.summary(name)
    assert np.array_equal(a["counts"], b["counts"])
    assert (a["width"], a["min"], a["max"]) == (b["width"], b["min"], b["max"])
    assert copied.samples == 5
    with pytest.raises(ValueError, match="no statistics"):
        _native.NativeStatistics.from_state(first.state()[:-1])


@pytest.mark.parametrize(("low", "high", "zero"), [(0.0, 6.0, -128), (-6.0, 0.0, 127), (-1.0, 1.0, 0)])
def test_zero_is_a_code(low: float, high: float, zero: int) -> None:
    scale, found, least, most = _native.activation_codes(
        low, high, symmetric=False, low_code=-128, high_code=127
    )
    assert abs(found - zero) <= 1
    assert (least, most) == (-128, 127)
    assert (most - found) * scale == pytest.approx(high, abs=scale)


def test_channels_that_are_zero_stay_zero() -> None:
    weights = np.array([[1.0, -2.0, 0.5], [0, 0, 0], [1e-42, 0, 0]], np.float32)
    for method in WeightRange:
        found = _native.quantize_rows(weights, method=method.value, limit=127)
        scales, codes = found["scale"], found["codes"]
        assert np.isfinite(scales).all()
        assert np.abs(codes[0]).max() == 127
        assert not codes[1].any()
        assert np.allclose(codes * scales[:, None], weights, atol=0.01)


@pytest.mark.parametrize("limit", [127, 7])
def test_scales_of_rows_are_those_of_the_rule(limit: int) -> None:
    weights = np.random.default_rng(3).standard_normal((9, 301)).astype(np.float32) ** 3
    found = _native.quantize_rows(weights, method="search", limit=limit)
    scales, codes = found["scale"], found["codes"]

    def error(scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        q = np.clip(np.rint(weights / scale[:, None]), -limit, limit)
        return np.asarray(np.square(weights - q * scale[:, None]).sum(axis=1, dtype=np.float64))

    plain = np.abs(weights).max(axis=1) / np.float32(limit)
    shares = np.linspace(1.0, 0.7, 31).astype(np.float32)
    best = np.array([error(plain * share) for share in shares]).min(axis=0)
    assert (error(scales) <= best * (1 + 1e-5)).all()
    assert np.abs(codes).max() == limit
    wide = weights - codes * scales[:, None].astype(np.float64)
    assert found["error"] == pytest.approx(np.square(wide).sum(), rel=1e-9)
    assert found["power"] == pytest.approx(np.square(weights.astype(np.float64)).sum(), rel=1e-9)
    with pytest.raises(QuantizationError, match="limit"):
        _native.quantize_rows(weights, method="search", limit=128)
    with pytest.raises(QuantizationError, match="method"):
        _native.quantize_rows(weights, method="mse", limit=127)
    weights[4, 7] = np.nan
    with pytest.raises(QuantizationError, match=r"\[4, 7\]"):
        _native.quantize_rows(weights, method="search", limit=127)


def test_differences_are_those_of_the_formulas() -> None:
    rng = np.random.default_rng(4)
    reference = rng.standard_normal(1000).astype(np.float32)
    codes = np.clip(np.rint(reference / 0.02) + 3, -128, 127).astype(np.int8)
    values = ((codes.astype(np.float32) - 3) * np.float32(0.02)).astype(np.float32)
    found = _native.difference_sums(reference, values)
    assert _native.difference_sums(reference, codes, 0.02, 3.0) == found
    r, v = reference.astype(np.float64), values.astype(np.float64)
    wanted = (abs(v - r).max(), abs(r).max(), ((v - r) ** 2).sum(), r @ r, v @ v, v @ r)
    assert found == pytest.approx(wanted, rel=1e-6)
    bad = reference.copy()
    bad[999] = np.inf
    assert _native.difference_sums(bad, values) is False
    assert _native.difference_sums(values, bad) is None


def test_tables_follow_the_codes() -> None:
    op = Op("Sigmoid", "s", ["x"], ["y"])
    source = {"scale": 0.05, "zero": 3.0, "min": -127.0, "max": 127.0}
    target = {"scale": 1 / 255, "zero": -128.0, "min": -128.0, "max": 127.0}
    put_table(op, source, target)
    assert (op.type, op.params["opType"]) == ("UnaryOp", "SIGMOID")
    code = 40
    wanted = round(1 / (1 + np.exp(-(code - 3) * 0.05)) * 255) - 128
    assert op.params["tableInt8"][code + 127] == wanted
    assert len(op.params["tableInt8"]) == 255


def test_factors_are_bounded() -> None:
    found = factors(np.array([1.0, 0.0, 1e9]), np.array([1.0, 1.0, 1e-9]))
    assert np.isfinite(found).all()
    assert found.max() / found.min() <= 64**2


def test_a_model_without_convolutions_has_nothing_to_describe() -> None:
    model = Model([Op("Input", "x", [], ["x"]), Op("ReLU", "y", ["x"], ["y"])], ["y"])
    assert not plan_layout(model, {"x", "y"}, set(), set()).described
    assert equalize(model, {}, set()) == []
