"""The protobuf messages of MNN's compression parameter files, described in code.

Package ``MNN.Compression``, proto2. Fields that the original marks required are optional here: what reads a
file says itself what it misses, and hand-written files leave out what nothing uses.
"""

from __future__ import annotations

import functools
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "MNN.Compression"

#: Enumerations: name -> (key, number) pairs.
_ENUMS: dict[str, tuple[tuple[str, int], ...]] = {
    "CompressionAlgo.CompressionType": (("QUANTIZE", 0), ("PRUNE", 1)),
    "QuantizeParams.RoundMode": (
        ("ROUND_TOWARDS_ZERO", 0),
        ("ROUND_AWAY_FROM_ZERO", 1),
        ("ROUND_HALF_TO_EVEN", 2),
    ),
    "LayerQuantizeParams.QuantMethod": (("QAT", 0), ("OverflowAware", 1), ("WinogradAware", 2)),
    "PruneParams.PruneType": (("RANDOM", 0), ("SIMD_OC", 1), ("FILTER", 2)),
}

#: Messages: name -> (field, number, type, default); a type is a scalar, a message or an enumeration, with
#: ``*`` in front when repeated.
_MESSAGES: dict[str, tuple[tuple[str, int, str, str | None], ...]] = {
    "Pipeline": (
        ("version", 1, "string", None),
        ("algo", 2, "*CompressionAlgo", None),
        ("mnn_uuid", 3, "string", None),
        ("for_guide", 4, "bool", None),
    ),
    "CompressionAlgo": (
        ("type", 1, "CompressionAlgo.CompressionType", None),
        ("quant_params", 2, "QuantizeParams", None),
        ("prune_params", 3, "PruneParams", None),
    ),
    "QuantizeParams": (
        ("round_mode", 1, "QuantizeParams.RoundMode", "ROUND_AWAY_FROM_ZERO"),
        ("layer", 4, "*LayerQuantizeParams", None),
    ),
    "LayerQuantizeParams": (
        ("input", 1, "*LayerQuantizeParams.ActivationParams", None),
        ("weight", 2, "*LayerQuantizeParams.WeightParams", None),
        ("output", 3, "*LayerQuantizeParams.ActivationParams", None),
        ("method", 4, "LayerQuantizeParams.QuantMethod", None),
        ("wino_params", 5, "LayerQuantizeParams.WinogradParams", None),
        ("op_name", 6, "string", None),
        ("subgraph_name", 7, "string", None),
        ("conv", 8, "LayerQuantizeParams.ConvolutionInfo", None),
    ),
    "LayerQuantizeParams.ActivationParams": (
        ("name", 1, "string", None),
        ("bits", 2, "int32", "8"),
        ("scales", 3, "*float", None),
        ("zero_point", 4, "int32", "0"),
        ("clamp_min", 5, "int32", "-128"),
        ("clamp_max", 6, "int32", "127"),
    ),
    "LayerQuantizeParams.WeightParams": (
        ("name", 1, "string", None),
        ("bits", 2, "int32", "8"),
        ("scales", 3, "*float", None),
        ("clamp_min", 4, "int32", "-128"),
        ("clamp_max", 5, "int32", "127"),
        ("asymmetric", 6, "bool", None),
        ("block_size", 7, "int32", None),
    ),
    "LayerQuantizeParams.WinogradParams": (
        ("version", 1, "int32", None),
        ("units_attr", 4, "*int32", None),
    ),
    "LayerQuantizeParams.ConvolutionInfo": (
        ("input_channel", 1, "int32", None),
        ("output_channel", 2, "int32", None),
        ("kernel_size", 3, "*int32", None),
    ),
    "PruneParams": (
        ("type", 1, "PruneParams.PruneType", None),
        ("level_pruner_params", 2, "LevelPrunerParams", None),
        ("simd_oc_pruner_params", 3, "SIMDOCPrunerParams", None),
    ),
    "LevelPrunerParams": (
        ("weight_tensor_names", 1, "*string", None),
        ("prune_ratios", 2, "*float", None),
        ("layer_names", 3, "*string", None),
    ),
    "SIMDOCPrunerParams": (
        ("weight_tensor_names", 1, "*string", None),
        ("prune_ratios", 2, "*float", None),
        ("layer_names", 3, "*string", None),
        ("oc_blocks", 4, "*int32", None),
    ),
}

_SCALARS = {"string": 9, "bool": 8, "int32": 5, "float": 2}
_TYPE_MESSAGE, _TYPE_ENUM = 11, 14
_OPTIONAL, _REPEATED = 1, 3


@functools.cache
def pipeline_class() -> Any:
    """Return the message class of a whole file, ``MNN.Compression.Pipeline``."""
    pb2: Any = descriptor_pb2  # its members are made at run time
    file = pb2.FileDescriptorProto(name="mnnq/compression.proto", package=_PACKAGE, syntax="proto2")
    messages: dict[str, Any] = {}
    for name in _MESSAGES:
        outer, _, inner = name.rpartition(".")
        messages[name] = (
            messages[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=name)
        )
    for name, keys in _ENUMS.items():
        outer, _, inner = name.rpartition(".")
        enum = messages[outer].enum_type.add(name=inner)
        for key, number in keys:
            enum.value.add(name=key, number=number)
    for name, entries in _MESSAGES.items():
        for entry in entries:
            _add_field(messages[name], *entry)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Pipeline"))


def _add_field(message: Any, name: str, number: int, kind: str, default: str | None) -> None:
    bare = kind.lstrip("*")
    entry = message.field.add(name=name, number=number, label=_REPEATED if kind[0] == "*" else _OPTIONAL)
    if bare in _SCALARS:
        entry.type = _SCALARS[bare]
    else:
        entry.type = _TYPE_ENUM if bare in _ENUMS else _TYPE_MESSAGE
        entry.type_name = f".{_PACKAGE}.{bare}"
    if default is not None:
        entry.default_value = default
