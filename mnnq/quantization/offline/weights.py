"""Weights of convolutions as symmetric codes, one scale per output channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq import _native
from mnnq.errors import QuantizationError
from mnnq.ir.model import Op
from mnnq.quantization.int8 import round_half_away
from mnnq.quantization.offline.config import WeightRange
from mnnq.quantization.stored import describe, float_weights

_Floats = npt.NDArray[np.float32]

#: Shares of the largest magnitude that the search tries as ranges.
_SHARES = np.linspace(1.0, 0.7, 31)

#: Rounds of the alternating method; MNN's tool makes 1000, all channels are stationary much earlier.
_ROUNDS = 300


@dataclass(frozen=True)
class WeightError:
    """What quantization did to an operator's weights."""

    bytes_before: int
    bytes_after: int
    error: float
    power: float

    @property
    def sqnr_db(self) -> float:
        """``10 log10(sum w^2 / sum (w - w')^2)``."""
        if self.error == 0:
            return float("inf")
        return float(10 * np.log10(max(self.power, 1e-300) / self.error))


def quantize_weights(op: Op, method: WeightRange, limit: int, floor: _Floats | None = None) -> WeightError:
    """Replace the weights of an operator by codes of -limit to limit, in place; scales are at least `floor`.

    Raises
    ------
    QuantizationError
        A weight is not finite.
    """
    before = describe(op).size
    weights = float_weights(op).astype(np.float32, copy=False)
    if not np.isfinite(weights).all():
        msg = "a weight is not finite"
        raise QuantizationError(msg, node=op.name)
    scales = weight_scales(weights, method, limit)
    if floor is not None:
        scales = np.maximum(scales, floor).astype(np.float32)
    codes = weight_codes(weights, scales, limit)
    store(op, codes, scales)
    return describe_error(weights, codes, scales, before)


def describe_error(
    weights: _Floats, codes: npt.NDArray[np.int8], scales: _Floats, bytes_before: int
) -> WeightError:
    """Compare codes ``[O, K]`` of scales ``[O]`` with the weights that they stand for."""
    wide = weights.astype(np.float64)
    error = float(np.square(wide - codes * scales[:, None].astype(np.float64)).sum())
    return WeightError(bytes_before, codes.size + 4 * scales.size, error, float(np.square(wide).sum()))


def store(op: Op, codes: npt.NDArray[np.int8], scales: _Floats) -> None:
    """Put codes and scales into an operator."""
    op.params["quanParameter"] = _native.encode_weights(codes, scales, None, 8)
    op.params.pop("weight", None)


def weight_codes(weights: _Floats, scales: _Floats, limit: int) -> npt.NDArray[np.int8]:
    """``clamp(round(w / scale), -limit, limit)``; channels of scale 0 have codes 0."""
    safe = np.where(scales > 0, scales, np.float32(1))
    codes = np.clip(round_half_away((weights / safe[:, None]).astype(np.float32)), -limit, limit)
    return np.where(scales[:, None] > 0, codes, 0).astype(np.int8)


def weight_scales(weights: _Floats, method: WeightRange, limit: int) -> _Floats:
    """The scale of each channel (row)."""
    largest = np.abs(weights).max(axis=1, initial=0.0)
    # A scale that underflows would erase the channel or divide by nothing.
    plain = np.where(largest / limit >= np.finfo(np.float32).tiny, largest / np.float32(limit), 0)
    plain = plain.astype(np.float32)
    if method is WeightRange.MAX_ABS:
        return plain
    if method is WeightRange.ADMM:
        return _alternate(weights, (largest / np.float32(1.25 * limit)).astype(np.float32), limit)
    return _search(weights, plain, limit)


def _search(weights: _Floats, plain: _Floats, limit: int) -> _Floats:
    """The share of the plain scale with the smallest squared error, per channel, and least squares from there."""
    best: _Floats = plain.copy()
    least = np.full(len(plain), np.inf)
    for share in _SHARES:
        scales = (plain * np.float32(share)).astype(np.float32)
        error = _error(weights, scales, limit)
        better = error < least
        best[better], least[better] = scales[better], error[better]
    refined = _least_squares(weights, best, limit)
    better = _error(weights, refined, limit) < least
    best[better] = refined[better]
    return best


def _error(weights: _Floats, scales: _Floats, limit: int) -> npt.NDArray[np.float64]:
    safe = np.where(scales > 0, scales, np.float32(1))[:, None]
    codes = np.clip(np.rint(weights / safe), -limit, limit)
    return np.asarray(np.square(weights - codes * safe).sum(axis=1, dtype=np.float64))


def _least_squares(weights: _Floats, scales: _Floats, limit: int) -> _Floats:
    safe = np.where(scales > 0, scales, np.float32(1))[:, None]
    codes = np.clip(np.rint(weights / safe), -limit, limit)
    cross = (codes * weights).sum(axis=1, dtype=np.float64)
    power = np.square(codes).sum(axis=1, dtype=np.float64)
    found = np.divide(cross, power, out=scales.astype(np.float64), where=power > 0)
    return np.asarray(found, np.float32)


def _alternate(weights: _Floats, scales: _Floats, limit: int) -> _Floats:
    for _ in range(_ROUNDS):
        found = _least_squares(weights, scales, limit)
        if np.array_equal(found, scales):
            break
        scales = found
    return scales


def bias_of(op: Op) -> _Floats:
    """The bias of a convolution; zeros when it has none."""
    count = int(op.params["common"]["outputCount"])
    bias = op.params.get("bias")
    found: Any = (
        np.zeros(count, np.float32) if bias is None or not len(bias) else np.asarray(bias, np.float32)
    )
    return np.array(found, np.float32)


def mean_error(op: Op, reference: Op, means: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean of what quantized weights take off a convolution's output: ``(W - W') E[x]``, borders ignored.

    Parameters
    ----------
    op, reference
        The operator with codes and with floats.
    means
        Mean of each input channel.
    """
    wanted = float_weights(reference).astype(np.float64)
    lost = wanted - float_weights(op).astype(np.float64)
    common = op.params["common"]
    taps = int(common.get("kernelX", 1)) * int(common.get("kernelY", 1))
    per_channel = lost.reshape(lost.shape[0], -1, taps).sum(axis=2)
    group = max(int(common.get("group", 1)), 1)
    if per_channel.shape[1] * group != means.size:
        group = means.size // max(per_channel.shape[1], 1)
    rows = lost.shape[0] // group
    inputs = means.reshape(group, -1)
    return np.concatenate([per_channel[g * rows : (g + 1) * rows] @ inputs[g] for g in range(group)])
