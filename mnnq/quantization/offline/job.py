"""The stages of an offline quantization in their order."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from mnnq.ir.model import Model
from mnnq.quantization.offline.config import OfflineConfig
from mnnq.quantization.offline.dataset import Dataset
from mnnq.quantization.offline.report import OfflineResult

#: Told how far a stage is: its name, units done, units in all.
Progress = Callable[[str, int, int], None]


@dataclass
class Calibration:
    """Statistics of a float model's tensors over a data set."""

    samples: int = 0
    histograms: dict[str, object] = field(default_factory=dict)


def calibrate(
    model: Model,
    dataset: Dataset,
    config: OfflineConfig | None = None,
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Run the float model over the data once and collect the statistics that every range method needs."""
    raise NotImplementedError


def quantize_calibrated(
    model: Model,
    calibration: Calibration,
    dataset: Dataset,
    config: OfflineConfig | None = None,
    *,
    progress: Progress | None = None,
) -> OfflineResult:
    """Quantize with statistics that are there already; the data serves bias correction and the check."""
    raise NotImplementedError


def quantize_offline(
    model: Model,
    dataset: Dataset,
    config: OfflineConfig | None = None,
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> OfflineResult:
    """Quantize a float model to static int8; the model given is not changed."""
    config = config or OfflineConfig()
    found = calibrate(model, dataset, config, executor=executor, progress=progress)
    return quantize_calibrated(model, found, dataset, config, progress=progress)
