"""What the rewrites of a graph share: renaming in bulk, removing nodes safely, reading attributes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.ir.graph import Graph, Node


def all_graphs(graph: Graph) -> Iterator[Graph]:
    """The graph and every graph nested in it, outermost first."""
    yield graph
    for node in graph.nodes:
        for sub in node.subgraphs():
            yield from all_graphs(sub)


def rename_uses(graph: Graph, names: Mapping[str, str]) -> None:
    """Let every reader of a key read its value instead; chains are followed, graph outputs stay."""
    if not names:
        return
    final = {old: _follow(names, old) for old in names}
    for node in graph.nodes:
        node.inputs = [final.get(name, name) for name in node.inputs]
        for sub in node.subgraphs():
            _rename_captured(sub, final)


def _rename_captured(graph: Graph, names: Mapping[str, str]) -> None:
    visible = {
        old: new for old, new in names.items() if old not in graph.constants and old not in graph.inputs
    }
    rename_uses(graph, visible)
    graph.outputs = [visible.get(name, name) for name in graph.outputs]


def _follow(names: Mapping[str, str], name: str) -> str:
    while name in names:
        name = names[name]
    return name


def bypass(graph: Graph, pairs: Iterable[tuple[Node, str]]) -> int:
    """Remove nodes whose first output equals an existing value; return how many were removed.

    A node whose output is a graph output is removed by giving that name to the value's producer, when the
    value is made in this graph by a node and is no graph output itself; otherwise an ``Identity`` stays.
    """
    renames: dict[str, str] = {}
    dead: list[Node] = []
    producers: dict[str, Node] | None = None
    outputs = set(graph.outputs)
    for node, source in pairs:
        out, source = node.outputs[0], _follow(renames, source)
        if out not in outputs:
            renames[out] = source
            dead.append(node)
            continue
        if producers is None:
            producers = graph.producers()
        producer = producers.get(source)
        if source in graph.constants:
            graph.constants[out] = graph.constants[source]
            dead.append(node)
        elif producer is None or producer is node or source in outputs:
            if node.op_type == "Identity" and node.inputs == [source]:
                continue
            node.op_type, node.domain, node.inputs, node.attrs = "Identity", "", [source], {}
            node.outputs = [out]
        else:
            producer.outputs = [out if name == source else name for name in producer.outputs]
            producers[out] = producer
            if source in graph.values:
                graph.values[out] = graph.values.pop(source)
            renames[source] = out
            outputs.add(out)
            dead.append(node)
    rename_uses(graph, renames)
    graph.remove(dead)
    return len(dead)


def int_list(value: npt.ArrayLike) -> list[int]:
    """Plain ints of an array of any shape."""
    return [int(item) for item in np.asarray(value).reshape(-1)]


def single_use(graph: Graph, uses: Mapping[str, list[Node]], name: str) -> Node | None:
    """The only node that reads `name`; None when there are several, none, or it is a graph output."""
    found = uses.get(name, [])
    return found[0] if len(found) == 1 and name not in graph.outputs else None


def scalar(array: npt.NDArray[Any] | None) -> float | None:
    """The value of a one-element numeric constant, else None."""
    if array is None or array.size != 1 or array.dtype.kind not in "fiu":
        return None
    return float(array.reshape(-1)[0])


def insert_before(graph: Graph, where: Node, nodes: Iterable[Node]) -> None:
    """Put `nodes` directly before `where`."""
    index = next(i for i, node in enumerate(graph.nodes) if node is where)
    graph.nodes[index:index] = list(nodes)
