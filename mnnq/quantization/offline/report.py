"""The record of an offline quantization: layers, tensors, outputs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from mnnq.ir.model import Model


@dataclass(frozen=True)
class OfflineLayer:
    """What became of one operator.

    Attributes
    ----------
    name, op_type
        The operator.
    integer
        Whether it computes on codes.
    reason
        Why it does not; None if it does.
    weight_sqnr_db
        Signal to noise ratio of its weights; None without weights or when they are float.
    cosine, sqnr_db
        Its output in the quantized model against the float model, over the samples checked: cosine of the angle, and
        ``10 log10(sum y^2 / sum (y - y')^2)``. The errors of all operators before it are included. None
        without a check, and for conversions of the layout.
    overflow
        Share of its output's values that lie beyond the range of its codes; None where the output has none.
    bias_shift
        Largest change of a bias by the correction, relative to the output's standard deviation; None without one.
    """

    name: str
    op_type: str
    integer: bool
    reason: str | None = None
    weight_sqnr_db: float | None = None
    cosine: float | None = None
    sqnr_db: float | None = None
    overflow: float | None = None
    bias_shift: float | None = None


@dataclass(frozen=True)
class OfflineTensor:
    """How a tensor is quantized: ``real = (code - zero) * scale``.

    Attributes
    ----------
    name
        The tensor.
    scale, zero, min, max
        Parameters of the codes.
    low, high
        Smallest and largest value seen.
    """

    name: str
    scale: float
    zero: int
    min: int
    max: int
    low: float
    high: float


@dataclass(frozen=True)
class OfflineOutput:
    """How an output of the quantized model compares with the float model's, over the samples checked."""

    name: str
    cosine: float
    sqnr_db: float


@dataclass(frozen=True)
class OfflineReport:
    """What an offline quantization did.

    Attributes
    ----------
    layers
        Every operator of the main graph that computes something, in order.
    tensors
        Every tensor that has codes.
    outputs
        The outputs; empty when the model was not checked.
    samples, checked
        Samples calibrated with, samples checked with.
    bytes_before, bytes_after
        Size of the weights.
    fixed
        Operators left float because they cause most of the noise, or because the check failed before.
    sequential
        Whether weights and biases were chosen layer by layer for the inputs of the int8 model.
    integer_share
        Share of the multiply-adds of layers with weights that run on codes, 0 to 1.
    notes
        What else the user should know, one line each.
    seconds
        Time of each stage.
    """

    layers: tuple[OfflineLayer, ...] = ()
    tensors: tuple[OfflineTensor, ...] = ()
    outputs: tuple[OfflineOutput, ...] = ()
    samples: int = 0
    checked: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    fixed: tuple[str, ...] = ()
    sequential: bool = False
    integer_share: float = 0.0
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def integer(self) -> tuple[OfflineLayer, ...]:
        """Operators that compute on codes."""
        return tuple(layer for layer in self.layers if layer.integer)

    @property
    def left_float(self) -> tuple[OfflineLayer, ...]:
        """Operators that compute in float."""
        return tuple(layer for layer in self.layers if not layer.integer)

    @property
    def sqnr_db(self) -> float | None:
        """The worst signal to noise ratio of an output, in dB; None when the model was not checked."""
        return min((output.sqnr_db for output in self.outputs), default=None)

    def layer(self, name: str) -> OfflineLayer:
        """Return the entry of an operator.

        Raises
        ------
        KeyError
            No operator has this name.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def worst(self, count: int = 5) -> tuple[OfflineLayer, ...]:
        """The operators on codes whose output is worst, worst first."""
        known = [layer for layer in self.integer if layer.sqnr_db is not None]
        return tuple(sorted(known, key=lambda layer: layer.sqnr_db or 0.0)[:count])

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it; infinite ratios are null."""
        found: dict[str, Any] = _plain(asdict(self))
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@dataclass(frozen=True)
class OfflineResult:
    """What `mnnq.quantize` returns.

    Attributes
    ----------
    model
        The model with integer layers, ready to be saved.
    report
        The record.
    """

    model: Model
    report: OfflineReport
