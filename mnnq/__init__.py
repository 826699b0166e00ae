"""Compress trained neural networks after training, write real MNN files and run them fast on CPUs.

>>> import mnnq
>>> model = mnnq.load("model.onnx")  # doctest: +SKIP
>>> small = mnnq.quantize_weights(model, bits=4, block=64, method="hqq")  # doctest: +SKIP
>>> small.save("model.mnn")  # doctest: +SKIP

Names are loaded when first used, so that ``import mnnq`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnnq.api import load as load
    from mnnq.api import quantize as quantize
    from mnnq.api import quantize_weights as quantize_weights
    from mnnq.errors import ConfigError as ConfigError
    from mnnq.errors import ExecutionError as ExecutionError
    from mnnq.errors import FormatError as FormatError
    from mnnq.errors import InputError as InputError
    from mnnq.errors import MnnqError as MnnqError
    from mnnq.errors import ModelError as ModelError
    from mnnq.errors import QuantizationError as QuantizationError
    from mnnq.errors import UnsupportedError as UnsupportedError
    from mnnq.inspection import ModelInfo as ModelInfo
    from mnnq.inspection import inspect_model as inspect_model
    from mnnq.ir.model import Model as Model
    from mnnq.quantization.config import Override as Override
    from mnnq.quantization.config import WeightConfig as WeightConfig
    from mnnq.quantization.config import WeightMethod as WeightMethod
    from mnnq.quantization.offline.config import OfflineConfig as OfflineConfig
    from mnnq.quantization.offline.report import OfflineReport as OfflineReport
    from mnnq.quantization.offline.report import OfflineResult as OfflineResult
    from mnnq.quantization.params_file import ParamsFile as ParamsFile
    from mnnq.quantization.params_file import read_params as read_params
    from mnnq.quantization.weight import QuantizedModel as QuantizedModel
    from mnnq.report.compare import CompareResult as CompareResult
    from mnnq.report.compare import compare as compare
    from mnnq.report.quantization import LayerReport as LayerReport
    from mnnq.report.quantization import QuantizationReport as QuantizationReport
    from mnnq.runtime.session import InferenceSession as InferenceSession
    from mnnq.runtime.session import SessionOptions as SessionOptions
    from mnnq.verify import VerifyResult as VerifyResult

_HOME = {
    "load": "api",
    "quantize": "api",
    "quantize_weights": "api",
    "ConfigError": "errors",
    "ExecutionError": "errors",
    "FormatError": "errors",
    "InputError": "errors",
    "MnnqError": "errors",
    "ModelError": "errors",
    "QuantizationError": "errors",
    "UnsupportedError": "errors",
    "ModelInfo": "inspection",
    "inspect_model": "inspection",
    "Model": "ir.model",
    "Override": "quantization.config",
    "WeightConfig": "quantization.config",
    "WeightMethod": "quantization.config",
    "OfflineConfig": "quantization.offline.config",
    "OfflineReport": "quantization.offline.report",
    "OfflineResult": "quantization.offline.report",
    "ParamsFile": "quantization.params_file",
    "read_params": "quantization.params_file",
    "QuantizedModel": "quantization.weight",
    "CompareResult": "report.compare",
    "compare": "report.compare",
    "LayerReport": "report.quantization",
    "QuantizationReport": "report.quantization",
    "InferenceSession": "runtime.session",
    "SessionOptions": "runtime.session",
    "VerifyResult": "verify",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("mnnq._native").__version__
    if name in _HOME:
        return getattr(importlib.import_module(f"mnnq.{_HOME[name]}"), name)
    msg = f"module 'mnnq' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
