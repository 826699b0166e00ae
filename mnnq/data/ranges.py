"""Whether the values of the data can be those that a network was trained on.

The first convolution gives it away. When its batch normalization was folded, as it usually was, its biases are of the
size of what it computes from training data: ``b' = beta - gamma mean / deviation`` beside a signal of deviation
``gamma``. So per output channel the ratio of the deviation of ``w * x`` over the data to ``|b'|`` is near 1 (0.1 to 3 in
networks measured), near 255 times that when raw pixels are given to a network that wants them scaled, and below
a hundredth in the opposite case. The median over channels is judged.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.data.dataset import Feeds
from mnnq.data.inputs import InputSpec, input_specs
from mnnq.errors import MnnqError
from mnnq.ir.model import Model, Op
from mnnq.quantization.stored import float_weights

#: Raw pixels whose signal is more than this many times the bias are suspicious.
LARGE = 8.0

#: A signal smaller than this share of the bias is suspicious, whatever the values.
SMALL = 0.02

#: Whole numbers, none negative, up to this at least: they look like raw pixels.
_PIXELS = 64.0

#: Patches of a sample that are multiplied with the weights.
_PATCHES = 1024


def range_warnings(model: Model, dataset: Collection[Feeds], *, count: int = 4) -> tuple[str, ...]:
    """Say what is suspicious about the values of the first samples.

    * All values of an input are the same in all samples.
    * They look like raw pixels (whole numbers, 0 to 255) and the first convolution wants smaller ones.
    * The first convolution hardly reacts to them beside its biases.

    The last two need an input that goes into an ordinary convolution with biases; networks trained without batch
    normalization have small biases, which is why large values that are not raw pixels are not complained about.

    Parameters
    ----------
    model
        The float model.
    count
        Samples to look at.
    """
    samples = list(islice(iter(dataset), count))
    found = []
    for spec in input_specs(model):
        arrays = [np.asarray(feeds[spec.name]) for feeds in samples]
        if spec.dtype not in ("float32", "float16") or not arrays or not arrays[0].size:
            continue
        low, high = min(float(a.min()) for a in arrays), max(float(a.max()) for a in arrays)
        if low == high and arrays[0].size > 1:
            found.append(f"input {spec.name!r}: all values are {low:g}, in every sample")
            continue
        layer = _first_convolution(model, spec.name)
        if layer is None or spec.image_axis is None:
            continue
        ratio = _signal_to_bias(layer, arrays, spec)
        if ratio is None:
            continue
        whole = low >= 0 and high >= _PIXELS and all((a == np.rint(a)).all() for a in arrays)
        if whole and ratio > LARGE:
            found.append(
                f"input {spec.name!r}: the values are whole numbers from {low:g} to {high:g}, like raw pixels, but the "
                f"first convolution {layer.name!r} seems to want smaller ones (they outweigh its biases {ratio:.0f} "
                "times); check mean and scale"
            )
        elif ratio < SMALL:
            found.append(
                f"input {spec.name!r}: the values ({low:.3g} to {high:.3g}) hardly matter beside the biases of the first "
                f"convolution {layer.name!r} ({100 * ratio:.2g} % of them); check mean and scale"
            )
    return tuple(found)


def _first_convolution(model: Model, name: str) -> Op | None:
    """The only reader of an input, when it is an ordinary convolution with stored weights."""
    for _ in range(len(model.ops)):
        readers = [op for op in model.ops if name in op.inputs]
        if len(readers) != 1:
            return None
        (op,) = readers
        if op.type == "ConvertTensor":
            name = op.outputs[0]
            continue
        plain = (
            op.type == "Convolution" and len(op.inputs) == 1 and op.params["common"].get("group", 1) in (0, 1)
        )
        return op if plain else None
    return None


def _signal_to_bias(op: Op, arrays: list[npt.NDArray[Any]], spec: InputSpec) -> float | None:
    """Median over channels of the deviation of ``w * x`` relative to the bias; None when it cannot be told."""
    common = op.params["common"]
    bias = op.params.get("bias")
    if bias is None or spec.image_axis is None:
        return None
    try:
        weights = np.asarray(float_weights(op), np.float32)
    except MnnqError:
        return None
    outputs = int(common["outputCount"])
    kernel = int(common.get("kernelY", 1)), int(common.get("kernelX", 1))
    weights = weights.reshape(outputs, -1)
    values = []
    generator = np.random.default_rng(0)
    for array in arrays:
        planes = array if spec.image_axis == 1 else array.transpose(0, 3, 1, 2)
        if planes.shape[2] < kernel[0] or planes.shape[3] < kernel[1]:
            return None
        if planes.shape[1] * kernel[0] * kernel[1] != weights.shape[1]:
            return None
        windows = np.lib.stride_tricks.sliding_window_view(planes[0], kernel, axis=(1, 2))
        rows = generator.integers(0, windows.shape[1], _PATCHES)
        columns = generator.integers(0, windows.shape[2], _PATCHES)
        patches = windows[:, rows, columns].transpose(1, 0, 2, 3).reshape(_PATCHES, -1)
        values.append(patches.astype(np.float32) @ weights.T)
    deviation = np.concatenate(values).std(0)
    size = np.abs(np.asarray(bias, np.float32))
    alive = (size > 1e-3 * size.max()) & (np.abs(weights).max(1) > 1e-3 * np.abs(weights).max())
    if not alive.any():
        return None
    return float(np.median(deviation[alive] / size[alive]))
