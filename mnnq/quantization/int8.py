"""Int8 layers from a compression parameter file that carries scales of weights and activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq import _native
from mnnq.errors import ConfigError, QuantizationError
from mnnq.ir.model import Model, Op
from mnnq.quantization.params_file import LayerParams, TensorParams, WeightParams
from mnnq.quantization.stored import describe, float_weights

#: Suffixes that conversion gives to a tensor whose name in the source model ends before them.
_SUFFIXES = ("", "__matmul_converted", "__before_tr")

_METHODS = {"QAT": "DEFAULT", "OverflowAware": "OVERFLOW_AWARE"}


def round_half_away(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Round to the nearest whole number, halves away from zero, in f32."""
    whole = np.trunc(values)
    away = (np.abs(values - whole) >= np.float32(0.5)).astype(np.float32)
    return np.asarray(whole + np.sign(values) * away, np.float32)


def annotate(op: Op, source: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    """Write into an int8 layer what readers need that do not look at `Model.tensor_quant`.

    Parameters
    ----------
    source, target
        The descriptions of input and output: scale, zero point, smallest and largest code.
    """
    op.params["quanParameter"]["scaleIn"] = source["scale"]
    op.params["quanParameter"]["scaleOut"] = target["scale"]
    op.params["symmetricQuan"] = {
        "method": "DEFAULT",
        "nbits": 8,
        "zeroPoint": int(source["zero"]),
        "outputZeroPoint": int(target["zero"]),
        "clampMin": int(target["min"]),
        "clampMax": int(target["max"]),
        "outputDataType": "DT_INT8",
    }


def find(model: Model, output: str) -> Op | None:
    """Find the convolution of the main graph that produces a tensor of the source model."""
    by_output = {
        op.outputs[0]: op
        for op in model.ops
        if op.type in ("Convolution", "ConvolutionDepthwise") and len(op.inputs) == 1
    }
    return next((by_output[output + s] for s in _SUFFIXES if output + s in by_output), None)


@dataclass(frozen=True)
class Int8Layer:
    """What making a layer int8 did to its weights: bytes before, squared error and squared norm."""

    bytes_before: int
    error: float
    power: float


def apply_int8(model: Model, layers: Iterable[LayerParams]) -> tuple[dict[int, Int8Layer], list[str]]:
    """Make layers int8 in place: codes by the given scales, activations described by `Model.tensor_quant`.

    Returns
    -------
    done
        What was done, by ``id`` of the operator.
    unmatched
        Output tensors of entries that no convolution produces.
    """
    done: dict[int, Int8Layer] = {}
    unmatched: list[str] = []
    for layer in layers:
        output = layer.outputs[0]
        op = find(model, output.name)
        if op is None:
            unmatched.append(output.name)
            continue
        assert layer.weight is not None
        done[id(op)] = _make_int8(op, layer.weight, layer.inputs[0], output, layer.method)
        for name, info in ((op.inputs[0], layer.inputs[0]), (op.outputs[0], output)):
            model.tensor_quant.setdefault(name, _tensor_quant(info))
    return done, unmatched


def _make_int8(
    op: Op, weight: WeightParams, source: TensorParams, output: TensorParams, method: str
) -> Int8Layer:
    before = describe(op).size
    values = float_weights(op).astype(np.float32, copy=False)
    scales = np.asarray(weight.scales, np.float32)
    if scales.size == 1:
        scales = np.repeat(scales, values.shape[0])
    if scales.size != values.shape[0]:
        msg = f"{scales.size} weight scales for {values.shape[0]} output channels"
        raise ConfigError(msg, node=op.name, key="scales")
    if weight.bits not in (None, 8):
        msg = f"int8 weights of {weight.bits} bits: runtimes do not compute them; use 8"
        raise ConfigError(msg, node=op.name, key="bits")
    ratio = values / scales[:, None]
    if not np.isfinite(ratio).all():
        msg = "a weight is not finite, or too large for its scale"
        raise QuantizationError(msg, node=op.name)
    codes = np.clip(round_half_away(ratio), weight.clamp_min, weight.clamp_max).astype(np.int8)
    quant = _native.encode_weights(codes, scales, None, 8)
    quant["scaleIn"], quant["scaleOut"] = source.scales[0], output.scales[0]
    op.params["quanParameter"] = quant
    op.params["symmetricQuan"] = {
        "method": _METHODS[method],
        "nbits": output.bits,
        "zeroPoint": source.zero_point,
        "outputZeroPoint": output.zero_point,
        "clampMin": output.clamp_min,
        "clampMax": output.clamp_max,
        "outputDataType": "DT_INT8",
    }
    op.params.pop("weight", None)
    wide = values.astype(np.float64)
    error = np.square(wide - codes * scales[:, None].astype(np.float64)).sum()
    return Int8Layer(before, float(error), float(np.square(wide).sum()))


def _tensor_quant(info: TensorParams) -> dict[str, object]:
    return {
        "scale": info.scales[0],
        "zero": float(info.zero_point),
        "min": float(info.clamp_min),
        "max": float(info.clamp_max),
        "type": "DT_INT8",
    }
