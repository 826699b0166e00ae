"""Which tensors of a model get codes, and which of them share one set.

A tensor with codes is described in the file; an operator computes on codes when all its tensors are described and the
runtime has an integer form of it. What is said here of MNN's runtime was found by running every operator, in version
3.6.1 on x86:

* Convolutions, sums, differences and products of tensors, tables of unary functions and PReLU agree with the formulas.
* Copies (layout, reshape, permutation, slices, concatenation) and interpolation want one set of codes for all their tensors.
* A maximum pooling with one set of codes is wrong when codes are negative, an average pooling truncates: pooled tensors get
  codes of their own, which makes the runtime compute them in float, exactly.
  Where a concatenation joins the pooled tensor with what is pooled, it stays float.
* A table has no entry for the code -128: tensors that feed one have codes from -127 on.
* A sum with a fused ReLU cuts at the code 0 instead of the code of 0: the ReLU is dropped where the codes of the result begin
  at zero anyway.
* Magnitude, negation and sign of codes ignore the code of 0: what they read stays float.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from mnnq.errors import ConfigError
from mnnq.ir.model import Model, Op
from mnnq.quantization.offline.tables import table_function

#: Convolutions that compute on codes.
CONVOLUTIONS = frozenset({"Convolution", "ConvolutionDepthwise"})

#: Operators whose weights become codes although they compute in float.
STORED = frozenset({"Deconvolution", "DeconvolutionDepthwise"})

#: Operators that move values; the first input is data, further ones are not.
COPIES = frozenset(
    {
        "BatchToSpaceND",
        "ConvertTensor",
        "Copy",
        "Crop",
        "DepthToSpace",
        "Dropout",
        "ExpandDims",
        "Flatten",
        "Identity",
        "Interp",
        "Permute",
        "Reshape",
        "Resize",
        "Slice",
        "SliceTf",
        "SpaceToBatchND",
        "SpaceToDepth",
        "Squeeze",
        "StridedSlice",
        "Transpose",
        "Unpack",
        "Unsqueeze",
    }
)

#: Operators that move values of all their inputs.
_JOINS = frozenset({"Concat", "Pack"})

#: Element-wise operators of two tensors that have an integer form.
_BINARY = frozenset({"ADD", "SUB", "MUL"})

#: Unary functions that MNN computes on codes without a table, and wrongly.
_WRONG = frozenset({"ABS", "NEG", "SIGN"})

#: Pooling: computed in float between tensors with codes.
_POOLS = frozenset({"Pooling", "Pooling3D"})


@dataclass
class Layout:
    """The tensors with codes and how they hang together.

    Attributes
    ----------
    described
        Tensors that get codes.
    groups
        Representative of each tensor with codes; tensors with the same one share their codes.
    pooled
        Representative of a pooled tensor and that of what it pools: the codes are the same, told apart by a hair.
    tables
        Representatives of tensors that feed a table.
    integer
        Operators that compute on codes, by ``id``.
    reasons
        Why an operator does not, by ``id``.
    """

    described: set[str] = field(default_factory=set)
    groups: dict[str, str] = field(default_factory=dict)
    pooled: dict[str, str] = field(default_factory=dict)
    tables: set[str] = field(default_factory=set)
    integer: set[int] = field(default_factory=set)
    reasons: dict[int, str] = field(default_factory=dict)

    def members(self) -> dict[str, list[str]]:
        """Tensors by representative."""
        found: dict[str, list[str]] = {}
        for name in sorted(self.described):
            found.setdefault(self.groups[name], []).append(name)
        return found


def match_skips(model: Model, patterns: Iterable[str]) -> set[str]:
    """Names of the operators that patterns name.

    Raises
    ------
    ConfigError
        A pattern matches no operator.
    """
    names = [op.name for op in model.ops if op.type not in ("Input", "Const")]
    found: set[str] = set()
    for pattern in patterns:
        exact = [name for name in names if name == pattern or name == f"{pattern}__matmul_converted"]
        hits = exact or [name for name in names if fnmatchcase(name, pattern)]
        if not hits:
            close = _nearest(pattern, names)
            hint = f"; did you mean {close!r}?" if close else ""
            msg = f"{pattern!r} matches no operator of the model{hint}"
            raise ConfigError(msg, key="skip")
        found.update(hits)
    return found


def _nearest(name: str, names: list[str]) -> str | None:
    import difflib

    return next(iter(difflib.get_close_matches(name, names, 1)), None)


class _Planner:
    def __init__(self, model: Model, floats: set[str], skip: set[str], excluded: set[str]) -> None:
        self.model = model
        wrong = {
            op.inputs[0] for op in model.ops if op.type == "UnaryOp" and op.params.get("opType") in _WRONG
        }
        self.floats = floats - excluded - wrong
        self.skip = skip
        self.producer = {name: op for op in model.ops for name in op.outputs}
        self.readers: dict[str, list[Op]] = {}
        for op in model.ops:
            for name in op.inputs:
                self.readers.setdefault(name, []).append(op)
        self.parent: dict[str, str] = {}
        self.layout = Layout()

    def run(self) -> Layout:
        ops = [op for op in self.model.ops if op.type not in ("Input", "Const")]
        anchors = [op for op in ops if self._is_anchor(op)]
        described: set[str] = set()
        for op in anchors:
            described.update((op.inputs[0], op.outputs[0]))
        self._spread(ops, described)
        self.layout.described = described
        self._join(ops)
        self._decide(ops)
        self._drop_unused(ops)
        self.layout.groups = {name: self._root(name) for name in self.layout.described}
        self._mark(ops)
        return self.layout

    def _is_anchor(self, op: Op) -> bool:
        """Whether an operator is worth codes for its own sake."""
        if op.type not in CONVOLUTIONS | STORED or op.name in self.skip:
            return False
        return len(op.inputs) == 1 and op.inputs[0] in self.floats and op.outputs[0] in self.floats

    def _data(self, op: Op) -> list[str]:
        """Inputs and outputs that must have codes for the operator to compute on codes; empty if it never does."""
        if op.name in self.skip:
            return []
        if op.type in CONVOLUTIONS:
            return [*op.inputs, *op.outputs] if len(op.inputs) == 1 else []
        if op.type in COPIES:
            return [op.inputs[0], *op.outputs]
        if op.type in _JOINS or (op.type == "BinaryOp" and op.params.get("opType", "ADD") in _BINARY):
            return [*op.inputs, *op.outputs]
        if op.type == "PReLU" or (op.type == "ReLU" and op.params.get("slope")):
            return [op.inputs[0], *op.outputs]
        if table_function(op) is not None:
            return [op.inputs[0], *op.outputs]
        return []

    def _spread(self, ops: list[Op], described: set[str]) -> None:
        """Codes for what lies between operators on codes, so that nothing is converted there and back."""
        changed = True
        while changed:
            changed = False
            for op in ops:
                if op.type in _POOLS and op.outputs[0] in described and op.inputs[0] not in described:
                    # Otherwise MNN gives the input the codes of the output and pools codes.
                    described.update(name for name in op.inputs[:1] if name in self.floats)
                    changed |= op.inputs[0] in described
                if op.type in _POOLS and op.inputs[0] in described and op.outputs[0] not in described:
                    # Otherwise runtimes keep the codes of the input, and an average is rounded to them.
                    described.add(op.outputs[0])
                    changed = True
                data = self._data(op)
                if not data or op.type in CONVOLUTIONS or not all(name in self.floats for name in data):
                    continue
                missing = [name for name in data if name not in described]
                if not missing or len(missing) == len(data) or not self._gains(op, described):
                    continue
                described.update(missing)
                changed = True

    def _gains(self, op: Op, described: set[str]) -> bool:
        """Whether codes before an operator lead to codes behind it."""
        count = 2 if op.type == "BinaryOp" else len(op.inputs) if op.type in _JOINS else 1
        before = all(name in described or self._given(name) for name in op.inputs[:count])
        before = before and any(name in described for name in op.inputs[:count])
        behind = all(self._wanted(name, described, set()) for name in op.outputs)
        if op.type in COPIES and any(name in described for name in op.outputs):
            # The layout conversion in front of a convolution: codes are made before it, from graph inputs too.
            return True
        return before and behind

    def _given(self, name: str) -> bool:
        """Whether a tensor is an input of the model, perhaps moved: it can be given codes where it is read."""
        while (op := self.producer.get(name)) is not None and op.type in COPIES:
            name = op.inputs[0]
        return name in self.floats and op is not None and op.type == "Input"

    def _wanted(self, name: str, described: set[str], seen: set[str]) -> bool:
        """Whether some reader of a tensor computes on codes, perhaps behind copies and functions."""
        if name in described:
            return True
        if name in seen:
            return False
        seen.add(name)
        for reader in self.readers.get(name, []):
            data = self._data(reader) or (reader.outputs if reader.type in _POOLS else [])
            if not all(n in self.floats for n in data):
                continue  # such as a product with a constant: it stays float whatever comes before
            if reader.type in CONVOLUTIONS and data:
                return True
            if data and any(self._wanted(out, described, seen) for out in reader.outputs):
                return True
        return False

    def _root(self, name: str) -> str:
        while (parent := self.parent.get(name, name)) != name:
            name = parent
        return name

    def _join(self, ops: list[Op]) -> None:
        described = self.layout.described
        for op in ops:
            if op.type not in COPIES | _JOINS:
                continue
            data = [name for name in self._data(op) or () if name in described]
            if len(data) < len(self._data(op)):
                continue
            for name in data[1:]:
                first, other = self._root(data[0]), self._root(name)
                if first != other:
                    self.parent[other] = first

    def _decide(self, ops: list[Op]) -> None:
        described = self.layout.described
        for op in ops:
            data = self._data(op)
            if data and all(name in described for name in data):
                self.layout.integer.add(id(op))
            elif op.name in self.skip:
                self.layout.reasons[id(op)] = "skipped as asked"
            elif op.type in STORED:
                self.layout.reasons[id(op)] = (
                    "transposed convolutions compute in float; weights are codes where its tensors have codes"
                )
            elif not data:
                self.layout.reasons[id(op)] = "no integer form"
            else:
                self.layout.reasons[id(op)] = "a tensor of it is float"

    def _drop_unused(self, ops: list[Op]) -> None:
        """Tensors that no operator on codes touches need none."""
        used = {name for op in ops if id(op) in self.layout.integer for name in self._data(op)}
        stored = {n for op in ops if op.type in STORED for n in (op.inputs[0], op.outputs[0])}
        pooled = {n for op in ops if op.type in _POOLS for n in (op.inputs[0], op.outputs[0])}
        self.layout.described &= used | stored | pooled

    def _mark(self, ops: list[Op]) -> None:
        described = self.layout.described
        for op in ops:
            if table_function(op) is not None and id(op) in self.layout.integer:
                self.layout.tables.add(self.layout.groups[op.inputs[0]])
            if op.type not in _POOLS or op.params.get("type", "MAXPOOL") != "MAXPOOL":
                continue
            if op.inputs[0] in described and op.outputs[0] in described:
                target, source = self.layout.groups[op.outputs[0]], self.layout.groups[op.inputs[0]]
                if target != source:
                    self.layout.pooled[target] = source


def plan_layout(model: Model, floats: set[str], skip: set[str], excluded: set[str]) -> Layout:
    """Choose the tensors that get codes.

    Parameters
    ----------
    floats
        Float tensors of the main graph that are computed at run time.
    skip
        Names of operators left float.
    excluded
        Tensors left float.
    """
    while True:
        layout = _Planner(model, floats, skip, excluded).run()
        same = _pooled_in_place(model, layout)
        if not same:
            return layout
        # MNN would pool codes, and wrongly: these stay float, and with them what joins them to the rest.
        excluded = excluded | same


def _pooled_in_place(model: Model, layout: Layout) -> set[str]:
    """Results of pooling that share their codes with what is pooled, as an operator behind joins both."""
    groups = layout.groups
    return {
        op.outputs[0]
        for op in model.ops
        if op.type in _POOLS and op.outputs[0] in groups and groups.get(op.inputs[0]) == groups[op.outputs[0]]
    }
