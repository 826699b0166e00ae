"""``BatchNormalization`` in training mode: the statistics are those of the tensor itself.

Exporters write weight standardisation this way, on a constant; it then folds into the weights.
"""

from __future__ import annotations

import numpy as np

from mnnq.ir.graph import Graph, Node


def expand_batch_statistics(graph: Graph, node: Node, rank: int) -> list[Node]:
    """Nodes that compute a training-mode ``BatchNormalization`` of opset 14 or later.

    With mean m and population variance v of x over all axes but 1: ``y = (x - m) / sqrt(v + epsilon) * scale + B``,
    and the running statistics ``old * momentum + current * (1 - momentum)``.
    """
    y = node.outputs[0]
    nodes: list[Node] = []

    def emit(op_type: str, *inputs: str, out: str = "") -> str:
        out = out or graph.fresh(y)
        nodes.append(Node(op_type, list(inputs), [out]))
        return out

    def number(value: float) -> str:
        dtype = graph.info(node.inputs[0]).dtype or np.dtype(np.float32)
        return graph.add_constant(y, np.asarray(value, dtype))

    def column(name: str) -> str:
        return emit("Reshape", name, graph.add_constant(y, np.asarray([-1, *[1] * (rank - 2)], np.int64)))

    axes = graph.add_constant(y, np.asarray([0, *range(2, rank)], np.int64))
    x, scale, bias = node.inputs[:3]
    mean = emit("ReduceMean", x, axes)
    centred = emit("Sub", x, mean)
    variance = emit("ReduceMean", emit("Mul", centred, centred), axes)
    root = emit("Sqrt", emit("Add", variance, number(float(node.attrs.get("epsilon", 1e-5)))))
    scaled = emit("Mul", emit("Div", centred, root), column(scale))
    nodes.append(Node("Add", [scaled, column(bias)], [y], name=node.name))
    momentum = float(node.attrs.get("momentum", 0.9))
    flat = graph.add_constant(y, np.asarray([-1], np.int64))
    for index, current in ((1, mean), (2, variance)):
        if node.has_output(index):
            kept = emit("Mul", node.inputs[2 + index], number(momentum))
            new = emit("Mul", emit("Reshape", current, flat), number(1 - momentum))
            emit("Add", kept, new, out=node.outputs[index])
    return nodes
