"""What channels are multiplied by, and the weights around them by the inverse."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mnnq.ir.model import Op
from mnnq.quantization.offline.weights import bias_of
from mnnq.quantization.stored import float_weights

_Doubles = npt.NDArray[np.float64]

#: Ranges below this share of the largest one count as this much: what is almost always 0 may be larger in other samples.
_FLOOR = 1 / 64

#: Factors stay within this ratio of each other.
_LIMIT = 64.0

#: Shares of the unevenness of activations that may move into weights.
STRENGTHS = (0.25, 0.5, 0.75, 1.0)

#: Mean power of a channel as a share of its squared range.
_SPREAD = 0.1


def is_plain(op: Op) -> bool:
    """Float weights in one piece, or one group per channel."""
    common = op.params["common"]
    group = int(common.get("group", 1))
    dense = group == 1
    depthwise = op.type == "ConvolutionDepthwise" and group == int(common.get("outputCount", 0))
    return (
        op.params.get("quanParameter") is None
        and op.params.get("weight") is not None
        and (dense or depthwise)
    )


def plain_weights(op: Op) -> npt.NDArray[np.float32]:
    """Weights of a convolution as a float array of its own."""
    return np.array(float_weights(op), np.float32)


def columns(op: Op) -> _Doubles:
    """Largest weight of each input channel."""
    weights = np.abs(plain_weights(op)).astype(np.float64)
    common = op.params["common"]
    taps = int(common.get("kernelX", 1)) * int(common.get("kernelY", 1))
    if op.type == "ConvolutionDepthwise":
        return np.asarray(weights.reshape(weights.shape[0], -1).max(axis=1))
    return np.asarray(weights.reshape(weights.shape[0], -1, taps).max(axis=(0, 2)))


def factors(ranges: _Doubles, weights: _Doubles, strength: float = 0.5) -> _Doubles:
    """What each channel is divided by: ``range ** a / column ** (1 - a)``, of geometric mean 1 and bounded."""
    low = max(float(ranges.max(initial=0.0)) * _FLOOR, 1e-30)
    found = np.maximum(ranges, low) ** strength
    found /= np.maximum(weights, max(float(weights.max(initial=0.0)) * 1e-4, 1e-30)) ** (1 - strength)
    found /= np.exp(np.log(found).mean())
    return np.asarray(np.clip(found, 1 / _LIMIT, _LIMIT))


def scale_rows(op: Op, by: _Doubles) -> None:
    """Multiply the output channels of a convolution."""
    op.params["weight"] = (plain_weights(op) * by[:, None]).astype(np.float32)
    op.params["bias"] = (bias_of(op) * by).astype(np.float32)


def scale_columns(op: Op, by: _Doubles) -> None:
    """Multiply the weights of the input channels of a convolution."""
    weights = plain_weights(op)
    if op.type == "ConvolutionDepthwise":
        op.params["weight"] = (weights * by[:, None]).astype(np.float32)
        return
    shaped = weights.reshape(weights.shape[0], len(by), -1)
    op.params["weight"] = (shaped * by[None, :, None]).astype(np.float32).reshape(weights.shape)


def noise(op: Op, ranges: _Doubles, divisor: _Doubles) -> float:
    """Expected squared error at a convolution's output for an input divided by factors, per pixel, up to a constant.

    Codes of the input: the largest range sets the step, weights pass the error on. Codes of the weights: their error times the
    power of the input, taken for a fixed share of its squared range.
    """
    weights = plain_weights(op).astype(np.float64)
    reach = float((ranges / divisor).max(initial=0.0))
    if op.type == "ConvolutionDepthwise":
        power = np.square(weights).sum(axis=1)
        return reach**2 * float((power * divisor**2).sum())
    shaped = weights.reshape(weights.shape[0], len(divisor), -1) * divisor[None, :, None]
    inputs = (2 * reach / 255) ** 2 / 12 * float(np.square(shaped).sum())
    steps = np.abs(shaped).max(axis=(1, 2), keepdims=True, initial=0.0) / 127
    steps = np.where(steps > 0, steps, 1.0)
    lost = np.square(shaped - np.rint(shaped / steps) * steps).sum(axis=(0, 2))
    return inputs + _SPREAD * float(lost @ np.square(ranges / divisor))
