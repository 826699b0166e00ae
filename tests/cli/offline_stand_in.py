"""Takes the place of the offline quantizer, so that the commands can be tested without it."""

from __future__ import annotations

import sys
import types
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

from mnnq.api import quantize_weights
from mnnq.ir.model import Model


@dataclass(frozen=True)
class OfflineConfig:
    """The fields that the commands set."""

    feature_method: str = "mse"
    weight_method: str = "search"
    symmetric: bool = False
    compat: bool = False
    feature_clamp: int = 127
    weight_clamp: int = 127
    bits: int = 8
    skip: tuple[str, ...] = ()
    bias_correction: bool = True
    equalization: bool = True
    keep_float: bool = True
    float_share: float = 0.12
    sequential: bool | None = None
    min_sqnr_db: float = 6.0
    check_samples: int = 16
    force: bool = False
    fix: bool = False
    threads: int | None = None


@dataclass(frozen=True)
class Layer:
    name: str
    op_type: str
    integer: bool
    reason: str | None = None
    weight_sqnr_db: float | None = 40.0
    cosine: float | None = 0.999
    sqnr_db: float | None = 30.0
    overflow: float | None = 0.001


@dataclass(frozen=True)
class Output:
    name: str
    cosine: float = 0.999
    sqnr_db: float = 30.0


@dataclass(frozen=True)
class Report:
    layers: tuple[Layer, ...]
    outputs: tuple[Output, ...] = ()
    fixed: tuple[str, ...] = ()
    integer_share: float = 1.0
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def integer(self) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.integer)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Result:
    model: Model
    report: Report


@dataclass
class StandIn:
    """What it was asked for; layers that are not skipped get 2-bit weights in place of int8."""

    calls: list[tuple[OfflineConfig, list[Mapping[str, Any]]]] = field(default_factory=list)

    def calibrate(self, model: Model, dataset: Collection[Any], config: Any, *, progress: Any = None) -> str:
        if progress is not None:
            progress("calibrating", len(dataset), len(dataset))
        return "statistics"

    def quantize_calibrated(
        self, model: Model, found: str, dataset: Collection[Any], config: Any, *, progress: Any = None
    ) -> Result:
        assert found == "statistics"
        self.calls.append((config, list(dataset)))
        small = quantize_weights(model, bits=2, overrides=dict.fromkeys(config.skip, 0))
        layers = tuple(
            Layer(entry.name, entry.op_type, entry.quantized, None if entry.quantized else "skipped")
            for entry in small.report.layers
        )
        return Result(small, Report(layers, tuple(Output(name) for name in model.outputs)))

    def quantize_offline(
        self, model: Model, dataset: Collection[Any], config: Any, *, progress: Any = None
    ) -> Result:
        return self.quantize_calibrated(
            model, self.calibrate(model, dataset, config, progress=progress), dataset, config
        )


def install(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Put it in place of ``mnnq.quantization.offline``."""
    import mnnq.quantization

    stand_in = StandIn()
    module = types.ModuleType("mnnq.quantization.offline")
    module.__dict__.update(
        OfflineConfig=OfflineConfig,
        calibrate=stand_in.calibrate,
        quantize_calibrated=stand_in.quantize_calibrated,
        quantize_offline=stand_in.quantize_offline,
    )
    monkeypatch.setitem(sys.modules, "mnnq.quantization.offline", module)
    monkeypatch.setattr(mnnq.quantization, "offline", module, raising=False)
    return stand_in
