"""From a model file to a `Model`: the conversion a user asks for with ``mnnq.load``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from mnnq.frontends.onnx.importer import load_graph
from mnnq.frontends.onnx.lowering import lower
from mnnq.ir.model import Model
from mnnq.passes.pipeline import optimize_graph, optimize_model


@dataclass(frozen=True)
class ConvertOptions:
    """How to convert a source model.

    Attributes
    ----------
    input_shapes
        Fixes symbolic axes of inputs, by input name.
    """

    input_shapes: Mapping[str, Sequence[int]] | None = None


def convert_onnx(source: str | Path | onnx.ModelProto, options: ConvertOptions | None = None) -> Model:
    """Convert an ONNX model to an MNN model with float weights.

    Raises
    ------
    ModelError, UnsupportedError, ConfigError
        As `mnnq.frontends.onnx.importer.load_graph` and `mnnq.frontends.onnx.lowering.lower` say.
    """
    options = options or ConvertOptions()
    graph = load_graph(source, input_shapes=options.input_shapes)
    optimize_graph(graph)
    model = lower(graph)
    optimize_model(model)
    if not isinstance(source, onnx.ModelProto):
        model.source = Path(source)
    return model
