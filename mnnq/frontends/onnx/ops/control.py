"""Control flow: If, Loop, Scan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mnnq.frontends.onnx.lowering import INT_LIMIT, Lowering, Unsupported, lower_nodes
from mnnq.frontends.onnx.ops import _dims as dims
from mnnq.frontends.onnx.ops._loops import counted_loop
from mnnq.frontends.onnx.registry import lowers
from mnnq.ir.graph import Graph, Node, ValueInfo


def _lower_body(body: Lowering, graph: Graph) -> None:
    problems = lower_nodes(body, graph.nodes)
    if problems:
        msg = f"in its body {graph.name!r}: {'; '.join(problems)}"
        raise Unsupported(msg)


def _graph(node: Node, name: str) -> Graph:
    graph = node.attrs.get(name)
    if not isinstance(graph, Graph):
        msg = f"attribute {name!r} is missing"
        raise Unsupported(msg)
    return graph


def _computed(b: Lowering, names: Sequence[str]) -> list[str]:
    """Those of the captured values that are computed at run time."""
    return [name for name in names if b.constant(name) is None]


@lowers("If")
def if_(b: Lowering, node: Node) -> None:
    """One of two graphs; a constant condition leaves the chosen one in place."""
    b.check_attributes(node, "then_branch", "else_branch")
    branches = [_graph(node, "then_branch"), _graph(node, "else_branch")]
    condition = b.constant(node.inputs[0])
    if condition is not None:
        _inline(b, branches[0] if condition.reshape(-1)[0] else branches[1], node.outputs)
        return
    captured: dict[str, None] = {}
    names, results = [], []
    for graph, side in zip(branches, ("then", "else"), strict=True):
        body = b.nested(graph)
        inputs = _computed(b, graph.captured())
        for name in inputs:
            body.subgraph_input(name, b.info(name))
            captured.setdefault(name)
        _lower_body(body, graph)
        names.append(b.add_subgraph(f"{_stem(node)}__{side}", body, inputs, graph.outputs))
        results.append(b.subgraphs[names[-1]].outputs)
    outs = [name or b.fresh("unused") for name in node.outputs]
    b.emit_many(
        "If", [node.inputs[0], *captured], outs, param_type="IfParam", then_graph=names[0], else_graph=names[1],
        aliases_inputs=[{}, *({"data": [name]} for name in captured)],
        aliases_outputs=[{"data": list(pair)} for pair in zip(*results, strict=True)],
    )  # fmt: skip


def _stem(node: Node) -> str:
    return next(name for name in node.outputs if name)


def _inline(b: Lowering, graph: Graph, outputs: Sequence[str]) -> None:
    """Lower the nodes of a branch as part of the enclosing graph."""
    made = set(graph.constants) | {name for n in graph.nodes for name in n.outputs if name}
    clash = sorted(name for name in made if b.info(name) != ValueInfo())
    if clash:
        msg = f"the name {clash[0]!r} is used inside and outside of the branch"
        raise Unsupported(msg)
    b.graph.constants.update(graph.constants)
    b.graph.values.update({name: info for name, info in graph.values.items() if name in made})
    _lower_body(b, graph)
    for inner, outer in zip(graph.outputs, outputs, strict=True):
        if outer:
            b.identity(inner, outer)


@lowers("Loop")
def loop(b: Lowering, node: Node) -> None:
    """Repeat a graph with carried values until its condition fails or the trip count is reached."""
    b.check_attributes(node, "body")
    graph = _graph(node, "body")
    trips = node.input(0) or dims.scalar(b, INT_LIMIT)
    condition = node.input(1) or dims.scalar(b, 1)
    carried = node.inputs[2:]
    body = b.nested(graph)
    for name, outer in zip(graph.inputs, [trips, condition, *carried], strict=True):
        own = graph.info(name)
        body.subgraph_input(name, ValueInfo(own.dtype or b.info(outer).dtype, own.shape))
    captured = _computed(b, graph.captured())
    for name in captured:
        body.subgraph_input(name, b.info(name))
    _lower_body(body, graph)
    kept, scans = graph.outputs[: 1 + len(carried)], graph.outputs[1 + len(carried) :]
    name = b.add_subgraph(
        f"{_stem(node)}__loop", body, [*graph.inputs, *captured], [*kept, *captured, *scans], captured
    )
    outs = [out or b.fresh("unused") for out in node.outputs]
    outs += [b.fresh("unused") for _ in range(len(carried) + len(scans) - len(outs))]
    unused = [b.fresh("unused") for _ in captured]
    b.emit_many(
        "While", [trips, condition, *carried, *captured], [*outs[: len(carried)], *unused, *outs[len(carried) :]],
        param_type="WhileParam", body_graph=name,
    )  # fmt: skip


@lowers("Scan")
def scan(b: Lowering, node: Node) -> None:
    """Apply a graph to the slices of some inputs, carrying states, and stack its other outputs."""
    b.check_attributes(
        node, "body", "num_scan_inputs", "scan_input_axes", "scan_input_directions", "scan_output_axes",
        "scan_output_directions",
    )  # fmt: skip
    graph = _graph(node, "body")
    if b.graph.opset < 9:
        msg = "the batched form of opset 8"
        raise Unsupported(msg)
    scanned = dims.int_attr(node, "num_scan_inputs", 1)
    states, inputs = node.inputs[: len(node.inputs) - scanned], node.inputs[len(node.inputs) - scanned :]
    results = len(graph.outputs) - len(states)
    axes = list(node.attrs.get("scan_input_axes") or [0] * scanned)
    backwards = list(node.attrs.get("scan_input_directions") or [0] * scanned)
    moved = []
    for name, axis in zip(inputs, axes, strict=True):
        at = dims.normal_axis(int(axis), b.rank(name))
        moved.append(name if at == 0 else b.permute(name, _to_front(at, b.rank(name))))
    count = dims.size_of(b, moved[0], 0)
    names = [*moved, *_computed(b, graph.captured())]
    trips = dims.as_scalar(b, count)
    if isinstance(count, str) and any(backwards):
        names.append(trips)

    def step(body: Lowering, index: str, inner: list[str]) -> tuple[list[str], list[str]]:
        for source, target, back in zip(moved, graph.inputs[len(states) :], backwards, strict=True):
            at = index
            if back:
                last = body.binary(
                    "SUB", dims.scalar(body, count) if isinstance(count, int) else trips, dims.scalar(body, 1)
                )
                at = body.binary("SUB", last, index)
            dims.gather(body, source, at, 0, target)
        _lower_body(body, graph)
        return graph.outputs[: len(states)], graph.outputs[len(states) :]

    finals, stacks = counted_loop(
        b, f"{_stem(node)}__scan", trips, states, list(dict.fromkeys(names)), step, graph=graph,
        state_names=graph.inputs[: len(states)],
    )  # fmt: skip
    for final, out in zip(finals, node.outputs, strict=False):
        if out:
            b.identity(final, out)
    _place_results(b, node, stacks, results)


def _place_results(b: Lowering, node: Node, stacks: list[str], count: int) -> None:
    """Reverse the stacked outputs and move their new axis where the node wants it."""
    axes = list(node.attrs.get("scan_output_axes") or [0] * count)
    backwards = list(node.attrs.get("scan_output_directions") or [0] * count)
    outs = node.outputs[len(node.outputs) - count :] if count else []
    for stack, out, axis, back in zip(stacks, outs, axes, backwards, strict=True):
        if not out:
            continue
        if back:
            stack = dims.backward(b, stack, -1, -INT_LIMIT, 0, -1)
        if axis:
            shape = b.shape(out) or b.shape(stack)
            if shape is None:
                msg = f"the rank of {out!r} is unknown and needed: give the input shapes"
                raise Unsupported(msg)
            rank = len(shape)
            at = dims.normal_axis(int(axis), rank)
            b.permute(stack, list(np.argsort(_to_front(at, rank))), out)
        else:
            b.identity(stack, out)


def _to_front(axis: int, rank: int) -> list[int]:
    return [axis, *(i for i in range(rank) if i != axis)]
