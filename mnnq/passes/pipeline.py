"""The order of the passes."""

from __future__ import annotations

from mnnq.ir.graph import Graph
from mnnq.ir.model import Model
from mnnq.passes.normalize import normalize


def optimize_graph(graph: Graph) -> None:
    """Normalise and simplify a source graph in place, until nothing changes."""
    normalize(graph)


def optimize_model(model: Model) -> None:
    """Fuse activations, insert layout conversions and drop dead operators, in place."""
