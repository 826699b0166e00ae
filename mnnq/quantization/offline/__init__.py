"""Offline int8 quantization: calibration, ranges, int8 layers, checks.

`quantize_offline` does the whole job; `calibrate` and `quantize_calibrated` are its halves, so that many
configurations can be tried on one pass over the data.
"""

from mnnq.quantization.offline.calibration import Calibration, calibrate
from mnnq.quantization.offline.config import OfflineConfig, RangeMethod, WeightRange
from mnnq.quantization.offline.dataset import Dataset, Feeds
from mnnq.quantization.offline.job import quantize_calibrated, quantize_offline
from mnnq.quantization.offline.report import (
    OfflineLayer,
    OfflineOutput,
    OfflineReport,
    OfflineResult,
    OfflineTensor,
)

__all__ = [
    "Calibration",
    "Dataset",
    "Feeds",
    "OfflineConfig",
    "OfflineLayer",
    "OfflineOutput",
    "OfflineReport",
    "OfflineResult",
    "OfflineTensor",
    "RangeMethod",
    "WeightRange",
    "calibrate",
    "quantize_calibrated",
    "quantize_offline",
]
