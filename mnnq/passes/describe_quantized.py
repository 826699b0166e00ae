"""Placeholders of the source's quantization become descriptions of tensors, MNN's native form of static int8.

``y = FakeQuant(x)`` goes away and the tensor is described, where nothing else reads ``x``; otherwise rounding is written in
float operators. Clipping before a quantization becomes bounds of the codes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mnnq.frontends.onnx.lowering import blob
from mnnq.ir.graph import FAKE_QUANT
from mnnq.ir.model import Model, Op

#: Fields of a ``TensorQuantInfo``.
TensorQuant = dict[str, Any]

_CONVOLUTIONS = frozenset({"Convolution", "ConvolutionDepthwise"})

#: Unary functions that MNN computes on codes as if the code of 0 were 0.
_WRONG = frozenset({"ABS", "NEG", "SIGN"})

#: Adding and taking off this number rounds what is below 2**22, halves to even.
_MAGIC = np.float32(3 << 22)


def describe_quantized(model: Model) -> list[tuple[str, str]]:
    """Rewrite in place; return quantizations that were written in float operators, with the reason."""
    marks = _Marks(model)
    for op in [op for op in model.ops if op.type == FAKE_QUANT]:
        marks.resolve(op)
    model.ops = [op for op in model.ops if id(op) not in marks.dead]
    return marks.rounded


class _Marks:
    def __init__(self, model: Model) -> None:
        self.model = model
        self.outputs = set(model.outputs)
        self.dead: set[int] = set()
        self.rounded: list[tuple[str, str]] = []
        self.producers = {name: op for op in model.ops for name in op.outputs}
        self.readers: dict[str, list[Op]] = {}
        for op in model.ops:
            for name in op.inputs:
                self.readers.setdefault(name, []).append(op)

    def resolve(self, mark: Op) -> None:
        """Take away a placeholder and those beside it."""
        if id(mark) in self.dead:
            return
        x = mark.inputs[0]
        group = [op for op in self.readers[x] if op.type == FAKE_QUANT]
        reason = self._obstacle(x, group)
        if reason is None:
            self._describe(x, group)
        else:
            for op in group:
                self._round(op)
                self.rounded.append((op.outputs[0], reason))

    def _obstacle(self, x: str, group: list[Op]) -> str | None:
        """Why the tensor `x` cannot take the codes of its placeholders; None if it can."""
        info = group[0].params["quantInfo"]
        source = self.producers[x]
        wanted = [op.outputs[0] for op in group if op.outputs[0] in self.outputs]
        if x in self.outputs or len(self.readers[x]) > len(group):
            return "the tensor is also read before it is quantized"
        if any(op.params["quantInfo"] != info for op in group) or self._known(x) not in (None, info):
            return "the tensor is quantized twice, differently"
        if len(wanted) > 1 or (wanted and source.type == "Input"):
            return "an output of the model that is another tensor too"
        readers = [op for mark in group for op in self.readers.get(mark.outputs[0], [])]
        if any(op.type == "UnaryOp" and op.params.get("opType") in _WRONG for op in readers):
            return "MNN computes magnitude, negation and sign of codes otherwise"
        if (
            source.type == "BinaryOp"
            and source.params.get("activationType")
            and info["zero"] not in (0, info["min"])
        ):
            return "MNN cuts a sum with ReLU at the code 0"
        return None

    def _known(self, x: str) -> TensorQuant | None:
        return self.model.tensor_quant.get(x)

    def _describe(self, x: str, group: list[Op]) -> None:
        info = dict(group[0].params["quantInfo"])
        source = self.producers[x]
        if source.type == "BinaryOp" and source.params.get("activationType") and info["zero"] == info["min"]:
            source.params["activationType"] = 0  # the codes begin at zero anyway
        source = self._take_clip(source, info)
        name = next((op.outputs[0] for op in group if op.outputs[0] in self.outputs), x)
        if name != x:
            source.outputs = [name if out == x else out for out in source.outputs]
            self.producers[name] = source
            self.model.tensor_quant.pop(x, None)
        self.model.tensor_quant[name] = info
        for op in group:
            self.dead.add(id(op))
            readers = self.readers.get(op.outputs[0], [])
            for reader in readers:
                reader.inputs = [name if read == op.outputs[0] else read for read in reader.inputs]
            if op.outputs[0] != name:
                self.readers.pop(op.outputs[0], None)
                merged = [*self.readers.get(name, []), *readers]
                self.readers[name] = [reader for reader in merged if id(reader) not in self.dead]

    def _take_clip(self, source: Op, info: TensorQuant) -> Op:
        """Turn clipping into bounds of the codes; return what makes the tensor then."""
        common = source.params.get("common", {}) if source.type in _CONVOLUTIONS else {}
        if common.get("relu6"):
            _clamp(info, 0.0, 6.0)
        if source.type != "ReLU6":
            return source
        before = source.inputs[0]
        conv = self.producers.get(before)
        alone = len(self.readers[before]) == 1 and before not in self.outputs and self._known(before) is None
        if conv is None or conv.type not in _CONVOLUTIONS or not alone:
            return source
        _clamp(info, float(source.params.get("minValue", 0.0)), float(source.params.get("maxValue", 6.0)))
        self.dead.add(id(source))
        conv.outputs = list(source.outputs)
        self.producers[conv.outputs[0]] = conv
        return conv

    def _round(self, mark: Op) -> None:
        """Float operators in place of a placeholder."""
        info, out = mark.params["quantInfo"], mark.outputs[0]
        ops = rounding(mark.inputs[0], out, info)
        place = next(i for i, op in enumerate(self.model.ops) if op is mark)
        self.model.ops[place : place + 1] = ops
        x = mark.inputs[0]
        first = next(op for op in ops if x in op.inputs)
        self.readers[x] = [first if op is mark else op for op in self.readers[x]]
        self.producers[out] = ops[-1]
        self.dead.add(id(mark))
        if out not in self.outputs and not self._misread(out):
            self.model.tensor_quant[out] = dict(info)  # its values lie on the codes already

    def _misread(self, name: str) -> bool:
        return any(
            op.type == "UnaryOp" and op.params.get("opType") in _WRONG for op in self.readers.get(name, [])
        )


def rounding(x: str, out: str, info: TensorQuant) -> list[Op]:
    """``Round(Clip(x / s, low - zero, high - zero)) * s`` in float operators."""
    low, high = info["min"] - info["zero"], info["max"] - info["zero"]
    ratio, clipped, raised, rounded = (f"{out}__{part}" for part in ("ratio", "clipped", "raised", "rounded"))
    scale, magic = f"{out}__scale", f"{out}__magic"
    return [
        _constant(scale, np.float32(info["scale"])),
        _constant(magic, _MAGIC),
        _binary("REALDIV", x, scale, ratio),
        Op("ReLU6", clipped, [ratio], [clipped], "Relu6", {"minValue": low, "maxValue": high}),
        _binary("ADD", clipped, magic, raised),
        _binary("SUB", raised, magic, rounded),
        _binary("MUL", rounded, scale, out),
    ]


def _clamp(info: TensorQuant, low: float, high: float) -> None:
    """Narrow the codes to those of the numbers from `low` to `high`."""
    bounds = np.rint(np.asarray([low, high], np.float32) / np.float32(info["scale"])) + info["zero"]
    codes = np.clip(bounds, info["min"], info["max"])
    info["min"], info["max"] = float(codes[0]), float(codes[1])


def _constant(name: str, value: np.float32) -> Op:
    return Op("Const", name, [], [name], "Blob", blob(np.asarray(value)))


def _binary(kind: str, a: str, b: str, out: str) -> Op:
    return Op("BinaryOp", out, [a, b], [out], "BinaryOp", {"opType": kind, "T": "DT_FLOAT"})
