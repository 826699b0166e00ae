"""Evens out the channels of activations, in ways that change nothing in float.

One set of codes serves a whole tensor, so that a channel with small values beside one with large values gets few codes.
Weights have a scale per output channel; what is taken off a channel of an activation is put into the weights around it:

* between convolutions, through sums, ReLU and pooling, which commute with positive factors per channel
  (M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, here with ranges from data);
* elsewhere by factors beside the convolution (`products`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mnnq.ir.model import Model, Op
from mnnq.quantization.offline.layout import CONVOLUTIONS
from mnnq.quantization.offline.products import ChannelRanges, insert_products
from mnnq.quantization.offline.rescaling import (
    STRENGTHS,
    columns,
    factors,
    is_plain,
    noise,
    scale_columns,
    scale_rows,
)

_Doubles = npt.NDArray[np.float64]

#: Share of the noise that must be left at most for channels to be evened out.
_GAIN = 0.5

#: Operators of one data input that commute with positive factors per channel.
_COMMUTING = frozenset({"ConvertTensor", "Interp", "Pooling", "Pooling3D", "PReLU", "ReLU"})


@dataclass
class _Group:
    """Tensors whose channels are multiplied by the same factors."""

    tensors: set[str] = field(default_factory=set)
    writers: list[Op] = field(default_factory=list)
    readers: list[Op] = field(default_factory=list)
    closed: bool = True


def equalize(model: Model, ranges: Mapping[str, ChannelRanges], skip: set[str]) -> list[str]:
    """Even out channels in place; returns what was done, one line each.

    Parameters
    ----------
    model
        A float model whose operators may be changed.
    ranges
        Smallest and largest value of each channel, by tensor: inputs and outputs of convolutions.
    skip
        Operators left float, whose weights stay as they are.
    """
    notes = []
    reach = {name: found.reach for name, found in ranges.items()}
    divided = [_apply(group, reach) for group in _groups(model) if _usable(group, skip)]
    count = len([tensors for tensors in divided if tensors])
    if count:
        notes.append(f"evened out the channels between convolutions in {_places(count)}")
    rest = set(ranges).difference(*divided)
    products = insert_products(model, {name: ranges[name] for name in rest}, skip)
    if products:
        notes.append(f"evened out the channels beside convolutions by factors in {_places(products)}")
    return notes


def _groups(model: Model) -> list[_Group]:
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    def join(*names: str) -> None:
        for name in names[1:]:
            parent[root(name)] = root(names[0])

    open_ends: set[str] = set(model.outputs)
    constants = {name for op in model.ops if op.type == "Const" for name in op.outputs}
    for op in model.ops:
        if op.type in CONVOLUTIONS and len(op.inputs) == 1 and is_plain(op):
            for name in (*op.inputs, *op.outputs):
                root(name)
        elif op.type in _COMMUTING and op.type != "Input":
            join(op.inputs[0], op.outputs[0])
        elif (
            op.type == "BinaryOp"
            and op.params.get("opType") in ("ADD", "SUB")
            and not (set(op.inputs) & constants)
        ):
            join(*op.inputs, *op.outputs)
        elif op.type != "Const":
            open_ends.update((*op.inputs, *op.outputs))
    groups: dict[str, _Group] = {}
    for name in list(parent):
        group = groups.setdefault(root(name), _Group())
        group.tensors.add(name)
        group.closed &= name not in open_ends
    for op in model.ops:
        if op.type in CONVOLUTIONS:
            for name, list_name in ((op.inputs[0], "readers"), (op.outputs[0], "writers")):
                if name in parent:
                    getattr(groups[root(name)], list_name).append(op)
    return list(groups.values())


def _usable(group: _Group, skip: set[str]) -> bool:
    if not (group.closed and group.writers and group.readers):
        return False
    if any(op.params["common"].get("relu6") for op in group.writers):
        return False  # the bound 6 does not scale
    return not any(op.name in skip for op in (*group.writers, *group.readers))


def _apply(group: _Group, ranges: Mapping[str, _Doubles]) -> set[str]:
    """Even out the channels of a group where that is worth it; returns the tensors that it changed."""
    seen = [ranges[name] for name in group.tensors if name in ranges]
    if not seen or len({len(found) for found in seen}) != 1:
        return set()
    largest = np.max([columns(op) for op in group.readers], axis=0)
    if len(largest) != len(seen[0]) or any(_rows(op) != len(largest) for op in group.writers):
        return set()
    reach = np.max(seen, axis=0)
    candidates = [np.ones(len(largest)), *(factors(reach, largest, strength) for strength in STRENGTHS)]
    costs = [sum(noise(op, reach, divisor) for op in group.readers) for divisor in candidates]
    chosen = int(np.argmin(costs))
    if costs[chosen] > _GAIN * costs[0]:
        return set()
    divisor = candidates[chosen]
    for op in group.writers:
        scale_rows(op, 1 / divisor)
    for op in group.readers:
        scale_columns(op, divisor)
    return group.tensors


def _rows(op: Op) -> int:
    return int(op.params["common"]["outputCount"])


def _places(count: int) -> str:
    return f"{count} place{'s' if count > 1 else ''}"
