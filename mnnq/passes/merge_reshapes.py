"""Reshapes of reshapes are merged, and element-wise operators move before them.

A matrix product is a 1x1 convolution over rows ``[rows, columns, 1, 1]`` with a Reshape on either side. Between
two of them (the feed-forward part of a transformer) the reshapes then meet and cancel, so that the activation and
the next product work on the blocked layout directly.
"""

from __future__ import annotations

from mnnq.ir.model import Model, Op, SubGraph
from mnnq.passes.dead_ops import bodies

#: Operators of one input that work element by element, whatever the shape.
ELEMENTWISE_OPS = frozenset({"Cast", "ELU", "ReLU", "ReLU6", "Selu", "UnaryOp"})


def merge_reshapes(model: Model) -> int:
    """Rewrite in place; return the number of rewrites.

    * ``Reshape -> element-wise`` (the only reader) becomes ``element-wise -> Reshape``.
    * ``Reshape(Reshape(x), target)`` becomes ``Reshape(x, target)`` when the constant target copies no size.
    * ``Reshape`` to ``[-1, C, 1, 1]`` of a value that has this form already is dropped.
    """
    count = 0
    for body in bodies(model):
        while True:
            changed = _Merger(body, model).run()
            count += changed
            if not changed:
                break
    return count


class _Merger:
    def __init__(self, body: Model | SubGraph, model: Model) -> None:
        self.body = body
        self.pinned = set(body.outputs) | set(model.tensor_quant)
        self.producers: dict[str, Op] = {}
        self.uses: dict[str, int] = {}
        for op in body.ops:
            self.producers.update(dict.fromkeys(op.outputs, op))
            for name in op.inputs:
                self.uses[name] = self.uses.get(name, 0) + 1

    def run(self) -> int:
        count = 0
        for index, op in enumerate(self.body.ops):
            if op.type in ELEMENTWISE_OPS and op.inputs:
                count += self._move_before(index, op)
        if count:
            return count  # the maps are stale: start over
        renames: dict[str, str] = {}
        for op in self.body.ops:
            op.inputs = [renames.get(name, name) for name in op.inputs]
            if self._target(op) is None:
                continue
            count += self._skip_inner(op)
            if self._is_identity(op) and op.outputs[0] not in self.pinned:
                renames[op.outputs[0]] = op.inputs[0]
                count += 1
        self.body.ops = [
            op for op in self.body.ops if not (op.type == "Reshape" and op.outputs[0] in renames)
        ]
        return count

    def _target(self, op: Op) -> list[int] | None:
        """Constant target of a Reshape."""
        if op.type != "Reshape" or len(op.inputs) != 2 or op.params.get("dimType", "NCHW") != "NCHW":
            return None
        const = self.producers.get(op.inputs[1])
        values = const.params.get("int32s") if const is not None and const.type == "Const" else None
        return None if values is None else [int(value) for value in values]

    def _move_before(self, index: int, op: Op) -> bool:
        reshape = self.producers.get(op.inputs[0])
        if reshape is None or reshape.type != "Reshape" or len(op.inputs) != 1 or len(op.outputs) != 1:
            return False
        between, result = op.inputs[0], op.outputs[0]
        if self.uses[between] != 1 or between in self.pinned:
            return False
        if not any(source is reshape for source in self.body.ops[:index]):
            return False
        # A new name for what lies between: it is not what the source calls so, neither in value nor in shape.
        inner = self._fresh(f"{result}__before_reshape")
        op.inputs, op.outputs = [reshape.inputs[0]], [inner]
        reshape.inputs, reshape.outputs = [inner, *reshape.inputs[1:]], [result]
        ops = self.body.ops
        ops[next(i for i, source in enumerate(ops) if source is reshape)] = op
        ops[index] = reshape
        del self.producers[between]
        self.producers[inner], self.producers[result] = op, reshape
        self.uses[inner] = 1
        return True

    def _fresh(self, stem: str) -> str:
        name, serial = stem, 0
        while name in self.producers:
            serial += 1
            name = f"{stem}__{serial}"
        return name

    def _skip_inner(self, op: Op) -> bool:
        target, inner = self._target(op), self.producers.get(op.inputs[0])
        if target is None or 0 in target or inner is None or inner.type != "Reshape":
            return False
        if inner.params.get("dimType", "NCHW") != "NCHW" or inner is op:
            return False
        op.inputs = [inner.inputs[0], op.inputs[1]]
        return True

    def _is_identity(self, op: Op) -> bool:
        target = self._target(op)
        if target is None or len(target) != 4 or target[0] != -1 or target[2:] != [1, 1]:
            return False
        return self._columns(op.inputs[0]) == target[1]

    def _columns(self, name: str) -> int | None:
        """C of a value of the form [rows, C, 1, 1], None for others."""
        op = self.producers.get(name)
        if op is None or not op.inputs:
            return None
        if op.type in ELEMENTWISE_OPS:
            return self._columns(op.inputs[0])
        target = self._target(op)
        if target is not None:
            return target[1] if len(target) == 4 and target[0] == -1 and target[2:] == [1, 1] else None
        if op.type != "Convolution" or self._columns(op.inputs[0]) is None:
            return None
        common = op.params.get("common", {})
        moves = [common.get(key, 1) for key in ("kernelX", "kernelY", "strideX", "strideY")]
        pads = [common.get("padX", 0), common.get("padY", 0), *common.get("pads", ())]
        plain = moves == [1, 1, 1, 1] and not any(int(pad) for pad in pads)
        return int(common["outputCount"]) if plain else None
