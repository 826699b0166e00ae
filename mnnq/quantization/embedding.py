"""Embedding tables as rows of integer codes.

`.mnn` has no quantized table, but runtimes gather rows of 8-bit constants and compute on the result. A lookup
``GatherV2(table, indices, 0)`` becomes ``code * scale + min`` over gathered rows: the codes are a UINT8
constant ``[V, D / n]`` with ``n`` codes per byte (2 bit: 4; 3 and 4 bit: 2; else 1), split by arithmetic after
the gather, scale and minimum are constants ``[V, blocks]`` gathered alike. All of it is exact in f32, and was
measured equal to the formula in the real runtime, in every precision and memory mode.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.ir.model import Op
from mnnq.quantization.stored import aligned

#: Smaller tables stay float: the operators that unpack them would cost more than they save.
MIN_ELEMENTS = 4096

FloatArray = npt.NDArray[np.float32]


@dataclass
class Table:
    """A constant that is looked up by row.

    Attributes
    ----------
    const
        The ``Const`` operator, data ``[V, D]``.
    lookups
        The ``GatherV2`` operators that read it.
    ops
        The operator list that all of them are in.
    """

    const: Op
    lookups: list[Op]
    ops: list[Op]
    subgraph: str
    reason: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the table."""
        return tuple(int(d) for d in self.const.params.get("dims", ()))


def find_tables(ops: list[Op], subgraph: str, outputs: Sequence[str]) -> list[Table]:
    """Find float constants that some ``GatherV2`` looks up along axis 0.

    A table that something else reads too, or whose rows are no vectors, is returned with the `reason` why it
    cannot become codes.
    """
    consts = {op.outputs[0]: op for op in ops if op.type == "Const"}
    readers: dict[str, list[Op]] = {}
    for op in ops:
        for name in op.inputs:
            readers.setdefault(name, []).append(op)
    tables = []
    for name, const in consts.items():
        if _float_count(const) < MIN_ELEMENTS:
            continue
        users = readers.get(name, [])
        lookups = [
            op for op in users if op.type == "GatherV2" and op.inputs[0] == name and _axis(op, consts) == 0
        ]
        if not lookups:
            continue
        table = Table(const, lookups, ops, subgraph)
        if len(table.shape) != 2:
            table.reason = f"its rows are not vectors (shape {list(table.shape)})"
        elif len(lookups) != len(users) or name in outputs:
            other = next((op.name for op in users if op not in lookups), "the model's outputs")
            table.reason = f"it is also used by {other!r}, which needs floats"
        tables.append(table)
    return tables


def _float_count(const: Op) -> int:
    params = const.params
    if params.get("dataType", "DT_FLOAT") == "DT_FLOAT":
        return len(params.get("float32s", ()))
    if params.get("dataType") == "DT_HALF":
        return len(params.get("uint8s", ())) // 2
    return 0


def _axis(op: Op, consts: dict[str, Op]) -> int | None:
    """Axis of a lookup; None when it is computed at run time."""
    if len(op.inputs) < 3 or not op.inputs[2]:
        return 0
    const = consts.get(op.inputs[2])
    values = [] if const is None else list(const.params.get("int32s", ()))
    return int(values[0]) if len(values) == 1 else None


def float_values(const: Op) -> FloatArray:
    """Values of a float or half-float constant, flat; a view where possible."""
    if const.params.get("dataType") == "DT_HALF":
        halves = np.asarray(const.params["uint8s"], np.uint8).view(np.dtype("<f2"))
        return halves.astype(np.float32)
    return aligned(np.asarray(const.params["float32s"], np.float32))


def per_byte(bits: int, width: int) -> int:
    """Codes that share a byte: as many as fit and divide the row into equal parts."""
    return next(n for n in (4, 2, 1) if n * bits <= 8 and width % n == 0)


def pack_rows(index: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Put several columns into each byte: ``byte = sum_p index[:, p * W + j] * 2**(8 / n * (n - 1 - p))``.

    Shapes: `index` ``[V, D]``, unsigned codes below ``2**bits``; result ``[V, W]`` with ``W = D / n``.
    """
    n = per_byte(bits, index.shape[1])
    width = index.shape[1] // n
    packed = np.zeros((index.shape[0], width), np.uint8)
    for part in range(n):
        packed |= index[:, part * width : (part + 1) * width] << (8 // n * (n - 1 - part))
    return packed


_CODES_NAME = re.compile(r"__codes([2-8])(_\d+)?$")


def stored_bits(op: Op) -> int | None:
    """Bits of the codes that a constant holds, if `rewrite` made it: its name says so; else None."""
    if op.type != "Const" or op.params.get("dataType") != "DT_UINT8":
        return None
    found = _CODES_NAME.search(op.name)
    return None if found is None else int(found[1])


def rewrite(
    table: Table,
    index: npt.NDArray[np.uint8],
    scale: FloatArray,
    minimum: FloatArray | None,
    bits: int,
    *,
    fp16_scales: bool,
    fresh: Callable[[str], str],
) -> int:
    """Replace the table and its lookups in place, and return the bytes of the new constants.

    Parameters
    ----------
    index
        Unsigned codes ``[V, D]``.
    bits
        2 to 8; it becomes part of the constant's name, for `stored_bits`.
    scale, minimum
        ``[V, blocks]``; a `minimum` of None means symmetric: ``w = scale * (index - 2**(bits - 1))``.
    fresh
        Makes a tensor name unique.
    """
    stem = table.const.outputs[0]
    packed = pack_rows(index, bits)
    consts = _Consts(stem, fresh)
    codes = consts.add(f"codes{bits}", packed, "DT_UINT8", "uint8s")
    scales = consts.floats("scale", scale, half=fp16_scales)
    minima = None if minimum is None else consts.floats("min", minimum, half=fp16_scales)
    size = packed.nbytes + (2 if fp16_scales else 4) * (scale.size + (0 if minimum is None else minimum.size))
    new_ops: dict[int, list[Op]] = {id(table.const): consts.ops}
    for lookup in table.lookups:
        emit = _Emitter(lookup.outputs[0], fresh, consts)
        value = emit.unpack(emit.gather(codes, lookup), 8 // (index.shape[1] // packed.shape[1]))
        blocks = scale.shape[1]
        shaped = value
        if blocks > 1:
            shaped = emit.reshape(value, [-1, blocks, index.shape[1] // blocks])
        if minima is None:
            shaped = emit.binary("SUB", shaped, consts.number(float(1 << (bits - 1))))
        for kind, constant in (("MUL", scales), ("ADD", minima)):
            if constant is None:
                continue
            factor = emit.gather(constant, lookup)
            if blocks > 1:
                factor = emit.reshape(factor, [-1, blocks, 1])
            shaped = emit.binary(kind, shaped, factor)
        if blocks > 1:
            emit.reshape_like(shaped, value)
        emit.finish(lookup)
        new_ops[id(lookup)] = emit.ops
    first = min(position for position, op in enumerate(table.ops) if id(op) in new_ops)
    rebuilt = []
    for position, op in enumerate(table.ops):
        if position == first:
            rebuilt += consts.ops
        if op is table.const:
            continue
        rebuilt += new_ops.get(id(op), [op])
    table.ops[:] = rebuilt
    return size


class _Consts:
    """Constants of a rewritten table."""

    def __init__(self, stem: str, fresh: Callable[[str], str]) -> None:
        self.ops: list[Op] = []
        self._stem, self._fresh = stem, fresh
        self._numbers: dict[tuple[object, ...], str] = {}

    def add(self, role: str, array: npt.NDArray[Any], dtype: str, vector: str) -> str:
        """Append a constant and return its tensor name."""
        name = self._fresh(f"{self._stem}__{role}")
        params: dict[str, Any] = {"dataType": dtype, "dataFormat": "NCHW", vector: array.reshape(-1)}
        if array.ndim:
            params["dims"] = np.asarray(array.shape, np.int32)
        self.ops.append(Op("Const", name, [], [name], "Blob", params))
        return name

    def floats(self, role: str, array: FloatArray, *, half: bool) -> str:
        """Append a float constant, stored as half floats if asked."""
        if not half:
            return self.add(role, np.ascontiguousarray(array, np.float32), "DT_FLOAT", "float32s")
        name = self.add(role, np.ascontiguousarray(array, np.float32), "DT_HALF", "uint8s")
        self.ops[-1].params["uint8s"] = np.ascontiguousarray(array, "<f2").reshape(-1).view(np.uint8)
        return name

    def number(self, value: float) -> str:
        """A float scalar."""
        key = ("f", value)
        if key not in self._numbers:
            self._numbers[key] = self.add("number", np.float32(value).reshape(()), "DT_FLOAT", "float32s")
        return self._numbers[key]

    def ints(self, values: Sequence[int]) -> str:
        """A vector of integers."""
        key = ("i", *values)
        if key not in self._numbers:
            self._numbers[key] = self.add("shape", np.asarray(values, np.int32), "DT_INT32", "int32s")
        return self._numbers[key]


class _Emitter:
    """Operators that stand for one lookup."""

    def __init__(self, stem: str, fresh: Callable[[str], str], consts: _Consts) -> None:
        self.ops: list[Op] = []
        self._stem, self._fresh, self._consts = stem, fresh, consts

    def _emit(self, kind: str, inputs: list[str], param_type: str | None = None, **params: Any) -> str:
        name = self._fresh(f"{self._stem}__{kind.lower()}")
        self.ops.append(Op(kind, name, inputs, [name], param_type, params))
        return name

    def gather(self, constant: str, lookup: Op) -> str:
        """Rows of a constant, chosen as the lookup chooses them."""
        name = self._emit("GatherV2", [constant, *lookup.inputs[1:]])
        self.ops[-1].param_type, self.ops[-1].params = lookup.param_type, dict(lookup.params)
        self.ops[-1].default_format = lookup.default_format
        return name

    def binary(self, kind: str, a: str, b: str) -> str:
        """Element-wise arithmetic with broadcasting."""
        return self._emit("BinaryOp", [a, b], "BinaryOp", opType=kind, T="DT_FLOAT")

    def reshape(self, x: str, dims: Sequence[int]) -> str:
        """Reshape to constant dims."""
        return self._emit("Reshape", [x, self._consts.ints(dims)], "Reshape", dimType="NCHW")

    def reshape_like(self, x: str, like: str) -> str:
        """Reshape to the shape of another tensor."""
        return self._emit("Reshape", [x, self._emit("Shape", [like])], "Reshape", dimType="NCHW")

    def unpack(self, codes: str, bits: int) -> str:
        """Float codes from bytes that hold ``8 / bits`` of them, highest first: base-``2**bits`` digits."""
        rest = self._emit("Cast", [codes], "CastParam", srcT="DT_VARIANT", dstT="DT_FLOAT")
        parts = []
        for shift in range(8 - bits, 0, -bits):
            scaled = self.binary("MUL", rest, self._consts.number(1.0 / (1 << shift)))
            digit = self._emit("UnaryOp", [scaled], "UnaryOp", opType="FLOOR", T="DT_FLOAT")
            parts.append(digit)
            rest = self.binary("SUB", rest, self.binary("MUL", digit, self._consts.number(float(1 << shift))))
        if not parts:
            return rest
        return self._emit("Concat", [*parts, rest], "Axis", axis=-1)

    def finish(self, lookup: Op) -> None:
        """Let the last operator produce the lookup's output."""
        self.ops[-1].name, self.ops[-1].outputs = lookup.name, list(lookup.outputs)
