"""MNN operators that nothing reads are dropped, equal ones merged."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np

from mnnq.ir.model import Model, Op, SubGraph

#: Operators whose results are not determined by their inputs and parameters.
_IMPURE = frozenset({"Input", "RandomUniform", "RandomNormal", "While", "If", "Extra", "Plugin"})

#: Constants of more bytes are not compared by content.
_CONTENT_LIMIT = 1 << 16


def bodies(model: Model) -> Iterator[Model | SubGraph]:
    """The main graph and every subgraph: what has ``ops`` and ``outputs``."""
    yield model
    yield from model.subgraphs.values()


def remove_dead_ops(model: Model) -> int:
    """Drop operators that no output depends on, in place; graph inputs stay. Returns how many."""
    count = 0
    for body in bodies(model):
        needed = set(body.outputs)
        kept: list[Op] = []
        for op in reversed(body.ops):
            if op.type != "Input" and not any(name in needed for name in op.outputs):
                continue
            kept.append(op)
            needed.update(op.inputs)
        count += len(body.ops) - len(kept)
        body.ops = kept[::-1]
    return count


def merge_duplicate_ops(model: Model) -> int:
    """Let readers of an operator's twin (equal type, parameters and inputs) read the first one; return how many."""
    return sum(_merge(body) for body in bodies(model))


def _merge(body: Model | SubGraph) -> int:
    first: dict[Hashable, Op] = {}
    names: dict[str, str] = {}
    kept: list[Op] = []
    outputs = set(body.outputs)
    for op in body.ops:
        op.inputs = [names.get(name, name) for name in op.inputs]
        key = _key(op)
        twin = op if key is None else first.setdefault(key, op)
        if twin is op or any(name in outputs for name in op.outputs):
            kept.append(op)
        else:
            names.update(zip(op.outputs, twin.outputs, strict=True))
    count = len(body.ops) - len(kept)
    body.ops = kept
    return count


def _key(op: Op) -> Hashable | None:
    if op.type in _IMPURE:
        return None
    params = _freeze(op.params)
    return None if params is None else (op.type, op.param_type, tuple(op.inputs), len(op.outputs), params)


def _freeze(value: Any) -> Hashable | None:
    """A parameter as a key; None when it holds too much to compare."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes()) if value.nbytes <= _CONTENT_LIMIT else None
    if isinstance(value, dict):
        items = [(key, _freeze(item)) for key, item in sorted(value.items())]
        return None if any(item is None for _, item in items) else tuple(items)
    if isinstance(value, list):
        parts = [_freeze(item) for item in value]
        return None if any(part is None for part in parts) else ("list", *parts)
    return ("value", type(value).__name__, value)
