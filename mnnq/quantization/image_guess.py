"""Images for a model that says nothing of its inputs but their shape: whether their values are of the order of 1.

Where normalizations have gone into the first convolution, its biases are about as large as what it makes of real inputs: on
trained networks with inputs of the order of 1 the ratio of the two on noise from -1 to 1 lay between 0.3 and 15. A network far
from that takes other inputs (raw bytes) or was trained without normalizations; nothing is made up for it. A factor of 2 in
the range of made-up images changed little of what they are good for.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mnnq.errors import MnnqError
from mnnq.ir.model import Model, Op
from mnnq.quantization.generated import images
from mnnq.quantization.stored import Storage, describe, float_weights
from mnnq.runtime.session import InferenceSession
from mnnq.writer.to_mnn import to_bytes

#: Range that is taken for granted where the first convolution allows it.
RANGE = (-1.0, 1.0)

#: Ranges of the pictures that a fit is judged on, because the true one is not known, and how many there are of each.
JUDGE_RANGES = ((-1.0, 1.0), (-2.0, 2.0), (0.0, 1.0))
JUDGES = 4

#: Ratio of biases to outputs of the first convolution on noise of that range.
_LEAST, _MOST = 0.2, 20.0

#: Height and width that are tried where the model leaves them open: pictures, then lines of text.
_SIZES = ((224, 224), (48, 320), (32, 320))

#: Most positions of a kernel that outputs are computed for.
_MOST_TAPS = 128


def guess_images(model: Model) -> tuple[str, tuple[int, ...]] | None:
    """Name and shape of the image input of a model whose values are of the order of 1; None if it is not known to have one."""
    inputs = [op for op in model.ops if op.type == "Input"]
    if len(inputs) != 1 or inputs[0].params.get("dtype", "DT_FLOAT") != "DT_FLOAT":
        return None
    op = inputs[0]
    dims = tuple(int(n) for n in op.params.get("dims", ()))
    planar = op.params.get("dformat", "NCHW") == "NCHW"
    if len(dims) != 4 or not planar or dims[1] not in (1, 3):
        return None
    first = _first_convolution(model, op.outputs[0])
    if first is None or not _LEAST <= _ratio(first, dims[1]) <= _MOST:
        return None
    for height, width in _SIZES:
        shape = (
            max(dims[0], 1),
            dims[1],
            *(n if n > 0 else m for n, m in zip(dims[2:], (height, width), strict=True)),
        )
        if min(dims[2:]) > 0 or _runs(model, op.outputs[0], shape):
            return op.outputs[0], shape
    return None


def _first_convolution(model: Model, name: str) -> Op | None:
    """The convolution that reads the input, if nothing else does."""
    while True:
        readers = [op for op in model.ops if name in op.inputs and op.type != "Shape"]
        if len(readers) != 1:
            return None
        (op,) = readers
        if op.type == "Convolution" and describe(op).storage in (Storage.FLOAT, Storage.HALF):
            return op
        if op.type != "ConvertTensor":
            return None
        name = op.outputs[0]


def _ratio(op: Op, channels: int) -> float:
    """Median bias by the median deviation of outputs on noise of `RANGE`, over the channels that are not dead; 0 without biases."""
    weights = np.asarray(float_weights(op), np.float64)
    common = op.params["common"]
    kernel = int(common.get("kernelY", 1)), int(common.get("kernelX", 1))
    biases = np.abs(np.asarray(op.params.get("bias", ()), np.float64))
    taps = channels * kernel[0] * kernel[1]
    if int(common.get("group", 1)) != 1 or weights.shape[1] != taps or len(biases) != len(weights):
        return 0.0
    if not (np.isfinite(weights).all() and np.isfinite(biases).all()):
        return 0.0
    alive = np.abs(weights).max(axis=1) > 1e-3 * np.abs(weights).max()
    if taps > _MOST_TAPS * channels or not alive.any():
        return 0.0
    noise = np.concatenate(images((1, channels, 64, 64), 8, *RANGE, seed=0))
    deviation = float(np.median(np.std(weights[alive] @ _windows(noise, kernel), axis=1)))
    return float(np.median(biases[alive])) / deviation if deviation > 0 else 0.0


def _windows(x: npt.NDArray[np.float32], kernel: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Every seventh window of images ``[N, C, H, W]``: ``[C * kh * kw, windows]``."""
    views = np.lib.stride_tricks.sliding_window_view(x, kernel, (2, 3))
    return np.asarray(
        views.transpose(1, 4, 5, 0, 2, 3).reshape(x.shape[1] * kernel[0] * kernel[1], -1)[:, ::7]
    )


def _runs(model: Model, name: str, shape: tuple[int, ...]) -> bool:
    try:
        InferenceSession(to_bytes(model)).run(None, {name: np.zeros(shape, np.float32)})
    except MnnqError:
        return False
    return True
