"""Compression parameter files: what MNN's converter reads with ``--compressionParamsFile``.

Two uses share the format: a strategy (bits, block and scheme of each layer's weights) and full int8 (scales of
weights and activations found elsewhere, e.g. by training). JSON and binary protobuf hold the same messages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnnq.errors import ConfigError
from mnnq.files import write_atomically
from mnnq.quantization.config import Override, check_bits, check_block


@dataclass(frozen=True)
class TensorParams:
    """Affine int8 of an activation: ``real = (code - zero_point) * scale``."""

    name: str
    scales: tuple[float, ...]
    bits: int = 8
    zero_point: int = 0
    clamp_min: int = -128
    clamp_max: int = 127


@dataclass(frozen=True)
class WeightParams:
    """What a file says of a layer's weights; None where it says nothing.

    Attributes
    ----------
    bits
        0 float, 2 to 8 codes, 16 half floats.
    block
        Input channels per block; None per output channel (0 and -1 in the file).
    scales
        One per output channel: the full int8 use.
    has_block
        The file names a block, so that a `block` of None means "per output channel" and not "nothing said".
    """

    name: str = ""
    bits: int | None = None
    asymmetric: bool | None = None
    block: int | None = None
    has_block: bool = False
    scales: tuple[float, ...] = ()
    clamp_min: int = -128
    clamp_max: int = 127


@dataclass(frozen=True)
class ConvInfo:
    """Shape of a layer's kernel, for the reader of a file."""

    input_channel: int
    output_channel: int
    kernel_size: tuple[int, ...] = ()


@dataclass(frozen=True)
class LayerParams:
    """What a file says of one layer.

    Attributes
    ----------
    op_name, subgraph
        Operator of the converted model (strategy use).
    inputs, outputs
        Activations; ``outputs[0].name`` finds the layer in the full int8 use.
    method
        ``QAT``, ``OverflowAware`` or ``WinogradAware``.
    """

    op_name: str = ""
    subgraph: str = ""
    weight: WeightParams | None = None
    inputs: tuple[TensorParams, ...] = ()
    outputs: tuple[TensorParams, ...] = ()
    method: str = "QAT"
    conv: ConvInfo | None = None

    @property
    def is_int8(self) -> bool:
        """Whether it holds all that an int8 layer needs."""
        return bool(self.inputs and self.outputs and self.weight is not None and self.weight.scales)


@dataclass(frozen=True)
class ParamsFile:
    """A compression parameter file.

    Attributes
    ----------
    for_guide
        The file is a strategy only: activation scales in it are not applied.
    uuid
        Identifier that the converted model takes over.
    """

    layers: tuple[LayerParams, ...] = ()
    version: str = "3.6.1"
    uuid: str | None = None
    for_guide: bool = False
    path: Path | None = None

    @property
    def int8_layers(self) -> tuple[LayerParams, ...]:
        """Layers to make int8."""
        return () if self.for_guide else tuple(layer for layer in self.layers if layer.is_int8)

    def overrides(self) -> tuple[Override, ...]:
        """Return what the strategy says, as overrides of a `WeightConfig`.

        Layers of the full int8 use are not among them.
        """
        taken = {id(layer) for layer in self.int8_layers}
        result = []
        for layer in self.layers:
            if id(layer) in taken or layer.weight is None or not layer.op_name:
                continue
            changes: dict[str, Any] = {}
            if layer.weight.bits is not None:
                changes["bits"] = layer.weight.bits
            if layer.weight.asymmetric is not None:
                changes["symmetric"] = not layer.weight.asymmetric
            if layer.weight.has_block:
                changes["block"] = layer.weight.block
            result.append(Override(layer.op_name, changes, subgraph=layer.subgraph, exact=True))
        return tuple(result)

    def save(self, path: str | Path) -> None:
        """Write the file: JSON if its name ends in ``.json``, else binary protobuf."""
        path = Path(path)
        write_atomically(path, encode(self, text=path.suffix == ".json"))


def read_params(path: str | Path) -> ParamsFile:
    """Read a compression parameter file: JSON if its name ends in ``.json``, else binary protobuf.

    Raises
    ------
    ConfigError
        The file is damaged, has an unknown key, or a value that cannot be.
    OSError
        The file cannot be read.
    """
    path = Path(path)
    data = path.read_bytes()
    try:
        parsed = decode(data, text=path.suffix == ".json")
    except ConfigError as error:
        raise ConfigError(error.message, file=str(path), node=error.node, key=error.key) from error.__cause__
    return ParamsFile(parsed.layers, parsed.version, parsed.uuid, parsed.for_guide, path)


def decode(data: bytes, *, text: bool) -> ParamsFile:
    """Parse the content of a file; see `read_params`."""
    from google.protobuf import json_format, message

    from mnnq.quantization.params_schema import pipeline_class

    pipeline = pipeline_class()()
    try:
        if text:
            json_format.Parse(data.decode("utf-8"), pipeline)
        else:
            pipeline.ParseFromString(data)
    except (json_format.ParseError, message.DecodeError, UnicodeDecodeError) as error:
        kind = "JSON" if text else "binary"
        reason = " ".join(str(error).split())
        msg = f"not a {kind} compression parameter file: {reason}"
        raise ConfigError(msg) from error
    layers = []
    for algo in pipeline.algo:
        if algo.type != 0:
            msg = (
                "pruning (type PRUNE) is applied by the tool that trained the model; "
                "remove that entry: conversion has nothing to do for it"
            )
            raise ConfigError(msg, key="algo")
        layers += [_layer(entry) for entry in algo.quant_params.layer]
    if not pipeline.algo:
        msg = "it holds no quantization entry (key algo)"
        raise ConfigError(msg)
    uuid = pipeline.mnn_uuid if pipeline.HasField("mnn_uuid") and pipeline.mnn_uuid else None
    return ParamsFile(tuple(layers), pipeline.version or "0.0.0", uuid, bool(pipeline.for_guide))


def encode(params: ParamsFile, *, text: bool) -> bytes:
    """Return the content of a file; floats in JSON have the digits that bring back the same value."""
    from google.protobuf import json_format

    from mnnq.quantization.params_schema import pipeline_class

    pipeline = pipeline_class()(version=params.version)
    if params.uuid is not None:
        pipeline.mnn_uuid = params.uuid
    if params.for_guide:
        pipeline.for_guide = True
    quant = pipeline.algo.add(type=0).quant_params
    quant.round_mode = 1
    for layer in params.layers:
        _fill_layer(quant.layer.add(), layer)
    if text:
        content: str = json_format.MessageToJson(pipeline, indent=1)
        return f"{content}\n".encode()
    return bytes(pipeline.SerializeToString(deterministic=True))


def _layer(entry: Any) -> LayerParams:
    label = entry.op_name or (entry.output[0].name if entry.output else "")
    if len(entry.weight) > 1:
        msg = f"{len(entry.weight)} weight entries; a layer has one"
        raise ConfigError(msg, node=label, key="weight")
    if len(entry.output) > 1 or len(entry.input) > 1:
        msg = "more than one activation entry; a convolution has one input and one output"
        raise ConfigError(msg, node=label, key="output" if len(entry.output) > 1 else "input")
    method = ("QAT", "OverflowAware", "WinogradAware")[entry.method]
    if entry.HasField("wino_params") or method == "WinogradAware":
        msg = "Winograd-aware int8 layers are not supported; train without them"
        raise ConfigError(msg, node=label, key="winoParams")
    conv = None
    if entry.HasField("conv"):
        conv = ConvInfo(entry.conv.input_channel, entry.conv.output_channel, tuple(entry.conv.kernel_size))
    try:
        return LayerParams(
            op_name=entry.op_name,
            subgraph=entry.subgraph_name,
            weight=_weight(entry.weight[0]) if entry.weight else None,
            inputs=tuple(_tensor(item) for item in entry.input),
            outputs=tuple(_tensor(item) for item in entry.output),
            method=method,
            conv=conv,
        )
    except ConfigError as error:
        raise ConfigError(error.message, node=label, key=error.key) from None


def _weight(entry: Any) -> WeightParams:
    scales = tuple(entry.scales)
    _check_scales(scales)
    bits = check_bits(entry.bits) if entry.HasField("bits") else None
    if scales and (entry.clamp_min < -128 or entry.clamp_max > 127 or entry.clamp_min >= entry.clamp_max):
        msg = f"clamp {entry.clamp_min}..{entry.clamp_max} is not a range within -128..127"
        raise ConfigError(msg, key="clampMin")
    return WeightParams(
        name=entry.name,
        bits=bits,
        asymmetric=bool(entry.asymmetric) if entry.HasField("asymmetric") else None,
        block=check_block(entry.block_size) if entry.HasField("block_size") else None,
        has_block=entry.HasField("block_size"),
        scales=scales,
        clamp_min=entry.clamp_min,
        clamp_max=entry.clamp_max,
    )


def _tensor(entry: Any) -> TensorParams:
    scales = tuple(entry.scales)
    _check_scales(scales)
    if len(scales) != 1:
        msg = f"{len(scales)} scales of activation {entry.name!r}; it has exactly one"
        raise ConfigError(msg, key="scales")
    low, high, zero = entry.clamp_min, entry.clamp_max, entry.zero_point
    if not -128 <= low < high <= 127 or not -128 <= zero <= 127:
        msg = f"activation {entry.name!r}: clamp {low}..{high} and zero point {zero} must lie in -128..127"
        raise ConfigError(msg, key="clampMin")
    if entry.bits != 8:
        msg = f"activation {entry.name!r}: {entry.bits} bits; runtimes compute 8-bit activations only"
        raise ConfigError(msg, key="bits")
    return TensorParams(entry.name, scales, entry.bits, zero, low, high)


def _check_scales(scales: Sequence[float]) -> None:
    bad = next((scale for scale in scales if not (math.isfinite(scale) and scale > 0)), None)
    if bad is not None:
        msg = f"scale {bad!r} is not a positive finite number"
        raise ConfigError(msg, key="scales")


def _fill_layer(entry: Any, layer: LayerParams) -> None:
    for source, target in ((layer.inputs, entry.input), (layer.outputs, entry.output)):
        for item in source:
            target.add(
                name=item.name,
                bits=item.bits,
                scales=item.scales,
                zero_point=item.zero_point,
                clamp_min=item.clamp_min,
                clamp_max=item.clamp_max,
            )
    weight = layer.weight
    if weight is not None:
        message = entry.weight.add(name=weight.name)
        if weight.bits is not None:
            message.bits = weight.bits
        if weight.asymmetric is not None:
            message.asymmetric = weight.asymmetric
        if weight.has_block:
            message.block_size = -1 if weight.block is None else weight.block
        if weight.scales:
            message.scales.extend(weight.scales)
            message.clamp_min, message.clamp_max = weight.clamp_min, weight.clamp_max
    if layer.op_name:
        entry.op_name = layer.op_name
    if layer.subgraph:
        entry.subgraph_name = layer.subgraph
    if layer.method != "QAT":
        entry.method = {"OverflowAware": 1, "WinogradAware": 2}[layer.method]
    if layer.conv is not None:
        entry.conv.input_channel = layer.conv.input_channel
        entry.conv.output_channel = layer.conv.output_channel
        entry.conv.kernel_size.extend(layer.conv.kernel_size)
