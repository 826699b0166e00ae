"""Bias correction without data: on images that are made up.

Natural images have spectra that fall like 1/f, colours that go together, and light and dark pictures. Noise of that kind
in the range of the model's input excites a network enough to see how far the means of its channels have moved: on
MobileNetV2 with 4-bit weights most of the loss is such a shift. It is no substitute for data: a network whose means have
hardly moved can become worse. So the correction is kept only if it brings the model's outputs on *other* made-up images
`MIN_GAIN_DB` nearer to the float model's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mnnq.errors import ConfigError
from mnnq.ir.model import Model
from mnnq.quantization.bias_correction import BiasReport, correct_bias, output_sqnr

#: Made-up images that biases are corrected on, and others that the result is judged on.
SAMPLES = 24
JUDGES = 8

#: Rectangles of a picture of `rectangles`.
RECTANGLES = 30

#: Gain of the outputs' signal to noise ratio that a correction must bring.
MIN_GAIN_DB = 6.0

#: Falling of the spectrum with frequency, and share of it that colours have in common.
_EXPONENT = 1.1
_COMMON, _OWN = 0.9, 0.35


@dataclass(frozen=True)
class GeneratedResult:
    """What a correction on made-up images came to.

    Attributes
    ----------
    report
        The shift of each layer.
    sqnr_before, sqnr_after
        Signal to noise ratio of the outputs on other made-up images, in dB.
    kept
        Whether the correction was kept.
    """

    report: BiasReport
    sqnr_before: float
    sqnr_after: float
    kept: bool


def images(
    shape: tuple[int, ...], count: int, low: float, high: float, seed: int
) -> list[npt.NDArray[np.float32]]:
    """Make noise with the spectrum of natural images.

    Parameters
    ----------
    shape
        ``[N, C, H, W]``.
    low, high
        Range of the values.
    seed
        The same seed makes the same images.
    """
    rng = np.random.default_rng(seed)
    height, width = shape[2:]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1 / max(height, width)
    made = []
    for _ in range(count):
        noise = _COMMON * rng.normal(size=(shape[0], 1, height, width)) + _OWN * rng.normal(size=shape)
        values = np.fft.irfft2(np.fft.rfft2(noise) / frequency**_EXPONENT, s=(height, width))
        values -= values.mean((2, 3), keepdims=True)
        values /= max(values.std(), 1e-12)
        light = rng.normal(0, 0.45, (shape[0], 1, 1, 1)) + rng.normal(0, 0.15, (*shape[:2], 1, 1))
        values = light + values * rng.uniform(0.35, 0.7)
        middle, half = (low + high) / 2, (high - low) / 2
        made.append(np.clip(middle + half * values, low, high).astype(np.float32))
    return made


def rectangles(
    shape: tuple[int, ...], count: int, low: float, high: float, seed: int
) -> list[npt.NDArray[np.float32]]:
    """Make pictures of overlapping plain rectangles with a little noise; arguments as for `images`."""
    rng = np.random.default_rng(seed)
    batch, channels, height, width = shape
    made = []
    for _ in range(count):
        image = np.empty(shape)
        image[:] = rng.uniform(low, high, (batch, channels, 1, 1))
        for _ in range(RECTANGLES):
            top, bottom = np.sort(rng.integers(0, height + 1, 2))
            left, right = np.sort(rng.integers(0, width + 1, 2))
            image[:, :, top:bottom, left:right] = rng.uniform(low, high, (batch, channels, 1, 1))
        image += rng.normal(0, 0.02 * (high - low), shape)
        made.append(np.clip(image, low, high).astype(np.float32))
    return made


def check_range(low: float, high: float) -> None:
    """Check a range of values.

    Raises
    ------
    ConfigError
        It is none.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        msg = f"{low:g} to {high:g} is no range"
        raise ConfigError(msg, key="generated_range")


def image_input(model: Model) -> tuple[str, tuple[int, ...]]:
    """Name and shape of the only input of a model that takes images; a varying batch is 1.

    Raises
    ------
    ConfigError
        The model takes something else.
    """
    inputs = [op for op in model.ops if op.type == "Input"]
    if len(inputs) == 1:
        op = inputs[0]
        dims = tuple(int(n) for n in op.params.get("dims", ()))
        shape = tuple(1 if i == 0 and n < 1 else n for i, n in enumerate(dims))
        planar = op.params.get("dformat", "NCHW") == "NCHW"
        if len(shape) == 4 and min(shape) > 0 and planar and op.params.get("dtype", "DT_FLOAT") == "DT_FLOAT":
            return op.outputs[0], shape
    msg = "images can be made up for models with one float input [N, C, H, W] of known size only; give real data"
    raise ConfigError(msg, key="generated_range")


def correct_on_generated(
    model: Model, reference: Model, low: float, high: float, *, threads: int | None = None, seed: int = 0
) -> GeneratedResult:
    """Correct the biases of a quantized model in place on made-up images, if that helps.

    Parameters
    ----------
    reference
        The float model.
    low, high
        Range of the input's values.

    Raises
    ------
    ConfigError
        The range is none, or the model does not take images.
    """
    check_range(low, high)
    name, shape = image_input(model)
    made = [{name: image} for image in images(shape, SAMPLES + JUDGES, low, high, seed)]
    fitted, judges = made[:SAMPLES], made[SAMPLES:]
    before = output_sqnr(model, reference, judges, threads=threads)
    biases = {id(op): op.params.get("bias") for op in model.ops}
    report = correct_bias(model, reference, fitted, threads=threads)
    after = output_sqnr(model, reference, judges, threads=threads)
    kept = after >= before + MIN_GAIN_DB
    if not kept:
        for op in model.ops:
            if biases[id(op)] is not None:
                op.params["bias"] = biases[id(op)]
            else:
                op.params.pop("bias", None)
    return GeneratedResult(report, before, after, kept)
