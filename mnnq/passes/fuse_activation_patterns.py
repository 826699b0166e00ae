"""Activations that exporters write out in primitives become single nodes again."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mnnq.ir.graph import Graph, Node
from mnnq.passes.factors import Product, close, plus_constant, product
from mnnq.passes.rewriting import scalar

_Producers = Mapping[str, Node]


def fuse_activation_patterns(graph: Graph) -> int:
    """Rewrite in place, nested graphs included; return the number of rewrites.

    Recognised, in any order of factors, with constants of one element:

    * ``x * 0.5 * (1 + Erf(x / sqrt(2)))``: Gelu
    * ``x * 0.5 * (1 + Tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))``: Gelu with approximate = tanh
    * ``x * Sigmoid(alpha x)``: Swish
    * ``x * HardSigmoid(x, 1/6, 1/2)`` and ``x * Clip(x + 3, 0, 6) / 6``: HardSwish
    * ``Clip(x + 3, 0, 6) / 6``: HardSigmoid
    * ``x * Tanh(Softplus(x))``: Mish
    """
    count = sum(fuse_activation_patterns(sub) for node in graph.nodes for sub in node.subgraphs())
    producers = graph.producers()
    for node in graph.nodes:
        if node.domain or node.op_type not in ("Mul", "Div"):
            continue
        parts = product(graph, producers, node.outputs[0])
        for match in (_gelu_erf, _gelu_tanh, _swish, _hard_swish, _mish, _hard_sigmoid):
            found = match(graph, producers, parts)
            if found is not None and _same_shape(graph, found.inputs[0], node.outputs[0]):
                node.op_type, node.inputs, node.attrs = found.op_type, found.inputs, found.attrs
                count += 1
                break
    return count


def _same_shape(graph: Graph, x: str, y: str) -> bool:
    """Whether no constant of the pattern added axes."""
    shape = graph.info(x).shape
    return shape is not None and shape == graph.info(y).shape


def _pair(parts: Product, producers: _Producers, op_type: str) -> tuple[str, Node] | None:
    """Of two factors the one that `op_type` computes, and the other."""
    if len(parts.factors) != 2:
        return None
    for index in (0, 1):
        node = producers.get(parts.factors[index])
        if node is not None and node.op_type == op_type and not node.domain:
            return parts.factors[1 - index], node
    return None


def _one_plus(graph: Graph, producers: _Producers, parts: Product, op_type: str) -> tuple[str, str] | None:
    """For 0.5 * x * (1 + f(u)): x and u."""
    if not close(parts.constant, 0.5) or len(parts.factors) != 2:
        return None
    for index in (0, 1):
        total = plus_constant(graph, producers, parts.factors[index])
        if total is None or total[1] != 1.0:
            continue
        node = producers.get(total[0])
        if node is not None and node.op_type == op_type and not node.domain:
            return parts.factors[1 - index], node.inputs[0]
    return None


def _gelu_erf(graph: Graph, producers: _Producers, parts: Product) -> Node | None:
    found = _one_plus(graph, producers, parts, "Erf")
    if found is None:
        return None
    x, inner = found
    argument = product(graph, producers, inner)
    if argument.factors != (x,) or argument.constant == 0:
        return None
    if not close(argument.constant, math.sqrt(0.5)) and not close(1 / argument.constant, math.sqrt(2)):
        return None
    return Node("Gelu", [x], [], {})


def _gelu_tanh(graph: Graph, producers: _Producers, parts: Product) -> Node | None:
    found = _one_plus(graph, producers, parts, "Tanh")
    if found is None:
        return None
    x, inner = found
    argument = product(graph, producers, inner)
    if not close(argument.constant, math.sqrt(2 / math.pi)) or not _cubic(graph, producers, argument, x):
        return None
    return Node("Gelu", [x], [], {"approximate": "tanh"})


def _cubic(graph: Graph, producers: _Producers, argument: Product, x: str) -> bool:
    """Whether the factors are x + 0.044715 x^3, or x and 1 + 0.044715 x^2."""
    if len(argument.factors) == 1:
        node = producers.get(argument.factors[0])
        if node is None or node.op_type != "Add" or x not in node.inputs:
            return False
        power, other = 3, node.inputs[1 - node.inputs.index(x)]
    else:
        rest = [name for name in argument.factors if name != x]
        total = plus_constant(graph, producers, rest[0]) if len(rest) == 1 else None
        if total is None or total[1] != 1.0 or len(argument.factors) != 2:
            return False
        power, other = 2, total[0]
    term = product(graph, producers, other)
    return close(term.constant, 0.044715) and term.factors == (x,) * power


def _swish(graph: Graph, producers: _Producers, parts: Product) -> Node | None:
    found = _pair(parts, producers, "Sigmoid")
    if found is None or parts.constant != 1.0:
        return None
    x, sigmoid = found
    if sigmoid.inputs[0] == x:
        return Node("Swish", [x], [], {})
    inner = product(graph, producers, sigmoid.inputs[0])
    return Node("Swish", [x], [], {"alpha": inner.constant}) if inner.factors == (x,) else None


def _hard_swish(graph: Graph, producers: _Producers, parts: Product) -> Node | None:
    found = _pair(parts, producers, "HardSigmoid")
    if found is not None:
        x, gate = found
        standard = close(float(gate.attrs.get("alpha", 0.2)), 1 / 6) and gate.attrs.get("beta", 0.5) == 0.5
        exact = standard and gate.inputs[0] == x and parts.constant == 1.0
        return Node("HardSwish", [x], [], {}) if exact else None
    found = _pair(parts, producers, "Clip")
    if found is None or not close(parts.constant, 1 / 6):
        return None
    x, clip = found
    return Node("HardSwish", [x], [], {}) if _relu6_of_plus_3(graph, producers, clip) == x else None


def _relu6_of_plus_3(graph: Graph, producers: _Producers, clip: Node) -> str | None:
    bounds = [scalar(graph.constant(clip.input(index))) for index in (1, 2)]
    total = plus_constant(graph, producers, clip.inputs[0])
    return total[0] if bounds == [0.0, 6.0] and total is not None and total[1] == 3.0 else None


def _hard_sigmoid(graph: Graph, producers: _Producers, parts: Product) -> Node | None:
    clip = producers.get(parts.factors[0]) if len(parts.factors) == 1 else None
    if clip is None or clip.op_type != "Clip" or not close(parts.constant, 1 / 6):
        return None
    x = _relu6_of_plus_3(graph, producers, clip)
    return None if x is None else Node("HardSigmoid", [x], [], {"alpha": 1 / 6, "beta": 0.5})


def _mish(graph: Graph, producers: _Producers, parts: Product) -> Node | None:
    del graph
    found = _pair(parts, producers, "Tanh")
    if found is None or parts.constant != 1.0:
        return None
    x, tanh = found
    soft = producers.get(tanh.inputs[0])
    if soft is None or soft.op_type != "Softplus" or soft.inputs[0] != x:
        return None
    return Node("Mish", [x], [], {})
