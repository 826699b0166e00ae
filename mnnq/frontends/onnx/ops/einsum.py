"""Einsum: operands are contracted in pairs, each as one batched matrix product."""

from __future__ import annotations

from dataclasses import dataclass

from mnnq.frontends.onnx import emit
from mnnq.frontends.onnx.emit import attributes
from mnnq.frontends.onnx.lowering import Lowering, Unsupported
from mnnq.frontends.onnx.ops.linear import integer_matmul
from mnnq.frontends.onnx.registry import lowers
from mnnq.ir.graph import Node


@dataclass(frozen=True)
class _Term:
    """A tensor whose axes carry labels; an axis of the ellipsis is labelled by its distance from the end."""

    tensor: str
    labels: tuple[str, ...]


@lowers("Einsum")
def einsum(b: Lowering, node: Node) -> None:
    """``Einsum`` of any number of operands, with repeated labels and ellipsis."""
    equation = attributes(node, equation="")["equation"].replace(" ", "")
    inputs, arrow, result = equation.partition("->")
    patterns = inputs.split(",")
    if len(patterns) != len(node.inputs):
        msg = f"equation {equation!r} for {len(node.inputs)} operands"
        raise Unsupported(msg)
    terms = [_term(b, name, text) for name, text in zip(node.inputs, patterns, strict=True)]
    dots = max((label for term in terms for label in term.labels if len(label) > 1), default=None)
    count = 0 if dots is None else int(dots[3:]) + 1
    ellipsis = tuple(_dot(i) for i in reversed(range(count)))
    if arrow:
        wanted = _expand(result, ellipsis)
    else:
        letters = inputs.replace("...", "").replace(",", "")
        wanted = (*ellipsis, *sorted(c for c in set(letters) if letters.count(c) == 1))
    terms = [_diagonals(b, term) for term in terms]
    acc = terms[0]
    for position, term in enumerate(terms[1:], 1):
        needed = set(wanted).union(*(t.labels for t in terms[position + 1 :]))
        acc = _contract(b, acc, term, needed)
    acc = _sum_out(b, acc, set(wanted))
    if set(acc.labels) != set(wanted) or len(set(wanted)) != len(wanted):
        msg = f"equation {equation!r}"
        raise Unsupported(msg)
    b.permute(acc.tensor, [acc.labels.index(label) for label in wanted], node.outputs[0])


def _dot(index: int) -> str:
    return f"...{index:03d}"


def _expand(text: str, ellipsis: tuple[str, ...]) -> tuple[str, ...]:
    head, dots, tail = text.partition("...")
    return (*head, *(ellipsis if dots else ()), *tail)


def _term(b: Lowering, name: str, text: str) -> _Term:
    rank = b.rank(name)
    letters = len(text.replace("...", ""))
    extra = rank - letters
    if extra < 0 or (extra and "..." not in text):
        msg = f"subscripts {text!r} for an operand of rank {rank}"
        raise Unsupported(msg)
    return _Term(name, _expand(text, tuple(_dot(i) for i in reversed(range(extra)))))


def _diagonals(b: Lowering, term: _Term) -> _Term:
    """Keep the diagonal of axes that carry the same label: flatten two axes and take every (d + 1)-th."""
    labels = list(term.labels)
    tensor = term.tensor
    for label in dict.fromkeys(labels):
        while labels.count(label) > 1:
            first = labels.index(label)
            second = labels.index(label, first + 1)
            rest = [i for i in range(len(labels)) if i not in (first, second)]
            size = emit.known_dim(b, (tensor, first))
            if size is None:
                msg = f"the diagonal over {label!r}: its size is not known"
                raise Unsupported(msg)
            moved = b.permute(tensor, [*rest, first, second])
            flat = emit.reshape_to(b, moved, [*((moved, i) for i in range(len(rest))), size * size])
            tensor = emit.slice_axis(b, flat, len(rest), 0, emit.END, size + 1)
            labels = [*(labels[i] for i in rest), label]
    return _Term(tensor, tuple(labels))


def _sum_out(b: Lowering, term: _Term, needed: set[str]) -> _Term:
    axes = [i for i, label in enumerate(term.labels) if label not in needed]
    if not axes:
        return term
    tensor = emit.reduce(b, "SUM", term.tensor, axes, keep=False)
    return _Term(tensor, tuple(label for label in term.labels if label in needed))


def _contract(b: Lowering, x: _Term, y: _Term, needed: set[str]) -> _Term:
    """Product of two terms, summed over the labels that nobody needs afterwards."""
    x = _sum_out(b, x, needed | set(y.labels))
    y = _sum_out(b, y, needed | set(x.labels))
    shared = [label for label in x.labels if label in y.labels]
    batch = [label for label in shared if label in needed]
    inner = [label for label in shared if label not in needed]
    own_x = [label for label in x.labels if label not in shared]
    own_y = [label for label in y.labels if label not in shared]
    left = _arrange(b, x, [batch, own_x, inner])
    right = _arrange(b, y, [batch, inner, own_y])
    product = emit.matmul if b.is_float(x.tensor) else integer_matmul
    result = product(b, left, right)
    if len(own_x) == 1 and len(own_y) == 1:
        return _Term(result, (*batch, *own_x, *own_y))
    dims: list[emit.DimSource] = [(result, i) for i in range(len(batch))]
    dims += [(x.tensor, x.labels.index(label)) for label in own_x]
    dims += [(y.tensor, y.labels.index(label)) for label in own_y]
    return _Term(emit.reshape_to(b, result, dims), (*batch, *own_x, *own_y))


def _arrange(b: Lowering, term: _Term, groups: list[list[str]]) -> str:
    """Bring labels into the order batch, rows, columns, with rows and columns merged into one axis each."""
    order = [label for group in groups for label in group]
    tensor = term.tensor
    perm = [term.labels.index(label) for label in order]
    if perm != sorted(perm):
        tensor = b.permute(tensor, perm)
    batch, rows, columns = groups
    if len(rows) == 1 and len(columns) == 1:
        return tensor
    dims: list[emit.DimSource] = [(tensor, i) for i in range(len(batch))]
    start = len(batch)
    for group in (rows, columns):
        dims.append(_merge(b, tensor, range(start, start + len(group))))
        start += len(group)
    if len(dims) - dims.count(-1) < len(dims) - 1:
        msg = "two merged axes of unknown size"
        raise Unsupported(msg)
    return emit.reshape_to(b, tensor, dims)


def _merge(b: Lowering, tensor: str, axes: range) -> emit.DimSource:
    if len(axes) == 1:
        return (tensor, axes[0])
    product = 1
    for axis in axes:
        size = emit.known_dim(b, (tensor, axis))
        if size is None:
            return -1
        product *= size
    return product
