"""``ConvertTensor`` between NCHW and the channel-blocked NC4HW4 where operators need it."""

from __future__ import annotations

from collections import Counter

from mnnq.ir.model import Model, Op, SubGraph
from mnnq.passes.dead_ops import bodies

NCHW, NC4HW4 = "NCHW", "NC4HW4"

#: First input and first output are blocked, other inputs plain.
BLOCKED_OPS = frozenset(
    [
        "BatchNorm",
        "ConvInt8",
        "Convolution",
        "Convolution3D",
        "ConvolutionDepthwise",
        "Crop",
        "Deconvolution",
        "DeconvolutionDepthwise",
        "DepthwiseConvInt8",
        "DetectionOutput",
        "Dilation2D",
        "FloatToInt8",
        "GridSample",
        "InstanceNorm",
        "Int8ToFloat",
        "Interp",
        "Interp3D",
        "LRN",
        "Moments",
        "PReLU",
        "Pooling",
        "Pooling3D",
        "PriorBox",
        "Proposal",
        "ROIAlign",
        "ROIPooling",
        "Resize",
        "Scale",
    ]
)

#: The output has the layout of the first input; other inputs are plain.
FOLLOWING_OPS = frozenset(
    [
        "BatchToSpaceND",
        "BroadcastTo",
        "Cast",
        "DepthToSpace",
        "Dropout",
        "ELU",
        "ExpandDims",
        "Fill",
        "Flatten",
        "Padding",
        "Permute",
        "ReLU",
        "ReLU6",
        "Reshape",
        "ReverseSequence",
        "Selu",
        "SliceTf",
        "SpaceToBatchND",
        "SpaceToDepth",
        "Squeeze",
        "StridedSlice",
        "Tile",
        "Transpose",
        "UnaryOp",
        "Unsqueeze",
    ]
)

#: Following operators that work element by element; the others move elements, at a cost that depends on the layout.
_ELEMENTWISE = frozenset({"Cast", "Dropout", "ELU", "ReLU", "ReLU6", "Selu", "UnaryOp"})

#: All inputs and outputs have one layout, that of the majority of the inputs.
UNIFORM_OPS = frozenset({"BinaryOp", "Concat", "Eltwise", "Pack", "Slice", "Unpack"})

#: Operators that read no content or any layout; their outputs are plain.
ANY_LAYOUT_OPS = frozenset({"Const", "ConvertTensor", "Input", "Rank", "Shape"})


def insert_layout(model: Model) -> int:
    """Insert conversions in place and return how many.

    Every operator gets its inputs in the layout it works on; graph outputs are NCHW. A value is converted at
    most once per layout, directly before its first reader that needs it.
    """
    return sum(_Inserter(body).run() for body in bodies(model))


class _Inserter:
    def __init__(self, body: Model | SubGraph) -> None:
        self.body = body
        self.ops: list[Op] = []
        self.layout: dict[str, str] = {}
        self.constants: set[str] = set()
        self.converted: dict[tuple[str, str], str] = {}
        self.demand = _demand(body)
        self.taken = {name for op in body.ops for name in op.outputs}
        self.count = 0

    def run(self) -> int:
        for op in self.body.ops:
            self._visit(op)
        self._plain_outputs()
        self.body.ops = self.ops
        return self.count

    def _visit(self, op: Op) -> None:
        if op.type in ANY_LAYOUT_OPS:
            self._pass(op)
            return
        if op.type in BLOCKED_OPS:
            wanted = [NC4HW4, *[NCHW] * (len(op.inputs) - 1)]
            result = NC4HW4
        elif op.type in FOLLOWING_OPS:
            result = self._of(op.inputs[0]) if op.inputs else NCHW
            if op.type not in _ELEMENTWISE and not self._demands(op, NC4HW4):
                result = NCHW  # a conversion is due anyway: before the elements move, where it is cheap
            wanted = [result, *[NCHW] * (len(op.inputs) - 1)]
        elif op.type in UNIFORM_OPS:
            result = self._majority(op)
            # The sizes that Slice reads are no data; constant operands broadcast in either layout.
            data = 1 if op.type == "Slice" else len(op.inputs)
            wanted = [
                result if i < data and name not in self.constants else NCHW
                for i, name in enumerate(op.inputs)
            ]
        else:
            result, wanted = NCHW, [NCHW] * len(op.inputs)
        op.inputs = [self._want(name, layout, op) for name, layout in zip(op.inputs, wanted, strict=True)]
        self.ops.append(op)
        for name in op.outputs:
            self.layout[name] = result

    def _pass(self, op: Op) -> None:
        self.ops.append(op)
        result = NCHW
        if op.type == "ConvertTensor":
            result = str(op.params.get("dest", NCHW))
        elif op.type == "Input":
            result = str(op.params.get("dformat", NC4HW4))
        elif op.type == "Const":
            self.constants.update(op.outputs)
        for name in op.outputs:
            self.layout[name] = result

    def _of(self, name: str) -> str:
        return self.layout.get(name, NCHW)

    def _majority(self, op: Op) -> str:
        data = op.inputs[:1] if op.type == "Slice" else op.inputs
        votes = Counter(self._of(name) for name in data if name and name not in self.constants)
        if votes[NC4HW4] == votes[NCHW] and not self._demands(op, NCHW):
            return NC4HW4 if self._demands(op, NC4HW4) else NCHW
        return NC4HW4 if votes[NC4HW4] > votes[NCHW] else NCHW

    def _demands(self, op: Op, layout: str) -> bool:
        return any(layout in self.demand.get(name, ()) for name in op.outputs)

    def _want(self, name: str, layout: str, reader: Op) -> str:
        if not name or name in self.constants or self._of(name) == layout:
            return name
        key = (name, layout)
        if key not in self.converted:
            out = self._fresh(f"{name}___tr4{reader.name}")
            self._convert(name, out, layout)
            self.converted[key] = out
        return self.converted[key]

    def _convert(self, source: str, out: str, layout: str) -> None:
        params = {"source": self._of(source), "dest": layout}
        self.ops.append(Op("ConvertTensor", out, [source], [out], "TensorConvertInfo", params))
        self.layout[out] = layout
        self.count += 1

    def _plain_outputs(self) -> None:
        """A blocked output is renamed and converted under its own name."""
        for name in dict.fromkeys(self.body.outputs):
            if self._of(name) == NCHW:
                continue
            inner = self._fresh(f"{name}__before_tr")
            for op in self.ops:
                op.inputs = [inner if read == name else read for read in op.inputs]
                op.outputs = [inner if made == name else made for made in op.outputs]
            self.layout[inner] = self.layout[name]
            self._convert(inner, name, NCHW)

    def _fresh(self, stem: str) -> str:
        name, serial = stem, 0
        while name in self.taken:
            serial += 1
            name = f"{stem}__{serial}"
        self.taken.add(name)
        return name


def _demand(body: Model | SubGraph) -> dict[str, set[str]]:
    """Which layouts the readers of each tensor work on, through operators that take either."""
    demand: dict[str, set[str]] = {name: {NCHW} for name in body.outputs}
    for op in reversed(body.ops):
        if op.type in ANY_LAYOUT_OPS:
            continue
        beyond = set().union(*(demand.get(name, set()) for name in op.outputs))
        for index, name in enumerate(op.inputs):
            if op.type in BLOCKED_OPS:
                wanted = {NC4HW4} if index == 0 else {NCHW}
            elif op.type in UNIFORM_OPS or (op.type in FOLLOWING_OPS and index == 0):
                wanted = beyond
            else:
                wanted = {NCHW}
            demand.setdefault(name, set()).update(wanted)
    return demand
