"""What became of the quantization that a source file carried."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ImportedLayer:
    """One operator of a converted model that has weights, or whose tensors the source quantizes.

    Attributes
    ----------
    name, type
        Of the MNN operator.
    reason
        Why it computes in float; None for operators on int8 codes.
    """

    name: str
    type: str
    reason: str | None

    @property
    def integer(self) -> bool:
        """Whether the operator computes on codes."""
        return self.reason is None


@dataclass(frozen=True)
class ImportReport:
    """The quantization of a source file in the converted model.

    Attributes
    ----------
    layers
        Operators with weights, in the order of the model.
    described
        Tensors that carry a scale and zero point of the source.
    rounded
        Quantizations of the source written as float arithmetic, with the reason.
    floats
        Operators of the source that quantize, with their numbers, where none has a native form: all are float arithmetic.
    """

    layers: tuple[ImportedLayer, ...]
    described: int
    rounded: tuple[tuple[str, str], ...]
    floats: tuple[tuple[str, int], ...] = ()

    @property
    def native(self) -> bool:
        """Whether the converted model has scales of the source."""
        return not self.floats

    @property
    def integer(self) -> tuple[ImportedLayer, ...]:
        """Layers that compute on int8 codes."""
        return tuple(layer for layer in self.layers if layer.integer)

    @property
    def left_float(self) -> tuple[ImportedLayer, ...]:
        """Layers that compute in float."""
        return tuple(layer for layer in self.layers if not layer.integer)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "int8": [layer.name for layer in self.integer],
            "float": [{"name": layer.name, "reason": layer.reason} for layer in self.left_float],
            "described": self.described,
            "rounded": [{"name": name, "reason": reason} for name, reason in self.rounded],
            "written_in_float": dict(self.floats),
        }

    def summary(self) -> list[str]:
        """Lines for people: how many layers are int8, which are not and why."""
        if not self.native:
            found = ", ".join(f"{count} {kind}" for kind, count in self.floats)
            return [
                f"quantization of the source ({found}): none of it has a native form; it is written in float operators, "
                "quantized weights as the floats they stand for"
            ]
        lines = [
            f"quantization of the source: {len(self.integer)} of {len(self.layers)} layers with weights are int8, "
            f"{self.described} tensors described"
        ]
        for reason, count in Counter(layer.reason or "" for layer in self.left_float).most_common():
            names = [layer.name for layer in self.left_float if layer.reason == reason]
            lines.append(f"float: {_some(names)} ({count}): {reason}")
        for reason, count in Counter(reason for _, reason in self.rounded).most_common():
            names = [name for name, why in self.rounded if why == reason]
            lines.append(f"rounded in float: {_some(names)} ({count}): {reason}")
        return lines


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
