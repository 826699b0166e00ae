"""A quantized model beside its float model, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.ir.model import Model
from mnnq.quantization.offline.calibration import checked_feeds, open_session
from mnnq.quantization.offline.dataset import Feeds


@dataclass
class Agreement:
    """Sums over samples that say how two versions of a tensor agree."""

    signal: float = 0.0
    other: float = 0.0
    cross: float = 0.0
    noise: float = 0.0

    def add(self, wanted: npt.NDArray[Any], got: npt.NDArray[Any]) -> None:
        """Add a sample."""
        a = np.asarray(wanted, np.float32).ravel()
        b = np.asarray(got, np.float32).ravel()
        difference = a - b
        self.signal += float(np.dot(a, a))
        self.other += float(np.dot(b, b))
        self.cross += float(np.dot(a, b))
        self.noise += float(np.dot(difference, difference))

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two; 1 for two zeros."""
        if self.signal == self.other == 0:
            return 1.0
        return self.cross / max(float(np.sqrt(self.signal * self.other)), 1e-300)

    @property
    def sqnr_db(self) -> float:
        """``10 log10(sum y^2 / sum (y - y')^2)``; minus infinity when something is not finite."""
        if not np.isfinite(self.noise):
            return float("-inf")
        if self.noise == 0:
            return float("inf")
        return float(10 * np.log10(max(self.signal, 1e-300) / self.noise))


@dataclass
class Check:
    """How a quantized model agrees with its float model: outputs, and all tensors that both compute."""

    samples: int = 0
    outputs: dict[str, Agreement] = field(default_factory=dict)
    tensors: dict[str, Agreement] = field(default_factory=dict)


def compare_models(
    reference: Model, model: Model, samples: Sequence[Feeds], threads: int | None, *, tensors: bool = True
) -> Check:
    """Run both models on samples and compare.

    Parameters
    ----------
    reference, model
        Float model and quantized model with the same names.
    tensors
        Compare everything between, not only the outputs.
    """
    first, second = open_session(reference, threads), open_session(model, threads)
    check = Check()
    for index, sample in enumerate(samples):
        feeds = checked_feeds(first, sample, index)
        if tensors:
            seen: dict[str, npt.NDArray[Any]] = {}
            wanted = first.observe(feeds, lambda name, array, seen=seen: _keep(seen, name, array))  # type: ignore[misc]

            def compare(name: str, array: npt.NDArray[Any], seen: dict[str, Any] = seen) -> None:
                other = seen.pop(name, None)
                if other is not None and other.shape == array.shape and array.dtype == np.float32:
                    check.tensors.setdefault(name, Agreement()).add(other, array)

            got = second.observe(feeds, compare)
        else:
            wanted, got = first.run(None, feeds), second.run(None, feeds)
        for name, a, b in zip(reference.outputs, wanted, got, strict=True):
            check.outputs.setdefault(name, Agreement()).add(a, b)
        check.samples += 1
    return check


def _keep(seen: dict[str, npt.NDArray[Any]], name: str, array: npt.NDArray[Any]) -> None:
    if array.dtype == np.float32:
        seen[name] = array
