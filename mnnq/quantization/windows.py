"""Geometry of convolutions: which inputs a tap of the kernel meets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.errors import FormatError, InputError
from mnnq.ir.model import Op


@dataclass(frozen=True)
class Windows:
    """Sliding windows of a convolution over its input.

    Attributes
    ----------
    kernel, stride, dilation
        Along height and width.
    group
        Groups of channels that do not meet.
    pads
        Top, left, bottom, right; None for the padding that keeps ``ceil(length / stride)`` outputs.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    group: int
    pads: tuple[int, int, int, int] | None

    @classmethod
    def of(cls, op: Op) -> Windows:
        """Return the windows of a ``Convolution`` or ``ConvolutionDepthwise``."""
        common: dict[str, Any] = op.params.get("common", {})

        def pair(key: str) -> tuple[int, int]:
            return int(common.get(f"{key}Y", 1)), int(common.get(f"{key}X", 1))

        y, x = int(common.get("padY", 0)), int(common.get("padX", 0))
        mode = str(common.get("padMode", "CAFFE"))
        listed = [int(n) for n in common.get("pads", ())] or [y, x, y, x]
        if len(listed) == 2:
            listed *= 2
        if len(listed) != 4:
            msg = f"{len(listed)} paddings, wanted 4"
            raise FormatError(msg, node=op.name, key="pads")
        pads: dict[str, tuple[int, int, int, int] | None] = {
            "SAME": None,
            "VALID": (0, 0, 0, 0),
            "CAFFE": (listed[0], listed[1], listed[2], listed[3]),
        }
        depthwise = op.type == "ConvolutionDepthwise"
        group = int(common.get("outputCount", 1)) if depthwise else int(common.get("group", 1))
        return cls(pair("kernel"), pair("stride"), pair("dilate"), max(group, 1), pads[mode])

    def axis(self, axis: int, length: int) -> tuple[int, int]:
        """Padding in front, and number of outputs, along height (0) or width (1) of an input of that length."""
        kernel, stride, dilation = self.kernel[axis], self.stride[axis], self.dilation[axis]
        extent = (kernel - 1) * dilation + 1
        if self.pads is None:
            outputs = -(-length // stride)
            return max(0, (outputs - 1) * stride + extent - length) // 2, outputs
        before, after = self.pads[axis], self.pads[axis + 2]
        return before, max(0, (length + before + after - extent) // stride + 1)

    def tap_sums(self, x: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float64], int]:
        """Sum what each tap of the kernel meets, padding as zeros.

        Parameters
        ----------
        x
            ``[N, C, H, W]``.

        Returns
        -------
        tuple
            ``[C, kh, kw]``, and the number of outputs per channel that it is the sum over.

        Raises
        ------
        InputError
            `x` is no batch of images.
        """
        if x.ndim != 4:
            msg = f"the input of a convolution has shape {list(x.shape)}, wanted [N, C, H, W]"
            raise InputError(msg)
        (top, rows), (left, columns) = self.axis(0, x.shape[2]), self.axis(1, x.shape[3])
        sums = np.zeros((x.shape[1], *self.kernel))
        for kx in range(self.kernel[1]):
            horizontal = _met(kx * self.dilation[1] - left, self.stride[1], columns, x.shape[3])
            # A line is short enough for single precision, which numpy sums in pairs and without conversion.
            lines = x[:, :, :, horizontal].sum(3).astype(np.float64)
            for ky in range(self.kernel[0]):
                vertical = _met(ky * self.dilation[0] - top, self.stride[0], rows, x.shape[2])
                sums[:, ky, kx] = lines[:, :, vertical].sum((0, 2))
        return sums, x.shape[0] * rows * columns


def _met(start: int, stride: int, outputs: int, length: int) -> slice:
    """Positions ``start + i * stride`` for i below `outputs` that lie inside an axis."""
    first = max(0, -(start // stride)) if start < 0 else 0
    stop = start + (outputs - 1) * stride + 1
    return slice(start + first * stride, max(0, min(stop, length)), stride)
