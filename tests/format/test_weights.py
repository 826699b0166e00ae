"""The weight payload against a second implementation of the format, in NumPy and plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnnq import _native
from mnnq.errors import FormatError
from tests.format.samples import convolution


def bit_stream(values: list[int], bits: int) -> bytes:
    text = "".join(format(value, f"0{bits}b") for value in values)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


def dense_payload(codes: np.ndarray, bits: int, wide: bool) -> bytes:
    """Storage type 1, from its description."""
    half = 1 << (bits - 1)
    dims = np.asarray(codes.shape, np.uint32 if wide else np.uint16)
    table = np.arange(-half, half).astype(np.int8).tobytes()
    indices = (codes.astype(np.int64).ravel() + half).tolist()
    return bytes([2]) + dims.tobytes() + bytes([len(table) & 255]) + table + bit_stream(indices, bits)


def decode_payload(buffer: bytes, wide: bool, kind: int, alpha: np.ndarray) -> np.ndarray:
    """Codes of storage types 1 and 2, bit by bit."""
    count, position = buffer[0], 1
    size = 4 if wide else 2
    dims = [int.from_bytes(buffer[1 + i * size : 1 + (i + 1) * size], "little") for i in range(count)]
    position += count * size
    n = int(np.prod(dims))

    def stream(bits: int, length: int) -> list[int]:
        nonlocal position
        used = (bits * length + 7) // 8
        text = "".join(format(byte, "08b") for byte in buffer[position : position + used])
        position += used
        return [int(text[i * bits : (i + 1) * bits], 2) for i in range(length)]

    def table() -> tuple[list[int], int]:
        nonlocal position
        length = buffer[position] or 256
        values = np.frombuffer(buffer[position + 1 : position + 1 + length], np.int8)
        position += 1 + length
        return sorted(values.tolist()), max(1, int(np.ceil(np.log2(length))))

    if kind == 1:
        values, bits = table()
        return np.array([values[i] for i in stream(bits, n)], np.int64)
    entries = int.from_bytes(buffer[position : position + 4], "little")
    step_bits = buffer[position + 4]
    position += 5
    steps = stream(step_bits, entries)
    values, bits = table()
    out = np.zeros(n, np.int64)
    if len(alpha) == 2 * dims[0]:
        low, scale = alpha.reshape(-1, 2).astype(np.float32).T
        zero = -low / scale
        zero = np.where(scale <= 1e-6, 0, np.sign(zero) * np.floor(np.abs(zero) + np.float32(0.5)))
        out[:] = np.repeat(zero - (1 << (bits - 1)), n // dims[0])
    at = 0
    for step, index in zip(steps, stream(bits, entries), strict=True):
        at += step
        out[at] = values[index]
    assert position == len(buffer)
    return out


@st.composite
def quantized(draw: st.DrawFn) -> dict[str, Any]:
    bits = draw(st.integers(2, 8))
    rows, length = draw(st.integers(1, 5)), draw(st.integers(1, 400))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    half = 1 << (bits - 1)
    asymmetric = draw(st.booleans())
    # Mostly zero, so that the sparse layout has its chance; the zero code is within reach.
    scale = random.uniform(0.01, 1, rows).astype(np.float32)
    zero = random.integers(-half, half, rows) if asymmetric else np.zeros(rows, np.int64)
    low = (-(zero + half) * scale).astype(np.float32)
    codes = random.integers(-half, half, (rows, length))
    keep = random.random((rows, length)) < draw(st.sampled_from([0.0, 0.01, 0.1, 1.0]))
    codes = np.where(keep, codes, zero[:, None]).astype(np.int8)
    return {"bits": bits, "codes": codes, "scale": scale, "min": low if asymmetric else None}


@settings(deadline=None, max_examples=200)
@given(weights=quantized(), sparse=st.booleans(), wide=st.booleans(), fp16=st.booleans())
def test_payloads_agree_with_the_description(
    weights: dict[str, Any], sparse: bool, wide: bool, fp16: bool
) -> None:
    table = _native.encode_weights(**weights, sparse=sparse, wide=wide, fp16_scales=fp16)
    codes, bits, low = weights["codes"], weights["bits"], weights["min"]
    rows, length = codes.shape
    buffer = table["buffer"].tobytes()
    dense = dense_payload(codes, bits, wide)
    if table["type"] == 1:
        assert buffer == dense
    else:
        assert sparse
        assert len(buffer) < len(dense)
    assert table["shapeInt32"] is wide
    parts = [weights["scale"]] if low is None else [low, weights["scale"]]
    alpha = np.stack(parts, 1).ravel()
    if fp16:
        np.testing.assert_array_equal(table["alphaFp16"], alpha.astype(np.float16).view(np.uint16))
        alpha = alpha.astype(np.float16).astype(np.float32)
    else:
        np.testing.assert_array_equal(table["alpha"], alpha)
    np.testing.assert_array_equal(decode_payload(buffer, wide, table["type"], alpha), codes.ravel())

    decoded = _native.decode_weights(convolution({"quanParameter": table}, rows))
    assert decoded["kind"] == "quantized"
    np.testing.assert_array_equal(decoded["codes"], codes.ravel())
    scale = alpha.reshape(rows, -1)[:, -1:]
    half = np.float32(1 << (bits - 1))
    wanted = codes.astype(np.float32) * scale
    if low is not None:
        wanted += alpha.reshape(rows, 2)[:, :1] + half * scale
    np.testing.assert_array_equal(decoded["weight"], wanted.ravel())
    assert (decoded["rows"], decoded["row_len"]) == (rows, length)


def test_flat_codes_are_cut_into_rows() -> None:
    codes = np.arange(6, dtype=np.int8)
    scale = np.ones(2, np.float32)
    flat = _native.encode_weights(codes, scale, None, 4)
    shaped = _native.encode_weights(codes.reshape(2, 3), scale, None, 4)
    strided = _native.encode_weights(np.repeat(codes, 2)[::2], scale, None, 4)
    columns = _native.encode_weights(np.asfortranarray(codes.reshape(2, 3)), scale, None, 4)
    assert len({table["buffer"].tobytes() for table in (flat, shaped, strided, columns)}) == 1


@pytest.mark.parametrize(
    ("codes", "rows", "low", "bits", "key"),
    [
        (np.zeros(6, np.int8), 4, None, 8, "scale"),
        (np.zeros((3, 2), np.int8), 2, None, 8, "codes"),
        (np.zeros(6, np.int8), 2, np.zeros(3, np.float32), 8, "min"),
        (np.zeros(6, np.int8), 2, None, 9, "bits"),
        (np.zeros(6, np.int8), 2, None, 1, "bits"),
        (np.full(6, 8, np.int8), 2, None, 4, "codes"),
        (np.full(6, -9, np.int8), 2, None, 4, "codes"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(
    codes: np.ndarray, rows: int, low: np.ndarray | None, bits: int, key: str
) -> None:
    with pytest.raises(FormatError) as error:
        _native.encode_weights(codes, np.ones(rows, np.float32), low, bits)
    assert error.value.key == key


def test_half_floats_are_rounded_and_clamped() -> None:
    weight = np.array([[1e6, -1e6, 0.1], [65519, 1e-8, -0.0]], np.float32)
    table = _native.pack_half(weight)
    assert table["type"] == 3
    with np.errstate(over="ignore"):
        wanted = np.clip(weight, -65504, 65504).astype(np.float16)
    assert table["buffer"].tobytes() == wanted.tobytes()
    decoded = _native.decode_weights(convolution({"quanParameter": table}))
    assert decoded["kind"] == "half"
    np.testing.assert_array_equal(decoded["weight"], wanted.ravel().astype(np.float32))
    columns, rows = (
        _native.pack_half(order(weight.T)) for order in (np.asfortranarray, np.ascontiguousarray)
    )
    np.testing.assert_array_equal(columns["buffer"], rows["buffer"])


def test_float_weights_need_no_decoding() -> None:
    weight = np.arange(8, dtype=np.float32)
    decoded = _native.decode_weights(convolution({"weight": weight}))
    np.testing.assert_array_equal(decoded.pop("weight"), weight)
    assert decoded.pop("kind") == "float"
    assert set(decoded.values()) == {None}


def test_a_convolution_without_weights_is_an_error() -> None:
    with pytest.raises(FormatError, match="no weights of its own"):
        _native.decode_weights(convolution({}))
