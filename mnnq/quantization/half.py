"""Half floats as storage: what fits, and what rounding costs."""

from __future__ import annotations

from typing import Any

import numpy as np

#: The largest half float.
MAX_HALF = 65504.0


def fits_half(values: Any) -> bool:
    """Whether all values are finite and within the range of half floats."""
    return not values.size or bool(max(values.max(), -values.min()) <= MAX_HALF)


def half_error(matrix: Any) -> tuple[float, float]:
    """Squared error and squared norm of rounding to half floats, a slice at a time."""
    flat = matrix.reshape(-1)
    error = power = 0.0
    for start in range(0, flat.size, 1 << 20):
        part = flat[start : start + (1 << 20)]
        rounded = np.clip(part, -MAX_HALF, MAX_HALF).astype(np.float16).astype(np.float32)
        error += float(np.square(part - rounded, dtype=np.float64).sum())
        power += float(np.square(part, dtype=np.float64).sum())
    return error, power
