"""Channels evened out by products, where what lies beside a convolution is float whatever happens.

Behind a convolution that only float operators read, each channel gets all codes: ``y = s_c * code + o_c`` with one more
``Scale``. Before a convolution, channels are divided and its weights multiplied (after G. Xiao et al.,
"SmoothQuant", 2022); where the tensor comes from a product with a number, the factors go into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mnnq.ir.model import Model, Op
from mnnq.quantization.offline.layout import CONVOLUTIONS
from mnnq.quantization.offline.rescaling import (
    STRENGTHS,
    columns,
    factors,
    is_plain,
    noise,
    scale_columns,
    scale_rows,
)
from mnnq.quantization.offline.tables import table_function
from mnnq.quantization.offline.weights import bias_of

_Doubles = npt.NDArray[np.float64]

#: Ratio of the largest range of a channel to the median one from which a further operator is worth its time.
_UNEVEN = 6.0

#: The same where a ``Scale`` behind a convolution takes the place of codes that a function would throw away.
_UNEVEN_BEFORE_FUNCTION = 2.0

#: The same where the factors cost nothing at run time.
_UNEVEN_FREE = 1.5

#: Share of the predicted noise that must be left at most for factors that cost nothing.
_GAIN = 0.8

#: Operators that move what a matrix product gives to the sums behind it.
_MOVES = ("ConvertTensor", "Reshape", "Permute", "Squeeze", "Unsqueeze")

#: What names of evened tensors end in.
EVEN = "__even"


@dataclass(frozen=True)
class ChannelRanges:
    """Smallest and largest value of each channel of a tensor."""

    low: _Doubles
    high: _Doubles

    @property
    def reach(self) -> _Doubles:
        """Largest magnitudes."""
        return np.maximum(-self.low, self.high)


@dataclass(frozen=True)
class _Affine:
    """``scale * source + offset``, and the operators that compute it, last first."""

    source: str
    ops: list[Op]
    scale: float
    offset: float


class _Places:
    """A model and who reads what."""

    def __init__(self, model: Model, ranges: Mapping[str, ChannelRanges], skip: set[str]) -> None:
        self.model, self.ranges, self.skip = model, ranges, skip
        self.producer = {name: op for op in model.ops for name in op.outputs}
        self.readers: dict[str, list[Op]] = {}
        for op in model.ops:
            for name in op.inputs:
                self.readers.setdefault(name, []).append(op)
        #: What stands in the place of operators, by ``id``.
        self.replaced: dict[int, list[Op]] = {}

    def constant(self, op: Op) -> str | None:
        """The constant of a sum or product of a tensor and a constant, both float in the int8 model."""
        if (
            op.type != "BinaryOp"
            or op.params.get("opType") not in ("ADD", "MUL")
            or op.params.get("activationType")
        ):
            return None
        names = [name for name in op.inputs if self.producer[name].type == "Const"]
        return names[0] if len(names) == 1 else None

    def even_before(self, op: Op) -> bool:
        """Divide the channels of a convolution's input."""
        name = op.inputs[0]
        peers, found = self.readers.get(name, []), self.ranges.get(name)
        if not peers or peers[0] is not op or found is None or name in self.model.outputs:
            return False
        if any(
            peer.type not in CONVOLUTIONS or not is_plain(peer) or peer.name in self.skip for peer in peers
        ):
            return False
        chain = self._affine_before(name)
        if chain is None and not all(is_matrix(peer) for peer in peers):
            return False
        if not _uneven(found.reach, _UNEVEN_FREE if chain else _UNEVEN):
            return False
        divisor = self._divisor(peers, found.reach) if chain is not None else _even(peers, found.reach)
        if divisor is None:
            return False
        for peer in peers:
            scale_columns(peer, divisor)
        if chain is not None:
            values = np.full_like(divisor, chain.scale), np.full_like(divisor, chain.offset)
            self.replaced.update({id(old): [] for old in chain.ops})
            self.replaced[id(chain.ops[0])] = [_scale(chain.source, name, *(v / divisor for v in values))]
            return True
        even = f"{name}{EVEN}"
        for peer in peers:
            peer.inputs = [even]
        self.replaced[id(op)] = [_scale(name, even, 1 / divisor, np.zeros_like(divisor)), op]
        return True

    def _divisor(self, peers: list[Op], reach: _Doubles) -> _Doubles | None:
        """The factors with the least predicted noise; None where they gain little."""
        candidates = [np.ones(len(reach)), *(_even(peers, reach, strength) for strength in STRENGTHS)]
        costs = [sum(noise(peer, reach, divisor) for peer in peers) for divisor in candidates]
        chosen = int(np.argmin(costs))
        return candidates[chosen] if costs[chosen] < _GAIN * costs[0] else None

    def _affine_before(self, name: str) -> _Affine | None:
        """The product with a constant number, and sums behind it, that a tensor comes from."""
        done: list[Op] = []
        offset = 0.0
        while True:
            op = self.producer[name]
            constant = self.constant(op)
            if constant is None or (done and (len(self.readers[name]) > 1 or name in self.model.outputs)):
                return None
            values = np.asarray(self.producer[constant].params.get("float32s", ()))
            if values.size != 1:
                return None
            done.append(op)
            name = next(other for other in op.inputs if other != constant)
            if op.params["opType"] == "MUL":
                return _Affine(name, done, float(values.reshape(-1)[0]), offset)
            offset += float(values.reshape(-1)[0])

    def even_behind(self, op: Op) -> bool:
        """Give each channel of a convolution's output all codes."""
        result = op.outputs[0]
        found = self.ranges.get(result)
        if found is None or result in self.model.outputs or op.params["common"].get("relu6"):
            return False
        if is_matrix(op) and self._float_behind(op):
            if not _uneven(found.reach, _UNEVEN):
                return False
            low, high = -found.reach, found.reach
        elif (flat := self._floats_by_function(result)) is not None and not op.params["common"].get("relu"):
            low, high = np.maximum(found.low, flat), found.high
            if not _uneven((high - low) / 2, _UNEVEN_BEFORE_FUNCTION):
                return False
        else:
            return False
        half, middle = (high - low) / 2, (high + low) / 2
        half = np.maximum(half, float(half.max()) / 1024)
        even = f"{result}{EVEN}"
        op.params["bias"] = (bias_of(op) - middle).astype(np.float32)
        scale_rows(op, 1 / half)
        op.outputs = [even]
        self.replaced.setdefault(id(op), [op]).append(_scale(even, result, half, middle))
        return True

    def _float_behind(self, op: Op) -> bool:
        """Whether the output of a convolution is only read, behind copies, by sums: what is float around a normalization."""
        todo, found = [op.outputs[0]], False
        while todo:
            for reader in self.readers.get(todo.pop(), []):
                if reader.type in _MOVES:
                    todo.extend(reader.outputs)
                elif reader.type == "BinaryOp":
                    found = True
                else:
                    return False
        return found

    def _floats_by_function(self, name: str) -> float | None:
        """Below which value a function that is float, as its results meet constants, does not change; None without one."""
        readers = self.readers.get(name, [])
        if len(readers) != 1 or table_function(readers[0]) is None:
            return None
        behind = self.readers.get(readers[0].outputs[0], [])
        if not behind or any(self.constant(op) is None for op in behind):
            return None
        return -3.0 if readers[0].params.get("opType") == "HARDSWISH" else -np.inf


def insert_products(model: Model, ranges: Mapping[str, ChannelRanges], skip: set[str]) -> int:
    """Even out the channels beside convolutions, in place; returns in how many places."""
    places = _Places(model, ranges, skip)
    done = 0
    for op in model.ops:
        if op.type not in CONVOLUTIONS or len(op.inputs) != 1 or not is_plain(op) or op.name in skip:
            continue
        done += places.even_before(op)
        done += places.even_behind(op)
    model.ops = [new for op in model.ops for new in places.replaced.get(id(op), [op])]
    return done


def is_matrix(op: Op) -> bool:
    """A 1x1 convolution that stands for a matrix product with constant weights."""
    return op.type == "Convolution" and op.name.endswith("__matmul_converted") and is_plain(op)


def _even(peers: list[Op], reach: _Doubles, strength: float = 0.5) -> _Doubles:
    return factors(reach, np.max([columns(peer) for peer in peers], axis=0), strength)


def _uneven(ranges: _Doubles, least: float) -> bool:
    return len(ranges) >= 8 and float(ranges.max()) > least * max(float(np.median(ranges)), 1e-30)


def _scale(source: str, target: str, by: _Doubles, offset: _Doubles) -> Op:
    params = {
        "channels": len(by),
        "scaleData": by.astype(np.float32).reshape(-1),
        "biasData": offset.astype(np.float32).reshape(-1),
    }
    return Op("Scale", target, [source], [target], "Scale", params)
