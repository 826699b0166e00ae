"""Factors per input channel: strong inputs get finer weights, and what makes the inputs takes the factors back.

A few input channels that are much stronger than the rest (transformers have them) make errors of their weights count most, yet
all weights of a row share a grid. With factors ``t_k`` the layer reads ``x_k / t_k`` and its weights are ``w_k t_k``
(Lin et al. 2023): relative to the row's step, weights of strong inputs become larger and their errors smaller. Here

    t_k = 2 ** round(a log2(rms(x_k) / median rms))

powers of two, so that taking them back is exact to the bit in whatever makes the inputs: the scales, minima and biases of a
quantized convolution, the weights of a float one, or the gain and shift of a normalization; in between only ReLU, PReLU,
pooling and copies, which commute with positive factors. Every reader of the tensor must be a layer that is quantized in the
same step, and gets the factors. The exponent a is chosen by the output error of compensated weights on held-out samples, as
a sum over the readers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq import _native
from mnnq.ir.model import Op
from mnnq.quantization.calibrated import Inputs, decode

Doubles = npt.NDArray[np.float64]

#: Ratio of the strongest input's root mean square to the median one from which factors are tried.
UNEVEN = 8.0

#: Exponents that are tried.
EXPONENTS = (0.25, 0.5, 0.75)

#: Share of the squared output error that must be left at most for factors to be used.
GAIN = 0.9

#: Factors stay within 2 to the power of this and its inverse.
_LIMIT = 6

#: Rows of a layer that the choice is made with.
_ROWS = 64

#: Operators that commute with positive factors per channel, and those that only say how a tensor lies.
_COMMUTING = frozenset({"ConvertTensor", "Pooling", "PReLU", "ReLU"})
_LAYOUT = frozenset({"ConvertTensor", "Reshape", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class Scaling:
    """Factors of the inputs of some layers.

    Attributes
    ----------
    writer
        What makes the inputs, and is divided by the factors.
    factors
        One per input channel, powers of two.
    exponent
        The exponent a.
    """

    writer: Op
    factors: Doubles
    exponent: float


def find_writer(ops: Sequence[Op], outputs: Sequence[str], name: str, readers: Sequence[Op]) -> Op | None:
    """What makes a tensor and could take factors back; None where something else would see them.

    Parameters
    ----------
    name
        The tensor, read by `readers`.
    """
    makers = {made: op for op in ops for made in op.outputs}
    users: dict[str, list[Op]] = {}
    for op in ops:
        for used in dict.fromkeys(op.inputs):
            users.setdefault(used, []).append(op)
    if {id(op) for op in users.get(name, [])} != {id(op) for op in readers}:
        return None
    channels = {_channels(op) for op in readers}
    if len(channels) != 1 or None in channels:
        return None
    commuting = copies = True
    while name not in outputs:
        maker = makers.get(name)
        if maker is None or not maker.inputs or len(maker.outputs) != 1:
            return None
        count = int(maker.params.get("common", {}).get("outputCount", 0))
        if maker.type == "LayerNorm":
            gamma = np.asarray(maker.params.get("gamma", ()))
            return maker if copies and {gamma.size} == channels else None
        if maker.type in ("Convolution", "ConvolutionDepthwise"):
            plain = not maker.params["common"].get("relu6") and "symmetricQuan" not in maker.params
            fits = len(maker.inputs) == 1 and {count} == channels
            return maker if commuting and plain and fits else None
        commuting &= maker.type in _COMMUTING
        copies &= maker.type in _LAYOUT
        name = maker.inputs[0]
        if not (commuting or copies) or len(users.get(name, [])) != 1:
            return None
    return None


def _channels(op: Op) -> int | None:
    """Input channels of a dense convolution."""
    common = op.params.get("common", {})
    if op.type != "Convolution" or int(common.get("group", 1)) != 1 or "symmetricQuan" in op.params:
        return None
    return int(common.get("inputCount", 0)) or None


def choose_factors(
    inputs: Inputs, weights: Sequence[npt.NDArray[np.float32]], taps: int, options: Sequence[dict[str, Any]]
) -> tuple[Doubles, float] | None:
    """Choose factors for the inputs of some layers; None where none are worth it.

    Parameters
    ----------
    weights
        Weights ``[rows, channels * taps]`` of each layer.
    taps
        Size of the kernels.
    options
        Arguments of `_native.compensate_weights` for each layer.
    """
    power = _power(inputs.fitted, taps)
    root = np.sqrt(power)
    median = float(np.median(root))
    if median <= 0 or float(root.max()) < UNEVEN * median:
        return None
    judge = inputs.held_out or inputs.fitted
    parts = [weight[:: -(-len(weight) // _ROWS)] for weight in weights]

    def cost(factors: Doubles) -> float:
        fitted, judged = (scaled(statistics, factors, taps) for statistics in (inputs.fitted, judge))
        return sum(
            _error(np.ascontiguousarray(part * np.repeat(factors, taps), np.float32), fitted, judged, how)
            for part, how in zip(parts, options, strict=True)
        )

    best: tuple[Doubles, float] | None = None
    least = GAIN * cost(np.ones(len(power)))
    for exponent in EXPONENTS:
        strength = np.log2(np.maximum(root, 1e-6 * root.max()) / median)
        factors = np.exp2(np.clip(np.rint(exponent * strength), -_LIMIT, _LIMIT))
        found = cost(factors)
        if found < least:
            least, best = found, (factors, exponent)
    return best


def _error(
    weight: npt.NDArray[np.float32],
    fitted: _native.InputStatistics,
    judged: _native.InputStatistics,
    options: dict[str, Any],
) -> float:
    found = _native.compensate_weights(weight, fitted, **options)
    decoded = decode(found["codes"], found["scale"], found["min"], options["bits"])
    return float(_native.layer_output_error(weight, decoded, judged, threads=options["threads"])["total"])


def _power(statistics: _native.InputStatistics, taps: int) -> Doubles:
    """Mean square of each channel of the inputs."""
    _, columns, _, mean, second, _ = statistics.__getnewargs__()
    power = np.diagonal(second.reshape(columns, columns)) + np.square(mean)
    return np.asarray(power.reshape(-1, taps).mean(axis=1), np.float64)


def scaled(statistics: _native.InputStatistics, factors: Doubles, taps: int) -> _native.InputStatistics:
    """Statistics of inputs that are divided by factors."""
    groups, columns, count, mean, second, delta = statistics.__getnewargs__()
    by = np.repeat(factors, taps)
    both = np.outer(by, by).reshape(-1)
    change = None if delta is None else (delta[0] / by, delta[1] / both)
    return _native.InputStatistics(groups, columns, count, mean / by, second / both, change)


def scaled_inputs(inputs: Inputs, factors: Doubles, taps: int) -> Inputs:
    """The same for what is fitted and what is held out."""
    held_out = None if inputs.held_out is None else scaled(inputs.held_out, factors, taps)
    return Inputs(scaled(inputs.fitted, factors, taps), held_out)


def divide(writer: Op, factors: Doubles, restore: Callable[[npt.NDArray[np.float32]], None] | None) -> None:
    """Divide what an operator makes by factors per channel.

    Parameters
    ----------
    restore
        For a quantized convolution: writes its codes again with scales and minima times its argument, ``[rows, 1]``.
    """
    inverse = (1 / factors).astype(np.float32)
    keys = ("gamma", "beta") if writer.type == "LayerNorm" else ("bias",)
    for key in keys:
        values = np.asarray(writer.params.get(key, ()), np.float32)
        if values.size:
            writer.params[key] = values * inverse
    if writer.type == "LayerNorm":
        return
    if restore is not None:
        restore(inverse[:, None])
        return
    weight = np.asarray(writer.params["weight"], np.float32)
    writer.params["weight"] = (weight.reshape(len(inverse), -1) * inverse[:, None]).reshape(weight.shape)
