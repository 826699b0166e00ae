"""Fourier transforms that `mnnq.passes.expand_fourier` could not rewrite: what they lack."""

from __future__ import annotations

from mnnq.frontends.onnx.lowering import Lowering, Unsupported
from mnnq.frontends.onnx.registry import lowers
from mnnq.ir.graph import Node
from mnnq.passes.expand_fourier import MAX_LENGTH


@lowers("STFT")
def short_time_fourier(b: Lowering, node: Node) -> None:
    """Fourier transform of the frames of a signal, as a `Convolution` made before the conversion."""
    del b, node
    msg = (
        f"the step, the window and the frame length (at most {MAX_LENGTH}) must be constants that fit each other, "
        "and a one-sided transform needs a real signal"
    )
    raise Unsupported(msg)


@lowers("DFT")
def discrete_fourier(b: Lowering, node: Node) -> None:
    """Fourier transform along an axis, as a product with a constant matrix made before the conversion."""
    del b, node
    msg = (
        f"the length (at most {MAX_LENGTH}), the axis and the size along it must be known: give the input shapes; "
        "a one-sided transform must be a forward one of real values"
    )
    raise Unsupported(msg)
