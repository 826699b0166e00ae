"""How far arrays are from their references: one definition for all comparisons."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mnnq import _native

#: Elements that are compared at once: they stay in cache, and BLAS starts no threads for so few.
_CHUNK = 1 << 13


@dataclass(frozen=True)
class OutputError:
    """How far one tensor is from the reference, over all samples.

    Attributes
    ----------
    name, shape
        The tensor.
    max_abs
        Largest ``|y - ref|``.
    relative
        ``max_abs / max(|ref|)``.
    cosine
        ``sum y ref / (|y| |ref|)``; 1 when both are zero.
    sqnr_db
        ``10 log10(sum ref^2 / sum (y - ref)^2)``; infinite when they are equal.
    problem
        What makes the tensor wrong whatever the numbers (shape, NaN), or None.
    """

    name: str
    shape: tuple[int, ...]
    max_abs: float
    relative: float
    cosine: float
    sqnr_db: float
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them: what is not finite becomes None."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "max_abs": finite(self.max_abs),
            "relative": finite(self.relative),
            "cosine": finite(self.cosine),
            "sqnr_db": finite(self.sqnr_db),
            "problem": self.problem,
        }


def finite(value: float) -> float | None:
    """The value, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None


def _flat(reference: npt.NDArray[Any], output: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Both as vectors in one order; that of their memory if they agree in it, which needs no copies."""
    first, second = (tuple(step // a.itemsize for step in a.strides) for a in (reference, output))
    order: Literal["K", "C"] = "K" if first == second else "C"
    return reference.ravel(order), output.ravel(order)


class ErrorSums:
    """The sums behind an `OutputError`, fed sample by sample; memory does not grow with them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._shape: tuple[int, ...] | None = None
        self._difference = self._peak = 0.0
        self._error = self._power = self._norm = self._dot = 0.0
        self._problem: tuple[str, tuple[int, ...]] | None = None

    def add(
        self,
        reference: npt.NDArray[Any],
        output: npt.NDArray[Any],
        codes: tuple[float, float] | None = None,
    ) -> None:
        """Compare one sample; after a problem was found further ones change nothing.

        `codes` are scale and zero point of an int8 output.
        """
        if self._problem is not None:
            return
        if self._shape is None:
            self._shape = reference.shape
        if reference.shape != output.shape:
            problem = f"shape {list(output.shape)}, the reference has {list(reference.shape)}"
            self._problem = problem, output.shape
            return
        refs, outs = _flat(reference, output)
        if refs.dtype == np.float32 and outs.dtype == (np.float32 if codes is None else np.int8):
            self._take(_native.difference_sums(refs, outs, *(codes or (1.0, 0.0))))
            return
        if codes is not None:
            outs = (outs.astype(np.float64) - codes[1]) * codes[0]
        for start in range(0, refs.size, _CHUNK):
            ref = refs[start : start + _CHUNK].astype(np.float64)
            out = outs[start : start + _CHUNK].astype(np.float64)
            if not np.isfinite(ref).all():
                self._take(False)
                return
            if not np.isfinite(out).all():
                self._take(None)
                return
            self._add(ref, out)

    def _take(self, found: tuple[float, float, float, float, float, float] | bool | None) -> None:
        """Add the sums of a sample; False: the reference is not finite, None: the output is not."""
        if not isinstance(found, tuple):
            shape = self._shape or ()
            problem = "NaN or infinity"
            if found is not None:
                problem = "the reference is not finite on these inputs; give others"
            self._problem = problem, shape
            return
        difference, peak, error, power, norm, dot = found
        self._difference, self._peak = max(self._difference, difference), max(self._peak, peak)
        self._error += error
        self._power += power
        self._norm += norm
        self._dot += dot

    def _add(self, ref: npt.NDArray[np.float64], out: npt.NDArray[np.float64]) -> None:
        difference = out - ref
        self._difference = max(self._difference, float(difference.max()), -float(difference.min()))
        self._peak = max(self._peak, float(ref.max()), -float(ref.min()))
        self._error += float(np.dot(difference, difference))
        self._power += float(np.dot(ref, ref))
        self._norm += float(np.dot(out, out))
        self._dot += float(np.dot(ref, out))

    def result(self) -> OutputError:
        """The error over the samples so far."""
        if self._problem is not None:
            problem, shape = self._problem
            return OutputError(self.name, shape, math.inf, math.inf, 0.0, -math.inf, problem)
        difference, peak, error, power = self._difference, self._peak, self._error, self._power
        relative = difference / peak if peak else (0.0 if difference == 0 else math.inf)
        both = power and self._norm
        cosine = self._dot / math.sqrt(power * self._norm) if both else float(power == self._norm)
        sqnr = math.inf if error == 0 else 10 * math.log10(power / error) if power else -math.inf
        return OutputError(self.name, self._shape or (), difference, relative, cosine, sqnr)
