"""Weight quantizers against a NumPy float32 emulation of the rules, and against files of MNN's converter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnnq import _native
from mnnq.errors import QuantizationError

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures" / "mnn"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="no fixtures of the real converter here")

F32 = np.float32


def round_half_away(x: np.ndarray) -> np.ndarray:
    """Round half away from zero, exactly: the fraction of a float below 2^23 is exact."""
    whole = np.trunc(x)
    away: np.ndarray = np.where(np.abs(x - whole) >= 0.5, np.sign(x), 0).astype(x.dtype)
    rounded: np.ndarray = whole + away
    return rounded


def emulate_rtn(
    weight: np.ndarray, bits: int, symmetric: bool, block: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """MNN's rule in float32: codes, scale, min."""
    rows, row_len = weight.shape
    w = weight.astype(F32).reshape(rows, -1, block or row_len)
    half = F32(2 ** (bits - 1))
    with np.errstate(all="ignore"):
        if symmetric:
            scale = np.abs(w).max(-1) / (half - F32(1))
            codes = np.clip(round_half_away(w / scale[..., None]), -half, half - 1)
            codes = np.where(scale[..., None] <= F32(1e-6), 0, codes)
            return codes.astype(np.int8).reshape(rows, row_len), scale, None
        low = w.min(-1) + F32(0)  # a zero minimum is stored as +0
        scale = (w.max(-1) + F32(0) - low) / (F32(2) * half - F32(1))
        codes = np.clip(round_half_away((w - low[..., None]) / scale[..., None]) - half, -half, half - 1)
        codes = np.where(scale[..., None] <= F32(1e-6), -half, codes)
    return codes.astype(np.int8).reshape(rows, row_len), scale, low


def emulate_hqq(weight: np.ndarray, bits: int, block: int | None) -> tuple[np.ndarray, ...]:
    """MNN's HQQ in float32, but for the order of the sums."""
    rows, row_len = weight.shape
    w = weight.astype(F32).reshape(rows, -1, block or row_len)
    steps, half = F32(2**bits - 1), F32(2 ** (bits - 1))
    low, high = w.min(-1, keepdims=True), w.max(-1, keepdims=True)
    s = F32(1) / np.maximum((high - low) * (F32(1) / steps), F32(1e-7))
    z = s * -low
    for _ in range(20):
        q = np.clip(round_half_away(w * s + z), 0, steps)
        e = w - (q - z) * (F32(1) / s)
        a = np.abs(e)
        shrunk = np.maximum(a - F32(0.1) * np.maximum(a, F32(1e-8)) ** F32(-0.3), 0) * np.sign(e)
        z = (q - (w - shrunk) * s).mean(-1, keepdims=True, dtype=F32)
    scale = F32(1) / s
    minimum = -(z * scale)
    codes = np.clip(round_half_away((w - minimum) * s - half), -half, half - 1)
    return codes.astype(np.int8).reshape(rows, row_len), scale[..., 0], minimum[..., 0]


def hard_rows(row_len: int = 96) -> np.ndarray:
    """Rows that break careless quantizers."""
    rng = np.random.default_rng(7)
    rows = [
        rng.normal(size=row_len),
        rng.laplace(size=row_len) * 0.02,
        rng.standard_t(2, size=row_len) * 1e-3,
        np.zeros(row_len),
        np.full(row_len, -0.0),
        np.full(row_len, 0.25),
        np.full(row_len, -3.25),
        rng.normal(size=row_len) * 1e-40,
        rng.normal(size=row_len) * 1e-7,
        rng.normal(size=row_len) * 3e-6,
        rng.normal(size=row_len) * 1e37,
        np.where(np.arange(row_len) % 7, 1e-8, 1e8),
        np.abs(rng.normal(size=row_len)) + 5,
        -np.abs(rng.normal(size=row_len)) - 5,
        np.where(np.arange(row_len) % 2, -0.0, 1.0),
        np.arange(row_len) * 0.5,
        (np.arange(row_len) % 9 - 4) * 0.5,
        np.eye(1, row_len)[0],
    ]
    return np.array(rows).astype(F32)


def assert_bits_equal(got: np.ndarray | None, want: np.ndarray | None) -> None:
    assert got is not None
    assert want is not None
    assert got.dtype == want.dtype == F32
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("block", [None, 96, 48, 32, 16, 3], ids=lambda b: f"block{b}")
@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_rtn_is_bit_identical_to_the_rule(bits: int, symmetric: bool, block: int | None) -> None:
    weight = hard_rows()
    got = _native.quantize_codes(weight, bits=bits, symmetric=symmetric, block=block)
    codes, scale, minimum = emulate_rtn(weight, bits, symmetric, block)
    np.testing.assert_array_equal(got["codes"], codes)
    assert_bits_equal(got["scale"], scale)
    if symmetric:
        assert got["min"] is None
    else:
        assert_bits_equal(got["min"], minimum)


@pytest.mark.parametrize("row_len", [*range(1, 35), 63, 65])
def test_rtn_agrees_for_every_remainder_of_a_vector(row_len: int) -> None:
    weight = np.random.default_rng(row_len).normal(size=(3, row_len)).astype(F32)
    for symmetric in (True, False):
        got = _native.quantize_codes(weight, bits=4, symmetric=symmetric)
        codes, scale, _ = emulate_rtn(weight, 4, symmetric, None)
        np.testing.assert_array_equal(got["codes"], codes)
        assert_bits_equal(got["scale"], scale)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 8),
    st.booleans(),
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=70),
)
def test_rtn_agrees_on_any_row(bits: int, symmetric: bool, row: list[float]) -> None:
    weight = np.array([row], F32)
    got = _native.quantize_codes(weight, bits=bits, symmetric=symmetric)
    codes, scale, _ = emulate_rtn(weight, bits, symmetric, None)
    np.testing.assert_array_equal(got["codes"], codes)
    assert_bits_equal(got["scale"], scale)


@pytest.mark.parametrize("sigma", [0.02, 1.0], ids=["shrinkage_inactive", "shrinkage_active"])
@pytest.mark.parametrize("block", [None, 64, 32])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_hqq_follows_the_recipe(bits: int, block: int | None, sigma: float) -> None:
    weight = (np.random.default_rng(3).normal(size=(32, 128)) * sigma).astype(F32)
    got = _native.quantize_codes(weight, bits=bits, symmetric=False, block=block, method="hqq")
    codes, scale, minimum = emulate_hqq(weight, bits, block)
    assert_bits_equal(got["scale"], scale)
    # The order of a sum may tip a weight that lies between two codes.
    assert (got["codes"] != codes).mean() < 2e-3
    assert got["min"] is not None
    close = np.isclose(got["min"], minimum, rtol=0, atol=4e-6 * sigma)
    assert close.mean() > 0.97


def convolutions(path: Path) -> dict[str, dict[str, Any]]:
    """Quantized convolutions of a file, by name."""
    found = {}
    for op in _native.read_model(path)["oplists"]:
        main = op.get("main")
        if op.get("main_type") == "Convolution2D" and main.get("quanParameter") is not None:
            found[op["name"]] = main
    return found


def initializers(path: Path) -> dict[str, np.ndarray]:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(path)
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def source_matrices(path: Path, count: int) -> list[np.ndarray]:
    """Weights of a fixture's source model as `[rows, row_len]` float32, those that have `count` elements."""
    matrices = []
    for array in initializers(path).values():
        if array.dtype != F32 or array.ndim < 2 or array.size != count:
            continue
        if array.ndim == 2:
            matrices += [array, array.T]
        else:
            matrices.append(array.reshape(array.shape[0], -1))
    return matrices


def converter_fixtures() -> list[Any]:
    """Files whose weights the converter quantized with flags alone."""
    if not FIXTURES.is_dir():
        return []
    manifest = json.loads((FIXTURES / "manifest.json").read_text())
    entries = [e for e in manifest if "--weightQuantBits" in (e.get("flags") or "")]
    return [pytest.param(entry, id=entry["name"]) for entry in entries]


def requantize(matrix: np.ndarray, main: dict[str, Any], flags: str) -> dict[str, Any] | None:
    """Our codes for a candidate source matrix, or None if its shape cannot be that of the convolution."""
    want = _native.decode_weights(main)
    outputs = main["common"]["outputCount"]
    flat = matrix.reshape(outputs, -1) if matrix.flags.c_contiguous else matrix
    if flat.shape[0] != outputs:
        return None
    assert want["rows"] is not None
    assert want["row_len"] is not None
    assert want["bits"] is not None
    idst, _ = _native.quantize_weights(
        flat,
        bits=want["bits"],
        symmetric=want["min"] is None,
        block=want["row_len"],
        method="hqq" if "--hqq" in flags else "rtn",
        fp16_scales="--weightQuantScaleBit 16" in flags,
        sparse="--detectSparseSpeedUp" in flags,
    )
    return idst


@needs_fixtures
@pytest.mark.parametrize("entry", converter_fixtures())
def test_codes_equal_those_of_the_converter(entry: dict[str, Any]) -> None:
    found = convolutions(FIXTURES / f"{entry['name']}.mnn")
    assert found
    groups = entry["onnx"] == "group.onnx"
    for name, main in found.items():
        want = main["quanParameter"]
        count = _native.decode_weights(main)["weight"].size
        if groups and len(found) == 2:
            halves = [h for m in source_matrices(FIXTURES / entry["onnx"], 2 * count) for h in np.split(m, 2)]
            candidates = [np.ascontiguousarray(h) for h in halves]
        else:
            candidates = source_matrices(FIXTURES / entry["onnx"], count)
        results = [requantize(matrix, main, entry["flags"]) for matrix in candidates]
        matching = [r for r in results if r is not None and np.array_equal(r["buffer"], want["buffer"])]
        assert matching, f"{name}: no source weight of {len(candidates)} gives the stored codes"
        got = matching[0]
        if "--hqq" in entry["flags"]:
            np.testing.assert_allclose(got["alpha"][0::2], want["alpha"][0::2], rtol=0, atol=6e-8)
            assert_bits_equal(got["alpha"][1::2].copy(), want["alpha"][1::2].copy())
        else:
            key = "alphaFp16" if "--weightQuantScaleBit 16" in entry["flags"] else "alpha"
            np.testing.assert_array_equal(got[key], want[key])
        scalars = {k for k, v in want.items() if not isinstance(v, np.ndarray)}
        assert {k: got.get(k) for k in scalars} == {k: want[k] for k in scalars}


@pytest.mark.parametrize("method", ["rtn", "hqq", "hqq_ref", "search"])
def test_result_does_not_depend_on_threads_or_layout(method: str) -> None:
    weight = np.random.default_rng(5).normal(size=(70, 160)).astype(F32) * F32(0.02)
    padded = np.zeros((140, 320), F32)
    padded[::2, ::2] = weight
    want = _native.quantize_codes(weight, bits=3, symmetric=False, block=32, method=method, threads=1)
    views = {
        "threads": weight,
        "transposed": np.ascontiguousarray(weight.T).T,
        "gaps": padded[::2, ::2],
        "reversed": np.ascontiguousarray(weight[::-1, ::-1])[::-1, ::-1],
        "column_slice": np.concatenate([weight, weight], 1)[:, 160:],
    }
    for name, view in views.items():
        got = _native.quantize_codes(view, bits=3, symmetric=False, block=32, method=method, threads=3)
        np.testing.assert_array_equal(got["codes"], want["codes"], err_msg=name)
        assert_bits_equal(got["scale"], want["scale"])
        assert got["stats"] == want["stats"], name


def test_half_precision_weights_are_converted_exactly() -> None:
    half = np.random.default_rng(1).normal(size=(20, 48)).astype(np.float16)
    for view in (half, np.ascontiguousarray(half.T).T, half[:, ::2]):
        got = _native.quantize_codes(view, bits=4, symmetric=False)
        want = _native.quantize_codes(view.astype(F32), bits=4, symmetric=False)
        np.testing.assert_array_equal(got["codes"], want["codes"])
        assert_bits_equal(got["scale"], want["scale"])


def test_bfloat16_weights_are_converted_exactly() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    brain = np.random.default_rng(1).normal(size=(20, 48)).astype(ml_dtypes.bfloat16)
    got = _native.quantize_codes(brain, bits=4, symmetric=False)
    want = _native.quantize_codes(brain.astype(F32), bits=4, symmetric=False)
    np.testing.assert_array_equal(got["codes"], want["codes"])


@pytest.mark.parametrize("method", ["rtn", "search"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("fp16_scales", [True, False])
def test_stats_describe_what_the_table_decodes_to(method: str, symmetric: bool, fp16_scales: bool) -> None:
    weight = np.random.default_rng(2).normal(size=(24, 64)).astype(F32)
    idst, stats = _native.quantize_weights(
        weight, bits=4, symmetric=symmetric, block=32, method=method, fp16_scales=fp16_scales
    )
    conv = {"common": {"outputCount": 24, "inputCount": 64}, "quanParameter": idst}
    decoded = _native.decode_weights(conv)["weight"].reshape(weight.shape)
    error = weight.astype(np.float64) - decoded
    relative = np.sqrt((error**2).sum() / (weight.astype(np.float64) ** 2).sum())
    assert stats["relative_rms"] == pytest.approx(relative, rel=1e-6)
    assert stats["sqnr_db"] == pytest.approx(-20 * np.log10(relative), rel=1e-6)
    assert stats["max_abs_error"] == pytest.approx(np.abs(error).max(), rel=1e-5)
    assert (stats["rows"], stats["row_len"], stats["bits"], stats["block"]) == (24, 64, 4, 32)


def test_half_scales_keep_the_codes_of_rtn() -> None:
    weight = np.random.default_rng(2).normal(size=(24, 64)).astype(F32)
    plain = _native.quantize_codes(weight, bits=8, symmetric=False)
    half = _native.quantize_codes(weight, bits=8, symmetric=False, fp16_scales=True)
    np.testing.assert_array_equal(plain["codes"], half["codes"])
    # MNN's converter truncates.
    nearest = plain["scale"].astype(np.float16)
    truncated = np.where(nearest > plain["scale"], np.nextafter(nearest, np.float16(0)), nearest)
    np.testing.assert_array_equal(truncated.astype(F32), half["scale"])


@pytest.mark.parametrize("method", ["rtn", "hqq", "search"])
@pytest.mark.parametrize("block", [None, 32])
def test_gain_correction_restores_gain_and_mean(method: str, block: int | None) -> None:
    weight = np.random.default_rng(4).laplace(size=(16, 256)).astype(F32)
    got = _native.quantize_codes(
        weight, bits=2, symmetric=False, block=block, method=method, gain_correction=True
    )
    scale, minimum = got["scale"], got["min"]
    assert minimum is not None
    index = got["codes"].reshape(*scale.shape, -1).astype(np.float64) + 2
    decoded = (minimum[..., None] + scale[..., None] * index).reshape(weight.shape)
    w = weight - weight.mean(1, keepdims=True, dtype=np.float64)
    d = decoded - decoded.mean(1, keepdims=True)
    np.testing.assert_allclose(decoded.mean(1), weight.mean(1, dtype=np.float64), atol=1e-5)
    np.testing.assert_allclose((w * w).sum(1) / (w * d).sum(1), 1, atol=1e-5)


BAD_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("bits", {"bits": 9}),
    ("bits", {"bits": 1}),
    ("bits", {"bits": -4}),
    ("block", {"block": 5}),
    ("block", {"block": 0}),
    ("block", {"block": -1}),
    ("method", {"method": "best"}),
    ("method", {"method": "hqq", "symmetric": True}),
    ("threads", {"threads": 0}),
]


@pytest.mark.parametrize(("key", "change"), BAD_OPTIONS, ids=lambda v: str(v))
def test_bad_options_are_errors_that_name_them(key: str, change: dict[str, Any]) -> None:
    options: dict[str, Any] = {"bits": 4, "symmetric": False, **change}
    with pytest.raises(QuantizationError) as caught:
        _native.quantize_weights(np.ones((4, 16), F32), **options)
    assert caught.value.key == key


@pytest.mark.parametrize(
    "weight",
    [
        np.ones((4, 4)),
        np.ones((4, 4), np.int8),
        np.ones(4, F32),
        np.ones((2, 2, 2), F32),
        np.ones((0, 4), F32),
        np.ones((4, 4), ">f4"),
        np.frombuffer(bytes(65), np.uint8)[1:].view(F32).reshape(4, 4),
        [[1.0]],
    ],
    ids=["float64", "int8", "vector", "cube", "empty", "big_endian", "unaligned", "list"],
)
def test_other_arguments_are_errors(weight: Any) -> None:
    with pytest.raises(QuantizationError) as caught:
        _native.quantize_weights(weight, bits=4, symmetric=False)
    assert caught.value.key == "weight"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(bad: float) -> None:
    weight = np.ones((300, 40), F32)
    weight[211, 7] = bad
    with pytest.raises(QuantizationError, match=r"weight \[211, 7\]"):
        _native.quantize_weights(weight, bits=8, symmetric=True)


def test_a_range_beyond_the_storage_is_an_error() -> None:
    with pytest.raises(QuantizationError, match="row 0"):
        _native.quantize_weights(np.array([[3e38, -3e38]], F32), bits=8, symmetric=False)
    with pytest.raises(QuantizationError, match="65504") as caught:
        _native.quantize_weights(np.array([[1e5, -1e5]], F32), bits=8, symmetric=False, fp16_scales=True)
    assert caught.value.key == "fp16_scales"
