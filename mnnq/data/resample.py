"""MNN's way to resize: bilinear with aligned corners, bit for bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Pixels of a row whose positions MNN computes from one start, adding the step each time.
_TILE = 512

_F32 = np.float32


def corner_aligned(
    pixels: npt.NDArray[np.uint8], height: int, width: int, center_crop: tuple[float, float] = (1.0, 1.0)
) -> npt.NDArray[np.uint8]:
    """Resize as MNN's quantization tool does.

    Pixel ``(y, x)`` of the result is sampled at ``(y (H - 1) / (height - 1), x (W - 1) / (width - 1))`` from the
    cropped source of ``H x W``: the corner pixels of both lie on each other, unlike in Pillow, OpenCV and PyTorch,
    which align the outer edges. The four neighbours are mixed bilinearly in single precision, and the fraction is
    cut off. Nothing is smoothed, so that shrinking much skips pixels.

    The positions in a row are sums of steps in single precision, as in MNN, because cutting off makes their last
    bit count. Compared with the wheel of MNN 3.6.1: equal without a crop; with a crop a few values differ by 1.

    Parameters
    ----------
    pixels
        ``[H, W, channels]``.
    center_crop
        Shares of height and width that are kept, from the middle.

    Returns
    -------
    ``[height, width, channels]``.
    """
    top, step_y = _span(pixels.shape[0], height, center_crop[0])
    left, step_x = _span(pixels.shape[1], width, center_crop[1])
    y = np.arange(height, dtype=_F32) * step_y + _F32(top)
    x = _row_positions(width, step_x, _F32(left))
    return _mix(pixels, y, x)


def _span(length: int, wanted: int, share: float) -> tuple[int, np.float32]:
    """Start of the crop, and the step between samples."""
    kept = max(1, int(_F32(length) * _F32(share)))
    step = _F32(1) / _F32(wanted - 1) * _F32(kept - 1) if wanted > 1 else _F32(0)
    return (length - kept) // 2, step


def _row_positions(count: int, step: np.float32, start: np.float32) -> npt.NDArray[np.float32]:
    out = np.empty(count, _F32)
    for first in range(0, count, _TILE):
        n = min(_TILE, count - first)
        begin, end = _F32(first) * step + start, _F32(first + n) * step + start
        steps = np.full(n, (end - begin) / _F32(n), _F32)
        steps[0] = begin
        out[first : first + n] = np.add.accumulate(steps, dtype=_F32)
    return out


def _mix(
    pixels: npt.NDArray[np.uint8], y: npt.NDArray[np.float32], x: npt.NDArray[np.float32]
) -> npt.NDArray[np.uint8]:
    y, x = np.clip(y, 0, pixels.shape[0] - 1), np.clip(x, 0, pixels.shape[1] - 1)
    top, left = y.astype(np.intp), x.astype(np.intp)
    bottom, right = np.ceil(y).astype(np.intp), np.ceil(x).astype(np.intp)
    fy, fx = (y - top.astype(_F32))[:, None], (x - left.astype(_F32))[None, :]
    one = _F32(1)
    weights = ((one - fx) * (one - fy), fx * (one - fy), fy * (one - fx), fx * fy)
    out = np.empty((len(y), len(x), pixels.shape[2]), np.uint8)
    for channel in range(pixels.shape[2]):  # planes are faster than short vectors of channels
        upper, lower = (pixels[rows, :, channel].astype(_F32) for rows in (top, bottom))
        value = weights[0] * upper.take(left, axis=1)
        value += weights[1] * upper.take(right, axis=1)
        value += weights[2] * lower.take(left, axis=1)
        value += weights[3] * lower.take(right, axis=1)
        out[:, :, channel] = np.clip(value, 0, 255, out=value)
    return out
