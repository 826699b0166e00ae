"""Layers of a source that was quantized get the codes and scales of the source."""

from __future__ import annotations

from typing import Any

import numpy as np

from mnnq import _native
from mnnq.ir.imported import ImportedLayer, ImportReport
from mnnq.ir.model import Model, Op
from mnnq.passes.describe_quantized import rounding
from mnnq.passes.mark_quantized import WeightGrids
from mnnq.quantization.int8 import annotate
from mnnq.quantization.stored import float_weights

_Info = dict[str, Any]

_CONVOLUTIONS = frozenset({"Convolution", "ConvolutionDepthwise"})

#: Layers that compute in float whatever their tensors are.
_FLOAT_LAYERS = {
    "Deconvolution": "transposed convolutions compute in float",
    "DeconvolutionDepthwise": "transposed convolutions compute in float",
    "MatMul": "a product of two tensors of run time",
    "BatchMatMul": "a product of two tensors of run time",
}

#: Operators that move values of their first input and make none.
_COPIES = frozenset(
    {
        "ConvertTensor",
        "Crop",
        "DepthToSpace",
        "ExpandDims",
        "Flatten",
        "Identity",
        "Permute",
        "Reshape",
        "Slice",
        "SliceTf",
        "SpaceToDepth",
        "Squeeze",
        "StridedSlice",
        "Transpose",
        "Unsqueeze",
    }
)

#: Operators that move values of all their inputs.
_JOINS = frozenset({"Concat", "Pack"})

_POOLS = frozenset({"Pooling", "Pooling3D"})

#: Description of a tensor that stays float: MNN does not give it the codes of its neighbours.
_FLOAT: _Info = {"scale": 0.0, "zero": 0.0, "min": -128.0, "max": 127.0, "type": "DT_FLOAT"}

#: What tells the codes of a pooled tensor from those of its source: too little to move a value to another code.
#: MNN pools codes as unsigned bytes, and rounds averages of them down; with different scales it pools in float.
_HAIR = 1 + 2.0**-18


def quantize_layers(model: Model, grids: WeightGrids, rounded: list[tuple[str, str]]) -> ImportReport:
    """Spread descriptions and make layers int8, in place.

    Parameters
    ----------
    model
        A converted model with described tensors, layouts settled.
    grids
        Scales of the source's weights.
    rounded
        What was written in float operators, for the report.
    """
    _Spread(model).run()
    layers = []
    for op in model.ops:
        if op.type in _CONVOLUTIONS and len(op.inputs) == 1:
            layers.append(ImportedLayer(op.name, op.type, _make_int8(model, op, grids)))
        elif op.type in _FLOAT_LAYERS:
            layers.append(ImportedLayer(op.name, op.type, _FLOAT_LAYERS[op.type]))
    rounded = rounded + _Unapplied(model).run()
    model.tensor_quant.update({name: dict(_FLOAT) for name in _Spread(model).pinned()})
    described = sum(info["type"] == "DT_INT8" for info in model.tensor_quant.values())
    return ImportReport(tuple(layers), described, tuple(rounded))


def _make_int8(model: Model, op: Op, grids: WeightGrids) -> str | None:
    """Give a convolution the codes of the source; why not, if that is not possible."""
    source, target = (model.tensor_quant.get(names[0]) for names in (op.inputs, op.outputs))
    if source is None and target is None:
        return "the source quantizes neither its input nor its result"
    if source is None:
        return "the source does not quantize its input"
    if target is None:
        return "the source does not quantize its result"
    weights = np.asarray(float_weights(op), np.float32)
    found = grids.codes(weights)
    if found is None:
        return "its weights are no symmetric int8 codes"
    op.params["quanParameter"] = _native.encode_weights(*found, None, 8)
    op.params.pop("weight", None)
    annotate(op, source, target)
    return None


class _Spread:
    """Descriptions for tensors that only repeat values of described ones."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.quant = model.tensor_quant
        self.outputs = set(model.outputs)
        self.constants = {name for op in model.ops if op.type == "Const" for name in op.outputs}
        self.producers = {name: op for op in model.ops for name in op.outputs}
        self.uses: dict[str, int] = {}
        for op in model.ops:
            for name in op.inputs:
                self.uses[name] = self.uses.get(name, 0) + 1

    def run(self) -> None:
        """Describe what may be described without changing a value, and tell pooled tensors from their sources."""
        for op in reversed(self.model.ops):
            self._backward(op)
        for op in self.model.ops:
            self._forward(op)
        for op in self.model.ops:
            self._tell_apart(op)

    def _data(self, op: Op) -> list[str]:
        if op.type in _COPIES:
            return op.inputs[:1]
        return list(op.inputs) if op.type in _JOINS else []

    def _forward(self, op: Op) -> None:
        """What is moved, or the largest of some values, lies on the codes that they lie on."""
        data = op.inputs[:1] if _is_maximum(op) else self._data(op)
        infos = [self.quant.get(name) for name in data]
        if not infos or infos[0] is None or any(info != infos[0] for info in infos):
            return
        for name in op.outputs:
            self.quant.setdefault(name, dict(infos[0]))

    def _backward(self, op: Op) -> None:
        """Rounding before values are moved is rounding after it, where nothing else reads them."""
        infos = [self.quant.get(name) for name in op.outputs]
        if not infos or infos[0] is None or any(info != infos[0] for info in infos):
            return
        info = infos[0]
        for name in self._data(op):
            source = self.producers.get(name)
            if name in self.quant or name in self.outputs or name in self.constants or self.uses[name] > 1:
                continue
            if source is None or source.type == "Input" or not _keeps_relu(source, info):
                continue
            self.quant[name] = dict(info)

    def _tell_apart(self, op: Op) -> None:
        if op.type not in _POOLS:
            return
        source, target = self.quant.get(op.inputs[0]), self.quant.get(op.outputs[0])
        if source is None or target is None:
            return
        same = source["scale"] == target["scale"] and source["zero"] == target["zero"]
        if same and not (_is_maximum(op) and source["min"] >= 0):
            self._rescale(op.outputs[0], target["scale"] * _HAIR)

    def _rescale(self, name: str, scale: float) -> None:
        """Change the scale of a tensor and of its copies behind it."""
        todo = [name]
        while todo:
            name = todo.pop()
            self.quant[name] = {**self.quant[name], "scale": scale}
            for op in self.model.ops:
                if op.type in _COPIES and op.inputs[0] == name:
                    todo += [out for out in op.outputs if out in self.quant]

    def pinned(self) -> set[str]:
        """Tensors without codes beside tensors with codes."""
        found: set[str] = set()
        for op in self.model.ops:
            around = [name for name in (*op.inputs, *op.outputs) if name and name not in self.constants]
            if op.type not in _CONVOLUTIONS and any(name in self.quant for name in around):
                found.update(name for name in around if name not in self.quant)
        return found


def _is_maximum(op: Op) -> bool:
    """Whether an operator is a maximum pooling."""
    return op.type in _POOLS and op.params.get("type", "MAXPOOL") == "MAXPOOL"


def _keeps_relu(op: Op, info: _Info) -> bool:
    """Whether MNN's ReLU of a sum, which cuts at the code 0, is right for these codes."""
    fused = op.type == "BinaryOp" and op.params.get("activationType")
    return not fused or info["zero"] == 0


#: Operators that round their results to the codes described, if all their tensors are described, whatever they compute with.
_ROUNDING = frozenset({"BinaryOp", "Interp", "LayerNorm", "PReLU", "Scale", "Softmax"})


class _Unapplied:
    """Descriptions that no runtime applies, since neither what makes the tensor nor what reads it computes on codes.

    The source rounds and clips there, perhaps in place of an activation: rounding is written in float operators.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.quant = model.tensor_quant
        self.producers = {name: op for op in model.ops for name in op.outputs}
        self.readers: dict[str, list[Op]] = {}
        for op in model.ops:
            for name in op.inputs:
                self.readers.setdefault(name, []).append(op)

    def run(self) -> list[tuple[str, str]]:
        """Rewrite in place; return the tensors."""
        found = []
        for name in [name for op in self.model.ops for name in op.outputs if name in self.quant]:
            floats = [
                op for op in self.readers.get(name, []) if not self._on_codes(op) and not self._passes(op)
            ]
            if self._applied(name) or not (floats or name in self.model.outputs):
                continue
            self._round(name, floats)
            found.append((name, "neither what makes nor what reads the tensor computes on codes"))
        return found

    def _data(self, op: Op) -> list[str]:
        return op.inputs[:1] if op.type in _COPIES | _POOLS else list(op.inputs)

    def _same(self, op: Op) -> bool:
        grids = [self.quant.get(name) for name in (*self._data(op), *op.outputs)]
        return len({(g["scale"], g["zero"]) if g else None for g in grids}) == 1 and grids[0] is not None

    def _on_codes(self, op: Op) -> bool:
        """Whether an operator reads codes, or floats rounded to them, and gives such."""
        if not op.inputs or any(name not in self.quant for name in (*self._data(op), *op.outputs)):
            return False
        if op.type in _CONVOLUTIONS:
            return "symmetricQuan" in op.params
        return op.type in _ROUNDING or (op.type in _POOLS and self._same(op))

    def _passes(self, op: Op) -> bool:
        """Whether an operator only moves or chooses values, described alike: what it gives is looked at by itself."""
        relu = op.type == "ReLU" and not op.params.get("slope")
        if relu or op.type in _COPIES | _JOINS:
            return self._same(op)
        return _is_maximum(op) and all(name in self.quant for name in (*self._data(op), *op.outputs))

    def _applied(self, name: str) -> bool:
        """Whether a tensor's values lie on its codes."""
        op = self.producers[name]
        if self._passes(op):
            return all(self._applied(data) for data in self._data(op))
        return self._on_codes(op)

    def _round(self, name: str, floats: list[Op]) -> None:
        """Let float readers, and the outputs of the model, have rounded values."""
        info, op = self.quant[name], self.producers[name]
        source, out = name, f"{name}__on_grid"
        if name in self.model.outputs:
            source, out = f"{name}__off_grid", name
            op.outputs = [source if made == name else made for made in op.outputs]
            for reader in self.readers.get(name, []):
                if all(reader is not other for other in floats):
                    reader.inputs = [source if read == name else read for read in reader.inputs]
            self.quant[source] = self.quant.pop(name)
        for reader in floats:
            reader.inputs = [out if read == name else read for read in reader.inputs]
        if not any(source in other.inputs for other in self.readers.get(name, [])):
            self.quant.pop(source, None)
        place = next(i for i, other in enumerate(self.model.ops) if other is op) + 1
        ops = rounding(source, out, info)
        self.model.ops[place:place] = ops
        self.producers.update({made: other for other in ops for made in other.outputs})
        self.producers[source] = op
