"""Evens out the channels of activations, in ways that change nothing in float.

One set of codes serves a whole tensor, so that a channel with small values beside one with large values gets few codes.
Weights have a scale per output channel; what is taken off a channel of an activation is put into the weights around it:

* between convolutions, through sums, ReLU and pooling, which commute with positive factors per channel
  (M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, here with ranges from data);
* elsewhere, where a tensor is uneven enough to be worth it, by a product beside the convolution (after
  G. Xiao et al., "SmoothQuant", 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mnnq.ir.model import Model, Op
from mnnq.quantization.offline.layout import CONVOLUTIONS
from mnnq.quantization.offline.weights import bias_of
from mnnq.quantization.stored import float_weights

_Doubles = npt.NDArray[np.float64]

#: Shares of the unevenness of activations that may move into weights.
_STRENGTHS = (0.25, 0.5, 0.75, 1.0)

#: Share of the noise that must be left at most for channels to be evened out.
_GAIN = 0.5

#: Mean power of a channel as a share of its squared range.
_SPREAD = 0.1

#: Ratio of the largest range of a channel to the median one from which a product is worth its time.
_UNEVEN = 6.0

#: Ranges below this share of the largest one count as this much: what is almost always 0 may be larger in other samples.
_FLOOR = 1 / 64

#: Factors stay within this ratio of each other.
_LIMIT = 64.0

#: Operators of one data input that commute with positive factors per channel.
_COMMUTING = frozenset({"ConvertTensor", "Interp", "Pooling", "Pooling3D", "PReLU", "ReLU"})


@dataclass
class _Group:
    """Tensors whose channels are multiplied by the same factors."""

    tensors: set[str] = field(default_factory=set)
    writers: list[Op] = field(default_factory=list)
    readers: list[Op] = field(default_factory=list)
    closed: bool = True


def equalize(model: Model, ranges: Mapping[str, _Doubles], skip: set[str]) -> list[str]:
    """Even out channels in place; returns what was done, one line each.

    Parameters
    ----------
    model
        A float model whose operators may be changed.
    ranges
        Largest magnitude of each channel, by tensor: inputs and outputs of convolutions.
    skip
        Operators left float, whose weights stay as they are.
    """
    notes = []
    count = sum(_apply(group, ranges) for group in _groups(model) if _usable(group, skip))
    if count:
        notes.append(
            f"evened out the channels between convolutions in {count} place{'s' if count > 1 else ''}"
        )
    products = _insert_products(model, ranges, skip)
    if products:
        notes.append(
            f"inserted {products} product{'s' if products > 1 else ''} to even out channels beside convolutions"
        )
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
        if op.type in CONVOLUTIONS and len(op.inputs) == 1 and _is_plain(op):
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


def _is_plain(op: Op) -> bool:
    """Float weights in one piece, or one group per channel."""
    common = op.params["common"]
    group = int(common.get("group", 1))
    dense = group == 1
    depthwise = op.type == "ConvolutionDepthwise" and group == int(common.get("outputCount", 0))
    return (
        op.params.get("quanParameter") is None
        and op.params.get("weight") is not None
        and (dense or depthwise)
    )


def _usable(group: _Group, skip: set[str]) -> bool:
    if not (group.closed and group.writers and group.readers):
        return False
    if any(op.params["common"].get("relu6") for op in group.writers):
        return False  # the bound 6 does not scale
    return not any(op.name in skip for op in (*group.writers, *group.readers))


def _weights(op: Op) -> npt.NDArray[np.float32]:
    return np.array(float_weights(op), np.float32)


def _columns(op: Op) -> _Doubles:
    """Largest weight of each input channel."""
    weights = np.abs(_weights(op)).astype(np.float64)
    common = op.params["common"]
    taps = int(common.get("kernelX", 1)) * int(common.get("kernelY", 1))
    if op.type == "ConvolutionDepthwise":
        return np.asarray(weights.reshape(weights.shape[0], -1).max(axis=1))
    return np.asarray(weights.reshape(weights.shape[0], -1, taps).max(axis=(0, 2)))


def factors(ranges: _Doubles, columns: _Doubles, strength: float = 0.5) -> _Doubles:
    """What each channel is divided by: ``range ** a / column ** (1 - a)``, of geometric mean 1 and bounded."""
    low = max(float(ranges.max(initial=0.0)) * _FLOOR, 1e-30)
    found = np.maximum(ranges, low) ** strength
    found /= np.maximum(columns, max(float(columns.max(initial=0.0)) * 1e-4, 1e-30)) ** (1 - strength)
    found /= np.exp(np.log(found).mean())
    return np.asarray(np.clip(found, 1 / _LIMIT, _LIMIT))


def _apply(group: _Group, ranges: Mapping[str, _Doubles]) -> bool:
    seen = [ranges[name] for name in group.tensors if name in ranges]
    if not seen or len({len(found) for found in seen}) != 1:
        return False
    columns = np.max([_columns(op) for op in group.readers], axis=0)
    if len(columns) != len(seen[0]) or any(_rows(op) != len(columns) for op in group.writers):
        return False
    reach = np.max(seen, axis=0)
    candidates = [np.ones(len(columns)), *(factors(reach, columns, strength) for strength in _STRENGTHS)]
    costs = [sum(_noise(op, reach, divisor) for op in group.readers) for divisor in candidates]
    chosen = int(np.argmin(costs))
    if costs[chosen] > _GAIN * costs[0]:
        return False
    divisor = candidates[chosen]
    for op in group.writers:
        scale_rows(op, 1 / divisor)
    for op in group.readers:
        scale_columns(op, divisor)
    return True


def _noise(op: Op, ranges: _Doubles, divisor: _Doubles) -> float:
    """Expected squared error at a convolution's output for an input divided by factors, per pixel, up to a constant.

    Codes of the input: the largest range sets the step, weights pass the error on. Codes of the weights: their error times the
    power of the input, taken for a fixed share of its squared range.
    """
    weights = _weights(op).astype(np.float64)
    reach = float((ranges / divisor).max(initial=0.0))
    if op.type == "ConvolutionDepthwise":
        power = np.square(weights).sum(axis=1)
        return reach**2 * float((power * divisor**2).sum())
    shaped = weights.reshape(weights.shape[0], len(divisor), -1) * divisor[None, :, None]
    inputs = (2 * reach / 255) ** 2 / 12 * float(np.square(shaped).sum())
    steps = np.abs(shaped).max(axis=(1, 2), keepdims=True, initial=0.0) / 127
    steps = np.where(steps > 0, steps, 1.0)
    lost = np.square(shaped - np.rint(shaped / steps) * steps).sum(axis=(0, 2))
    return inputs + _SPREAD * float(lost @ np.square(ranges / divisor))


def _rows(op: Op) -> int:
    return int(op.params["common"]["outputCount"])


def scale_rows(op: Op, by: _Doubles) -> None:
    """Multiply the output channels of a convolution."""
    op.params["weight"] = (_weights(op) * by[:, None]).astype(np.float32)
    op.params["bias"] = (bias_of(op) * by).astype(np.float32)


def scale_columns(op: Op, by: _Doubles) -> None:
    """Multiply the weights of the input channels of a convolution."""
    weights = _weights(op)
    if op.type == "ConvolutionDepthwise":
        op.params["weight"] = (weights * by[:, None]).astype(np.float32)
        return
    shaped = weights.reshape(weights.shape[0], len(by), -1)
    op.params["weight"] = (shaped * by[None, :, None]).astype(np.float32).reshape(weights.shape)


def _uneven(ranges: _Doubles | None) -> bool:
    if ranges is None or len(ranges) < 8:
        return False
    return float(ranges.max()) > _UNEVEN * max(float(np.median(ranges)), 1e-30)


def _insert_products(model: Model, ranges: Mapping[str, _Doubles], skip: set[str]) -> int:
    """Products before and behind convolutions that stand for matrix products, beside which everything is float anyway."""
    readers: dict[str, list[Op]] = {}
    for op in model.ops:
        for name in op.inputs:
            readers.setdefault(name, []).append(op)
    before: dict[int, list[Op]] = {}
    behind: dict[int, list[Op]] = {}
    done = 0
    for op in model.ops:
        if op.type != "Convolution" or not _is_matrix(op) or op.name in skip:
            continue
        name, result = op.inputs[0], op.outputs[0]
        peers = readers.get(name, [])
        plain = all(_is_matrix(peer) and peer.name not in skip for peer in peers)
        found = ranges.get(name)
        if peers and peers[0] is op and plain and found is not None and _uneven(found):
            divisor = factors(found, np.max([_columns(peer) for peer in peers], axis=0))
            even = f"{name}__even"
            before[id(op)] = _product(name, even, 1 / divisor)
            for peer in peers:
                peer.inputs = [even]
                scale_columns(peer, divisor)
            done += 1
        found = ranges.get(result)
        if (
            found is not None
            and _uneven(found)
            and result not in model.outputs
            and _float_behind(op, readers)
        ):
            divisor = np.maximum(found, float(found.max()) / 1024)
            divisor = divisor / float(np.median(divisor))
            even = f"{result}__even"
            scale_rows(op, 1 / divisor)
            op.outputs = [even]
            behind[id(op)] = _product(even, result, divisor)
            done += 1
    ops = []
    for op in model.ops:
        ops += [*before.get(id(op), []), op, *behind.get(id(op), [])]
    model.ops = ops
    return done


def _is_matrix(op: Op) -> bool:
    """A 1x1 convolution that stands for a matrix product with constant weights."""
    return op.type == "Convolution" and op.name.endswith("__matmul_converted") and _is_plain(op)


def _float_behind(op: Op, readers: Mapping[str, list[Op]]) -> bool:
    """Whether the output of a convolution is only read, behind copies, by sums: what is float around a normalization."""
    if op.params["common"].get("relu6"):
        return False
    todo, found = [op.outputs[0]], False
    while todo:
        for reader in readers.get(todo.pop(), []):
            if reader.type in ("ConvertTensor", "Reshape", "Permute", "Squeeze", "Unsqueeze"):
                todo.extend(reader.outputs)
            elif reader.type == "BinaryOp":
                found = True
            else:
                return False
    return found


def _product(source: str, target: str, by: _Doubles) -> list[Op]:
    constant = f"{target}__by"
    values = by.astype(np.float32).reshape(-1)
    blob = {
        "dims": np.array([1, len(values), 1, 1], np.int32),
        "dataFormat": "NCHW",
        "dataType": "DT_FLOAT",
        "float32s": values,
    }
    return [
        Op("Const", constant, [], [constant], "Blob", blob),
        Op("BinaryOp", target, [source, constant], [target], "BinaryOp", {"opType": "MUL", "T": "DT_FLOAT"}),
    ]
