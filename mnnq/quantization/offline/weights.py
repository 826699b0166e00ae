"""Weights of convolutions as symmetric codes, one scale per output channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq import _native
from mnnq.errors import QuantizationError
from mnnq.ir.model import Op
from mnnq.quantization.offline.config import WeightRange
from mnnq.quantization.stored import describe, float_weights

_Floats = npt.NDArray[np.float32]


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


def quantize_weights(
    op: Op, method: WeightRange, limit: int, floor: _Floats | None = None, threads: int | None = None
) -> WeightError:
    """Replace the weights of an operator by codes of -limit to limit, in place; scales are at least `floor`.

    Raises
    ------
    QuantizationError
        A weight is not finite.
    """
    before = describe(op).size
    weights = np.require(float_weights(op), np.float32, ["C", "A"])
    try:
        found = _native.quantize_rows(weights, method=method.value, limit=limit, floor=floor, threads=threads)
    except QuantizationError as error:
        error.node = op.name
        raise
    store(op, found["codes"], found["scale"])
    return WeightError(before, weights.size + 4 * len(weights), found["error"], found["power"])


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
