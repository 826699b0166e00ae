"""Calibration samples in the form that onnxruntime's quantizer reads; importing it needs onnxruntime."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader


class SampleReader(CalibrationDataReader):
    """Hands out samples one by one, once."""

    def __init__(self, samples: Iterable[dict[str, np.ndarray[Any, Any]]]) -> None:
        self._left = iter(samples)

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """The next sample; None behind the last."""
        return next(self._left, None)
