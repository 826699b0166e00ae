"""Codes of a tensor that only functions of one element read, chosen for the values of the functions.

What HardSwish makes of anything below -3 is 0, LeakyReLU passes a tenth of the errors below 0: a range that
suits ``x`` best spends codes where ``f(x)`` needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mnnq import _native
from mnnq.ir.model import Op
from mnnq.quantization.offline.layout import COPIES
from mnnq.quantization.offline.products import EVEN
from mnnq.quantization.offline.tables import table_function

_Doubles = npt.NDArray[np.float64]
Function = Callable[[_Doubles], _Doubles]

#: Ends of ranges that are tried, as shares of the largest value on their side.
_LOW_ENDS = (*np.geomspace(1.0, 0.04, 16), 0.0)
_HIGH_ENDS = tuple(np.geomspace(1.0, 0.3, 14))

#: Factors around the best ends that are tried next.
_CLOSER = (0.94, 0.97, 1.0, 1.03, 1.06)


def functions_behind(
    names: Sequence[str], readers: Mapping[str, Sequence[Op]], outputs: Container[str]
) -> tuple[Function, ...]:
    """The functions that read tensors sharing their codes; empty if anything else reads one of them.

    Parameters
    ----------
    readers
        Operators that read a tensor.
    outputs
        Outputs of the model.
    """
    members = set(names)
    found: list[Function] = []
    for name in names:
        if name in outputs:
            return ()
        for op in readers.get(name, ()):
            even = op.type == "Scale" and name.endswith(EVEN)
            function = _evened if even else pointwise(op)
            if function is not None:
                found.append(function)
            elif op.type not in COPIES or not members.issuperset(op.outputs):
                return ()
    return tuple(found)


def pointwise(op: Op) -> Function | None:
    """The function of one element that an operator computes, or None; slopes per channel by their root mean square."""
    if op.type == "ReLU6":
        low, high = float(op.params.get("minValue", 0.0)), float(op.params.get("maxValue", 6.0))
        return _Clip(low, high)
    if op.type == "ReLU":
        return _Leaky(float(op.params.get("slope", 0.0)))
    if op.type == "PReLU":
        slopes = np.asarray(op.params.get("slope", ()), np.float64)
        return _Leaky(float(np.sqrt(np.square(slopes).mean()))) if slopes.size else None
    return table_function(op)


def _evened(x: _Doubles) -> _Doubles:
    """What is used of a tensor whose channels were evened out: all of it is between -1 and 1, what a function ignores below."""
    return np.maximum(x, -1.0)


@dataclass(frozen=True)
class _Clip:
    low: float
    high: float

    def __call__(self, x: _Doubles) -> _Doubles:
        return np.clip(x, self.low, self.high)


@dataclass(frozen=True)
class _Leaky:
    slope: float

    def __call__(self, x: _Doubles) -> _Doubles:
        return np.where(x < 0, self.slope * x, x)


def range_for(
    functions: Sequence[Function],
    values: _Doubles,
    counts: _Doubles,
    *,
    low_code: int,
    high_code: int,
    clipping: float,
) -> tuple[float, float]:
    """The range with the smallest ``sum counts (f(x) - f(x'))^2`` over all functions, where ``x'`` is what the codes keep of ``x``.

    Parameters
    ----------
    values, counts
        A histogram.
    clipping
        Weight of values beyond the codes.
    """
    wanted = [function(values) for function in functions]

    def cost(low: float, high: float) -> float:
        scale, zero, first, last = _native.activation_codes(
            low, high, symmetric=False, low_code=low_code, high_code=high_code
        )
        grid = (np.arange(first, last + 1) - zero) * np.float64(scale)
        exact = np.rint(values / scale) + zero
        index = np.clip(exact, first, last).astype(np.intp) - first
        weight = np.where((exact < first) | (exact > last), clipping * counts, counts)
        return sum(
            float(np.square(f(grid)[index] - y) @ weight) for f, y in zip(functions, wanted, strict=True)
        )

    bottom, top = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    ends = [(bottom * low, top * high) for low in _LOW_ENDS for high in _HIGH_ENDS]
    best = min((end for end in ends if end[1] > end[0]), key=lambda end: cost(*end))
    closer = [(best[0] * low, best[1] * high) for low in _CLOSER for high in _CLOSER]
    return min(closer, key=lambda end: cost(*end))
