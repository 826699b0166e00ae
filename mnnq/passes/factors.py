"""Products and sums as patterns see them: constant part and the other operands, whatever the nesting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mnnq.ir.graph import Graph, Node
from mnnq.passes.rewriting import scalar


@dataclass(frozen=True)
class Product:
    """``constant`` times the values in ``factors``."""

    constant: float
    factors: tuple[str, ...]


def product(graph: Graph, producers: Mapping[str, Node], name: str, depth: int = 4) -> Product:
    """Take a value apart along Mul, Div by a one-element constant, and Pow with exponent 2 or 3."""
    node = producers.get(name)
    if node is None or node.domain or depth == 0:
        return Product(1.0, (name,))
    if node.op_type == "Mul":
        constant = 1.0
        factors: list[str] = []
        for operand in node.inputs:
            value = scalar(graph.constant(operand))
            if value is not None:
                constant *= value
                continue
            part = product(graph, producers, operand, depth - 1)
            constant *= part.constant
            factors.extend(part.factors)
        return Product(constant, tuple(factors))
    if node.op_type == "Div":
        value = scalar(graph.constant(node.inputs[1]))
        if value:
            part = product(graph, producers, node.inputs[0], depth - 1)
            return Product(part.constant / value, part.factors)
    if node.op_type == "Pow":
        exponent = scalar(graph.constant(node.inputs[1]))
        if exponent in (2.0, 3.0):
            return Product(1.0, (node.inputs[0],) * int(exponent))
    return Product(1.0, (name,))


def plus_constant(graph: Graph, producers: Mapping[str, Node], name: str) -> tuple[str, float] | None:
    """For ``Add(value, constant)`` of one element: the value and the constant."""
    node = producers.get(name)
    if node is None or node.op_type != "Add" or node.domain:
        return None
    for index in (0, 1):
        value = scalar(graph.constant(node.inputs[index]))
        if value is not None:
            return node.inputs[1 - index], value
    return None


def close(value: float | None, wanted: float) -> bool:
    """Whether a constant of a model is `wanted`, written in float32, or rounded to float16 or bfloat16."""
    if value is None:
        return False
    if abs(value - wanted) <= 2e-6 * abs(wanted):
        return True
    halves = (float(np.float16(wanted)), _bfloat16(wanted))
    return any(abs(value - half) <= 1e-9 * abs(half) for half in halves)


def _bfloat16(value: float) -> float:
    """Round to the 16 upper bits of float32, to nearest even."""
    bits = int(np.float32(value).view(np.uint32))
    bits += 0x7FFF + ((bits >> 16) & 1)
    return float(np.uint32(bits & 0xFFFF0000).view(np.float32))
