"""From a model file to a `Model`: the conversion a user asks for with ``mnnq.load``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.checker
import onnx.shape_inference

from mnnq.errors import ConfigError, MnnqError, ModelError
from mnnq.frontends.onnx.importer import load_graph
from mnnq.frontends.onnx.lowering import lower
from mnnq.ir.imported import ImportReport
from mnnq.ir.model import Model
from mnnq.ir.signature import Signature
from mnnq.passes.mark_quantized import quantizing_ops
from mnnq.passes.pipeline import optimize_graph, optimize_model
from mnnq.quantization.imported import quantize_layers

#: What to do with quantization that a source carries.
QDQ_MODES = ("native", "float")


@dataclass(frozen=True)
class ConvertOptions:
    """How to convert a source model.

    Attributes
    ----------
    input_shapes
        Fixes symbolic axes of inputs, by input name.
    qdq
        Quantization that the source carries: ``"native"`` keeps it, as int8 weights and described tensors with the
        scales of the source; ``"float"`` writes it in float operators.
    """

    input_shapes: Mapping[str, Sequence[int]] | None = None
    qdq: str = "native"

    def __post_init__(self) -> None:
        if self.qdq not in QDQ_MODES:
            msg = f"{self.qdq!r}; use {' or '.join(QDQ_MODES)}"
            raise ConfigError(msg, key="qdq")


def convert_onnx(source: str | Path | onnx.ModelProto, options: ConvertOptions | None = None) -> Model:
    """Convert an ONNX model to an MNN model; weights are float but for layers that the source quantizes.

    Raises
    ------
    ModelError, UnsupportedError, ConfigError
        As `mnnq.frontends.onnx.importer.load_graph` and `mnnq.frontends.onnx.lowering.lower` say.
    """
    options = options or ConvertOptions()
    try:
        graph = load_graph(source, input_shapes=options.input_shapes)
        signature = Signature.of(graph)
        quantizing = quantizing_ops(graph) if options.qdq == "native" else ()
        grids = optimize_graph(graph, native=options.qdq == "native")
        model = lower(graph)
        rounded = optimize_model(model)
        if grids is not None:
            model.imported = quantize_layers(model, grids, rounded)
        elif quantizing:
            model.imported = ImportReport((), 0, (), quantizing)
        model.signature = signature
    except (MnnqError, OSError, MemoryError):
        raise
    except Exception as error:
        # A model that breaks ONNX's rules may trip any pass. Ask what is wrong with it before calling this a bug.
        damage = find_damage(source)
        if damage is None:
            raise
        origin = None if isinstance(source, onnx.ModelProto) else str(source)
        msg = f"not a valid ONNX model: {damage}"
        raise ModelError(msg, file=origin) from error
    if not isinstance(source, onnx.ModelProto):
        model.source = Path(source)
    return model


def find_damage(source: str | Path | onnx.ModelProto) -> str | None:
    """What rule of ONNX a model breaks, on one line; None when it breaks none that can be checked."""
    try:
        proto = source if isinstance(source, onnx.ModelProto) else onnx.load(source, load_external_data=False)
        if (name := _undecodable(proto.graph)) is not None:
            return f"the name {name!r} is not UTF-8 text"
        onnx.checker.check_model(proto if isinstance(source, onnx.ModelProto) else str(source))
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    except Exception as error:  # the checkers raise several unrelated types
        return " ".join(str(error).split())[:300]
    return None


def _undecodable(graph: onnx.GraphProto) -> object:
    """A name in the graph that is not text, or None."""
    for node in graph.node:
        for name in (node.name, node.op_type, node.domain, *node.input, *node.output):
            if not isinstance(name, str):
                return name
    names: list[object] = [value.name for value in (*graph.input, *graph.output, *graph.value_info)]
    names += [tensor.name for tensor in graph.initializer]
    return next((name for name in names if not isinstance(name, str)), None)
