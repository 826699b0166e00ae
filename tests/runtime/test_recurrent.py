"""Recurrent operators and attention against their formulas."""

from __future__ import annotations

import numpy as np
import pytest

from mnnq.errors import ExecutionError, UnsupportedError
from tests.runtime.single_op import run_op, session_of

RNG = np.random.default_rng(3)
HIDDEN, FEATURES, BATCH = 5, 3, 2


def _floats(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.5).astype(np.float32)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _directions(x: np.ndarray, dirs: int) -> list[tuple[int, list[int]]]:
    steps = list(range(len(x)))
    return [(d, steps[::-1] if d else steps) for d in range(dirs)]


def _lstm(
    x: np.ndarray, w: np.ndarray, r: np.ndarray, b: np.ndarray, h0: np.ndarray, c0: np.ndarray
) -> list[np.ndarray]:
    dirs = len(w)
    y, last_h, last_c = np.zeros((len(x), dirs, BATCH, HIDDEN)), h0.astype(float), c0.astype(float)
    for d, steps in _directions(x, dirs):
        h, c = last_h[d], last_c[d]
        for t in steps:
            i, o, f, g = np.split(x[t] @ w[d].T + h @ r[d].T + b[d], 4, axis=1)
            c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
            h = _sigmoid(o) * np.tanh(c)
            y[t, d] = h
        last_h[d], last_c[d] = h, c
    return [y, last_h, last_c]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("dirs", [1, 2])
def test_lstm(dirs: int, steps: int, threads: int) -> None:
    x, h0, c0 = _floats(steps, BATCH, FEATURES), _floats(dirs, BATCH, HIDDEN), _floats(dirs, BATCH, HIDDEN)
    weights = [
        _floats(dirs, 4 * HIDDEN, FEATURES),
        _floats(dirs, 4 * HIDDEN, HIDDEN),
        _floats(dirs, 4 * HIDDEN),
    ]
    got = run_op("LSTM", [x, *weights, h0, c0], "LSTM", outputs=3, threads=threads, outputCount=HIDDEN)
    for ours, want in zip(got, _lstm(x, *weights, h0, c0), strict=True):
        np.testing.assert_allclose(ours, want, rtol=1e-5, atol=1e-6)
    (only,) = run_op("LSTM", [x, *weights], "LSTM", outputCount=HIDDEN)
    zero = np.zeros_like(h0)
    np.testing.assert_allclose(only, _lstm(x, *weights, zero, zero)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dirs", [1, 2])
def test_plain_rnn(dirs: int) -> None:
    x, h0 = _floats(6, BATCH, FEATURES), _floats(dirs, BATCH, HIDDEN)
    w, r, b = _floats(dirs, HIDDEN, FEATURES), _floats(dirs, HIDDEN, HIDDEN), _floats(dirs, HIDDEN)
    y, last = run_op("RNN", [x, w, r, b, h0], "LSTM", outputs=2, outputCount=HIDDEN)
    for d, steps in _directions(x, dirs):
        h = h0[d]
        for t in steps:
            h = np.tanh(x[t] @ w[d].T + h @ r[d].T + b[d])
            np.testing.assert_allclose(y[t, d], h, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(last[d], y[steps[-1], d])


@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("dirs", [1, 2])
def test_gru(dirs: int, after: bool, initial: bool) -> None:
    x = _floats(6, BATCH, FEATURES)
    h0 = _floats(dirs, BATCH, HIDDEN) if initial else np.zeros((dirs, BATCH, HIDDEN), np.float32)
    rows = FEATURES + HIDDEN
    weights = [
        [_floats(rows, 2 * HIDDEN), _floats(1, 2 * HIDDEN), _floats(rows, HIDDEN), _floats(1, HIDDEN), _floats(1, 3 * HIDDEN)]
        for _ in range(dirs)
    ]  # fmt: skip
    inputs = [x, *(part for one in weights for part in one), *([h0] if initial else [])]
    y, last = run_op(
        "RNNSequenceGRU", inputs, "RNNParam", outputs=2, numUnits=HIDDEN, isBidirectionalRNN=dirs == 2,
        linearBeforeReset=after, keepAllOutputs=True,
    )  # fmt: skip
    for d, steps in _directions(x, dirs):
        gate, gate_bias, new, new_bias, bias = weights[d]
        h = h0[d]
        for t in steps:
            gates = x[t] @ gate[:FEATURES] + h @ gate[FEATURES:] + gate_bias + bias[:, : 2 * HIDDEN]
            z, r = np.split(_sigmoid(gates), 2, axis=1)
            past = bias[:, 2 * HIDDEN :]
            past = r * (h @ new[FEATURES:] + past) if after else (r * h) @ new[FEATURES:] + past
            h = (1 - z) * np.tanh(x[t] @ new[:FEATURES] + new_bias + past) + z * h
            np.testing.assert_allclose(y[t, d], h, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(last[d], y[steps[-1], d])


def test_weights_that_do_not_fit_are_named() -> None:
    x, r = _floats(4, BATCH, FEATURES), _floats(1, 4 * HIDDEN, HIDDEN)
    with pytest.raises(ExecutionError, match=r"input 1 has shape \[1, 20, 4\], wanted \[1, 20, 3\]"):
        run_op("LSTM", [x, _floats(1, 4 * HIDDEN, 4), r], "LSTM", outputCount=HIDDEN)
    with pytest.raises(ExecutionError, match="1 or 2 directions"):
        run_op("LSTM", [x, _floats(3, 4 * HIDDEN, 3), r], "LSTM", outputCount=HIDDEN)
    with pytest.raises(UnsupportedError, match="clippingThreshold is 2"):
        session_of("LSTM", [x, x, r], "LSTM", {"outputCount": HIDDEN, "clippingThreshold": 2.0}, 1)
    with pytest.raises(UnsupportedError, match="keepAllOutputs is false"):
        session_of("RNNSequenceGRU", [x] * 6, "RNNParam", {"numUnits": HIDDEN}, 1)


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray, scale: float) -> np.ndarray:
    share = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, share, 2), np.repeat(v, share, 2)
    scores = np.einsum("bthd,bshd->bhts", q, k) * scale + mask
    chances = np.exp(scores - scores.max(-1, keepdims=True))
    chances /= chances.sum(-1, keepdims=True)
    return np.einsum("bhts,bshd->bthd", chances, v).reshape(*q.shape[:2], -1)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("mask", [None, (1, 1, 6, 9), (2, 1, 1, 9), (6, 9), (2, 4, 6, 9)])
def test_attention(mask: tuple[int, ...] | None, groups: int, threads: int) -> None:
    q, k, v = _floats(2, 6, 4, 8), _floats(2, 9, groups, 8), _floats(2, 9, groups, 5)
    added = np.zeros((1, 1, 1, 1), np.float32) if mask is None else _floats(*mask) * 3
    inputs = [q, k, v] if mask is None else [q, k, v, added]
    (got,) = run_op("Attention", inputs, "AttentionParam", threads=threads, kv_cache=False)
    np.testing.assert_allclose(got, _attention(q, k, v, added, 8**-0.5), rtol=1e-5, atol=1e-6)
    (scaled,) = run_op("Attention", inputs, "AttentionParam", kv_cache=False, attnScale=0.25)
    np.testing.assert_allclose(scaled, _attention(q, k, v, added, 0.25), rtol=1e-5, atol=1e-6)


def test_attention_that_is_not_supported_is_refused() -> None:
    x = _floats(1, 2, 2, 4)
    with pytest.raises(UnsupportedError, match="kv_cache is true"):
        session_of("Attention", [x] * 3, "AttentionParam", {"kv_cache": True}, 1)
    with pytest.raises(ExecutionError, match="a divisor of 2"):
        run_op("Attention", [x, _floats(1, 2, 3, 4), x], "AttentionParam", kv_cache=False)
    with pytest.raises(ExecutionError, match="input 3 has shape"):
        run_op("Attention", [x, x, x, _floats(3, 2)], "AttentionParam", kv_cache=False)
