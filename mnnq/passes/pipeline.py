"""The order of the passes.

Graph passes work on ONNX semantics before lowering, model passes on MNN operators after it. Each pass returns
how many rewrites it made; groups of passes repeat until none makes any.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from mnnq.ir.graph import Graph
from mnnq.ir.model import Model
from mnnq.passes.dead_ops import merge_duplicate_ops, remove_dead_ops
from mnnq.passes.describe_quantized import describe_quantized
from mnnq.passes.expand_fourier import expand_fourier
from mnnq.passes.expand_quantized import expand_quantized
from mnnq.passes.fold_constants import fold_constants
from mnnq.passes.fuse_activation import fuse_activation
from mnnq.passes.fuse_activation_patterns import fuse_activation_patterns
from mnnq.passes.fuse_conv_bn import fuse_conv_bn
from mnnq.passes.fuse_linear import fuse_linear
from mnnq.passes.fuse_normalization import fuse_normalization
from mnnq.passes.infer_shapes import forget_declared_shapes, infer_shapes
from mnnq.passes.insert_layout import insert_layout
from mnnq.passes.mark_quantized import WeightGrids, mark_quantized
from mnnq.passes.merge_reshapes import merge_reshapes
from mnnq.passes.normalize import extract_constants, normalize
from mnnq.passes.simplify import remove_dead, simplify
from mnnq.passes.single_precision import narrow_doubles, widen_halves

_log = logging.getLogger(__name__)

#: Repetitions of a group of passes; real models need 2 to 4.
MAX_ROUNDS = 20

_T = TypeVar("_T", Graph, Model)

_FOLDING: tuple[Callable[[Graph], int], ...] = (
    infer_shapes,
    fold_constants,
    normalize,
    expand_fourier,
    remove_dead,
    simplify,
)

_FUSING: tuple[Callable[[Graph], int], ...] = (
    infer_shapes,
    fold_constants,
    simplify,
    fuse_normalization,
    fuse_activation_patterns,
    fuse_linear,
    fuse_conv_bn,
    remove_dead,
)


def optimize_graph(graph: Graph, *, native: bool = False) -> WeightGrids | None:
    """Normalise and simplify a source graph in place, until nothing changes.

    Parameters
    ----------
    native
        Keep the quantization of the source for `optimize_model` to describe, instead of writing it in float operators.

    Returns
    -------
    WeightGrids or None
        What the weights of a source with quantized activations were, if `native` is set.

    Raises
    ------
    UnsupportedError
        As `mnnq.passes.normalize.normalize` says.
    """
    forget_declared_shapes(graph)
    _run(graph, (extract_constants, widen_halves, infer_shapes))
    grids = mark_quantized(graph) if native else None
    _run(graph, (expand_quantized, infer_shapes, normalize))
    _repeat(graph, _FOLDING)
    _run(graph, (narrow_doubles,))
    _repeat(graph, _FUSING)
    return grids if grids is not None and grids.activations else None


def optimize_model(model: Model) -> list[tuple[str, str]]:
    """Fuse activations, describe tensors, insert layout conversions and drop dead operators, in place.

    Returns
    -------
    list
        What `mnnq.passes.describe_quantized.describe_quantized` returns.
    """
    _run(model, (remove_dead_ops, merge_duplicate_ops, merge_reshapes, fuse_activation))
    rounded = describe_quantized(model)
    _run(model, (insert_layout, merge_duplicate_ops, remove_dead_ops))
    return rounded


def _repeat(subject: _T, passes: Sequence[Callable[[_T], int]]) -> None:
    for _ in range(MAX_ROUNDS):
        if not _run(subject, passes):
            return
    _log.warning("the rewrites did not settle after %d rounds", MAX_ROUNDS)


def _run(subject: _T, passes: Sequence[Callable[[_T], int]]) -> int:
    total = 0
    for function in passes:
        start = time.perf_counter()
        count = function(subject)
        total += count
        if count:
            elapsed = 1e3 * (time.perf_counter() - start)
            _log.debug("%s: %d rewrites, %.1f ms", function.__name__, count, elapsed)
    return total
