"""Apply passes to a small model and compare what it computes before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx.reference
import pytest

from mnnq.frontends.onnx.importer import load_graph
from mnnq.frontends.onnx.to_proto import to_proto
from mnnq.ir.graph import Graph
from mnnq.passes.fold_constants import fold_constants
from mnnq.passes.infer_shapes import forget_declared_shapes, infer_shapes
from mnnq.passes.normalize import normalize
from mnnq.passes.simplify import remove_dead

onnxruntime = pytest.importorskip("onnxruntime")

Pass = Callable[[Graph], int]


def prepared(proto: onnx.ModelProto) -> Graph:
    """The graph as fusing passes see it: normalised, shapes inferred, constants folded."""
    graph = load_graph(proto)
    forget_declared_shapes(graph)
    normalize(graph)
    for _ in range(3):
        infer_shapes(graph)
        fold_constants(graph)
        normalize(graph)
        remove_dead(graph)
    return graph


def run(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What a model computes: by onnxruntime, or by ONNX's reference for what that cannot run.

    The reference has errors of its own in old forms (Softmax before opset 13, SAME_LOWER pooling).
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
        return session.run(None, dict(feeds))
    except Exception:  # onnxruntime's exceptions have no common base
        return onnx.reference.ReferenceEvaluator(proto).run(None, dict(feeds))


def same(
    graph: Graph,
    proto: onnx.ModelProto,
    feeds: Mapping[str, np.ndarray],
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> None:
    """Fail unless the graph computes what the model does."""
    assert [o.name for o in proto.graph.output] == graph.outputs
    for want, got in zip(run(proto, feeds), run(to_proto(graph), feeds), strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def rewritten(
    proto: onnx.ModelProto,
    feeds: Mapping[str, np.ndarray],
    *passes: Pass,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Graph:
    """Prepare, apply passes, drop dead nodes, and check the values; the graph is returned for its form."""
    graph = prepared(proto)
    for function in passes:
        function(graph)
    remove_dead(graph)
    same(graph, proto, feeds, rtol=rtol, atol=atol)
    return graph


def kinds(graph: Graph) -> list[str]:
    """Operators in order."""
    return [node.op_type for node in graph.nodes]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Reproducible standard normal numbers."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)
