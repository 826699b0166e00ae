"""The record of a weight quantization: one entry per layer, and totals."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer's weights.

    Attributes
    ----------
    name, subgraph
        Operator (or, for an embedding, constant) of the model, and the subgraph it is in ("" for none).
    op_type
        ``Convolution``, ``ConvolutionDepthwise``, ``Deconvolution``, ``DeconvolutionDepthwise``, ``Embedding``,
        or ``Const`` for a float constant that stays.
    shape
        Rows (output channels, or words of an embedding) and weights per row.
    bits
        2 to 8 for codes, 16 for half floats, 32 for floats.
    scheme
        ``"symmetric"`` or ``"asymmetric"``; None for floats.
    block_asked, block_used
        Input channels per block; None for one block per output channel.
    method
        How scales and codes were chosen; ``"kept"`` when they are those of the source file; None for floats.
    bytes_before, bytes_after
        Size of the weights with their scales, before (as the model was given) and after.
    sqnr_db, relative_rms
        Weight error: ``10 log10(sum w^2 / sum (w - w')^2)`` and ``sqrt`` of the inverse ratio, against the weights
        as given; None where nothing changed.
    reason
        Why the layer was not quantized as asked; None when it was.
    kernel
        Kernel width and height of a convolution, empty for others.
    output_error_before, output_error_after
        With calibration data: relative root mean square error of the layer's outputs on its inputs, means apart, with
        the weights that are chosen without data, and with those chosen. Where a method was chosen by it, the samples
        are others than those that the weights were fitted to.
    bias_error_before, bias_error_after
        With calibration data: relative root mean square error of the mean outputs before and after the correction of the
        bias.
    """

    name: str
    op_type: str
    shape: tuple[int, ...]
    bits: int
    scheme: str | None
    block_asked: int | None
    block_used: int | None
    method: str | None
    bytes_before: int
    bytes_after: int
    sqnr_db: float | None = None
    relative_rms: float | None = None
    reason: str | None = None
    subgraph: str = ""
    kernel: tuple[int, ...] = ()
    output_error_before: float | None = None
    output_error_after: float | None = None
    bias_error_before: float | None = None
    bias_error_after: float | None = None

    @property
    def channels(self) -> int:
        """Input channels of a convolution's output channel."""
        return self.shape[1] // math.prod(self.kernel)

    @property
    def quantized(self) -> bool:
        """Whether the weights are integer codes now."""
        return self.bits <= 8

    @property
    def label(self) -> str:
        """Name with the subgraph in front."""
        return f"{self.subgraph}/{self.name}" if self.subgraph else self.name


@dataclass(frozen=True)
class QuantizationReport:
    """What became of a model's weights.

    Attributes
    ----------
    layers
        One entry per layer that has weights, in the order of the model.
    notes
        What the user should know beyond single layers (one line each).
    samples
        Number of calibration samples; None without data.
    output_sqnr_db
        Signal to noise ratio of the model's outputs on the calibration samples against the float model; None without
        data.
    """

    layers: tuple[LayerReport, ...] = ()
    notes: tuple[str, ...] = field(default=())
    samples: int | None = None
    output_sqnr_db: float | None = None

    @property
    def bytes_before(self) -> int:
        """Bytes of all weights listed, before."""
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        """Bytes of all weights listed, after."""
        return sum(layer.bytes_after for layer in self.layers)

    @property
    def quantized(self) -> tuple[LayerReport, ...]:
        """Layers whose weights are integer codes now."""
        return tuple(layer for layer in self.layers if layer.quantized)

    @property
    def left_float(self) -> tuple[LayerReport, ...]:
        """Layers whose weights are floats or half floats now."""
        return tuple(layer for layer in self.layers if not layer.quantized)

    def layer(self, name: str) -> LayerReport:
        """Return the entry of a layer.

        Raises
        ------
        KeyError
            No layer has this name.
        """
        for layer in self.layers:
            if name in (layer.name, layer.label):
                return layer
        raise KeyError(name)

    def warnings(self) -> list[str]:
        """One line for each layer that was not quantized as asked, and for each note."""
        lines = [
            f"{layer.label} ({layer.op_type}, {layer.bytes_after} bytes): {layer.reason}"
            for layer in self.layers
            if layer.reason is not None
        ]
        return [*lines, *self.notes]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it; an error of zero has an `sqnr_db` of null."""
        layers = []
        for layer in self.layers:
            entry = asdict(layer)
            entry["sqnr_db"] = _finite(layer.sqnr_db)
            layers.append({**entry, "shape": list(layer.shape)})
        return {
            "layers": layers,
            "notes": list(self.notes),
            "samples": self.samples,
            "output_sqnr_db": _finite(self.output_sqnr_db),
            "totals": {
                "layers": len(self.layers),
                "quantized": len(self.quantized),
                "bytes_before": self.bytes_before,
                "bytes_after": self.bytes_after,
            },
        }


def _finite(value: float | None) -> float | None:
    """`value`, or None where it is not finite."""
    return value if value is not None and math.isfinite(value) else None
