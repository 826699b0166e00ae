"""MNN's ``While``: a counted loop with carried states and stacked results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mnnq.frontends.onnx.lowering import Lowering
from mnnq.frontends.onnx.ops import _dims as dims
from mnnq.ir.graph import Graph, ValueInfo

#: ``step(body, index, states)`` returns the new states and the values to stack; both are tensors of `body`.
Step = Callable[[Lowering, str, list[str]], tuple[list[str], list[str]]]


def counted_loop(
    b: Lowering,
    stem: str,
    count: str,
    states: Sequence[str],
    captured: Sequence[str],
    step: Step,
    *,
    graph: Graph | None = None,
    state_names: Sequence[str] = (),
) -> tuple[list[str], list[str]]:
    """Run `step` `count` times and return the final states and the stacked values.

    Parameters
    ----------
    stem
        Name of the subgraph.
    count
        INT32 scalar: number of iterations (at least 1: nothing can be stacked else).
    states
        Initial values of the carried states; their shapes must not change.
    captured
        Tensors that the body reads; they keep their names in it.
    graph, state_names
        Source graph of the body, if any, and the names of the states in it.
    """
    captured = [name for name in captured if b.constant(name) is None]
    body = b.nested(graph)
    index = body.subgraph_input(body.fresh("i"), ValueInfo(dims.INT, ()))
    condition = body.subgraph_input(body.fresh("condition"), ValueInfo(dims.INT, ()))
    names = state_names or [body.fresh("state") for _ in states]
    inner = [body.subgraph_input(name, b.info(state)) for name, state in zip(names, states, strict=True)]
    for name in captured:
        body.subgraph_input(name, b.info(name))
    new_states, stacked = step(body, index, inner)
    go_on = body.const(np.asarray(1, np.int32), "go_on")
    subgraph = b.add_subgraph(
        stem, body, [index, condition, *inner, *captured], [go_on, *new_states, *captured, *stacked], captured
    )
    finals = [b.fresh(f"{stem}__final") for _ in states]
    unused = [b.fresh(f"{stem}__unused") for _ in captured]
    stacks = [b.fresh(f"{stem}__stack") for _ in stacked]
    b.emit_many(
        "While", [count, dims.scalar(b, 1), *states, *captured], [*finals, *unused, *stacks], name=stem,
        param_type="WhileParam", body_graph=subgraph,
    )  # fmt: skip
    for final, state in zip(finals, states, strict=True):
        b.note(final, b.info(state))
    for stack, value in zip(stacks, stacked, strict=True):
        shape = body.shape(value)
        b.note(stack, ValueInfo(body.info(value).dtype, None if shape is None else (None, *shape)))
    return finals, stacks
