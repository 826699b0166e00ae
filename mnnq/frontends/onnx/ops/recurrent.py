"""LSTM, GRU and RNN.

The input projection of all steps is one 1x1 convolution outside the loop, the recurrent projection a 1x1
convolution inside it: both are weights that can be quantized. The steps are the body of MNN's ``While``;
they are unrolled when their number is known and the copies of the recurrent weights stay small. Weights that
are computed at run time become matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.frontends.onnx.lowering import INT_LIMIT, Lowering, Unsupported
from mnnq.frontends.onnx.ops import _dims as dims
from mnnq.frontends.onnx.ops._dims import Size
from mnnq.frontends.onnx.ops._loops import counted_loop
from mnnq.frontends.onnx.ops._recurrent_activations import Activation, activations
from mnnq.frontends.onnx.registry import lowers
from mnnq.ir.graph import Node, ValueInfo

#: Unroll at most this many steps ...
MAX_UNROLLED_STEPS = 16
#: ... and only while the copies of the recurrent weights hold at most this many numbers (256 KiB of float32): every
#: step repeats them in the file. A single step is always unrolled.
MAX_UNROLLED_WEIGHTS = 1 << 16

FLOAT = np.dtype(np.float32)

#: A projection: a constant ``[out, in]`` with bias ``[out]``, or the names of tensors of these shapes.
Matrix = npt.NDArray[Any] | str

#: ``cell(builder, gates, states, suffix)``: states after one step; the first one is the output.
Cell = Callable[[Lowering, str, list[str], str], list[str]]


@dataclass(frozen=True)
class Shape:
    """Sizes of a recurrent operator: ``x [steps, batch, inputs]``, ``hidden`` units."""

    steps: Size
    batch: Size
    inputs: int
    hidden: int
    directions: int


@dataclass(frozen=True)
class Direction:
    """One direction of a recurrent operator."""

    index: int
    reverse: bool
    name: str


def project(b: Lowering, x: str, weight: Matrix, bias: Matrix | None, name: str) -> str:
    """``x [m, in] * weight^T + bias`` as a 1x1 convolution called `name` (constant weight) or a ``MatMul``.

    A constant `x` is multiplied here: the runtime dies of a convolution whose input is constant.
    """
    fixed = b.constant(x)
    if fixed is not None and not isinstance(weight, str) and not isinstance(bias, str):
        product = fixed @ weight.T + (0 if bias is None else bias)
        return b.const(product, "projected", np.float32)
    if isinstance(weight, str) or isinstance(bias, str):
        right = weight if isinstance(weight, str) else b.const(weight, f"{name}__weight", np.float32)
        y = b.emit("MatMul", [x, right], param_type="MatMul", transposeB=True, T="DT_FLOAT")
        if bias is None:
            return y
        return b.binary("ADD", y, bias if isinstance(bias, str) else b.const(bias, "bias", np.float32))
    out, inner = weight.shape
    common = {
        "padX": 0, "padY": 0, "kernelX": 1, "kernelY": 1, "strideX": 1, "strideY": 1, "dilateX": 1, "dilateY": 1,
        "padMode": "CAFFE", "group": 1, "outputCount": out, "inputCount": inner, "relu": False, "relu6": False,
    }  # fmt: skip
    made = b.emit(
        "Convolution", [b.reshape(x, [-1, inner, 1, 1])], b.fresh(name), param_type="Convolution2D", common=common,
        weight=np.ascontiguousarray(weight, np.float32).reshape(-1),
        bias=np.zeros(out, np.float32) if bias is None else np.ascontiguousarray(bias, np.float32),
        info=ValueInfo(FLOAT, (None, out, 1, 1)),
    )  # fmt: skip
    return b.reshape(made, [-1, out])


def _part(b: Lowering, x: Matrix, direction: int, start: int, end: int) -> Matrix:
    """Rows (or entries) start..end of one direction of a weight, bias or peephole tensor."""
    if not isinstance(x, str):
        return x[direction, start:end]
    sliced = dims.strided_slice(b, x, [direction, start], [direction + 1, end], [0, 1])
    return dims.squeeze(b, sliced, [0])


def _plus(b: Lowering, x: str, y: str) -> str:
    """``x + y``, without a constant zero."""
    fixed = b.constant(y)
    return x if fixed is not None and not fixed.any() else b.binary("ADD", x, y)


def _matrix(b: Lowering, name: str) -> Matrix | None:
    if not name:
        return None
    array = b.constant(name)
    return name if array is None else array


def _sum(b: Lowering, x: Matrix, y: Matrix) -> Matrix:
    if not isinstance(x, str) and not isinstance(y, str):
        total: npt.NDArray[Any] = x + y
        return total
    x, y = (v if isinstance(v, str) else b.const(v, "bias", np.float32) for v in (x, y))
    return b.binary("ADD", x, y)


def _tensor(b: Lowering, x: Matrix, stem: str) -> str:
    return x if isinstance(x, str) else b.const(x, stem, np.float32)


class Recurrence:
    """What LSTM, GRU and RNN have in common: inputs, directions, the loop over steps and the outputs."""

    def __init__(self, b: Lowering, node: Node, gates: int, *known: str) -> None:
        b.check_attributes(
            node, "direction", "hidden_size", "layout", "activations", "activation_alpha", "activation_beta",
            "clip", *known,
        )  # fmt: skip
        self.b, self.node, self.gates = b, node, gates
        self.layout = dims.int_attr(node, "layout", 0)
        direction = str(node.attrs.get("direction", "forward"))
        if direction not in ("forward", "reverse", "bidirectional"):
            msg = f"direction {direction!r}; known: forward, reverse, bidirectional"
            raise Unsupported(msg)
        weight, recurrent = _matrix(b, node.inputs[1]), _matrix(b, node.inputs[2])
        assert weight is not None
        assert recurrent is not None
        self.weight, self.recurrent, self.bias = weight, recurrent, _matrix(b, node.input(3))
        x = node.inputs[0]
        if self.layout:
            x = b.permute(x, [1, 0, 2])
        shapes = b.shape(node.inputs[1]), b.shape(node.inputs[2])
        hidden = node.attrs.get("hidden_size") or (shapes[1] or (None,))[-1]
        inputs = (shapes[0] or (None,))[-1]
        if not isinstance(hidden, int) or not isinstance(inputs, int):
            msg = "the sizes of the weights must be known"
            raise Unsupported(msg)
        directions = 2 if direction == "bidirectional" else 1
        self.shape = Shape(dims.size_of(b, x, 0), dims.size_of(b, x, 1), inputs, hidden, directions)
        self.x = x
        base = next(name for name in node.outputs if name)
        self.directions = [
            Direction(i, i == 1 or direction == "reverse", f"{base}__reverse" if i else base)
            for i in range(directions)
        ]

    def split_bias(self, direction: int) -> tuple[Matrix | None, Matrix | None]:
        """Biases of the input and of the recurrent projection, ``[gates * hidden]`` each."""
        if self.bias is None:
            return None, None
        rows = self.gates * self.shape.hidden
        return _part(self.b, self.bias, direction, 0, rows), _part(
            self.b, self.bias, direction, rows, 2 * rows
        )

    def joint_bias(self, direction: int) -> Matrix | None:
        """Sum of both biases."""
        first, second = self.split_bias(direction)
        return None if first is None or second is None else _sum(self.b, first, second)

    def recurrent_rows(self, direction: int, first: int, last: int) -> Matrix:
        """Recurrent weights of the gates first..last."""
        return _part(self.b, self.recurrent, direction, first * self.shape.hidden, last * self.shape.hidden)

    def projected(self, way: Direction, bias: Matrix | None) -> str:
        """The input projection of all steps, ``[steps, batch, gates * hidden]``."""
        rows = self.gates * self.shape.hidden
        weight = _part(self.b, self.weight, way.index, 0, rows)
        flat = self.b.reshape(self.x, [-1, self.shape.inputs])
        made = project(self.b, flat, weight, bias, f"{way.name}__input_projection")
        steps, batch = self.shape.steps, self.shape.batch
        if isinstance(steps, str) and isinstance(batch, str):
            return dims.reshape_to(self.b, made, [steps, batch, rows])
        return self.b.reshape(made, [d if isinstance(d, int) else -1 for d in (steps, batch)] + [rows])

    def initial(self, index: int, direction: int) -> str:
        """Initial state ``[batch, hidden]`` from input `index`, zeros when it is absent."""
        b, batch, hidden = self.b, self.shape.batch, self.shape.hidden
        if not self.node.has_input(index):
            if isinstance(batch, int) or self._unrolls():
                # One row is enough where it may be broadcast.
                rows = batch if isinstance(batch, int) else 1
                return b.const(np.zeros((rows, hidden), np.float32), "zeros")
            made = dims.broadcast_to(b, b.const(np.zeros((1, hidden), np.float32), "zeros"), [batch, hidden])
            b.note(made, ValueInfo(FLOAT, (None, hidden)))
            return made
        axis = 1 if self.layout else 0
        fixed = b.constant(self.node.inputs[index])
        if fixed is not None:
            return b.const(np.take(fixed, direction, axis), "initial", np.float32)
        one = dims.strided_slice(b, self.node.inputs[index], [direction], [direction + 1], [axis])
        return b.reshape(one, [batch if isinstance(batch, int) else -1, hidden])

    def run(
        self, way: Direction, gates: str, states: list[str], cell: Cell, captured: list[str]
    ) -> tuple[str, list[str]]:
        """All steps of one direction: outputs ``[steps, batch, hidden]`` and final states."""
        b, steps = self.b, self.shape.steps
        lengths = self.node.input(4)
        if lengths and isinstance(steps, int):
            fixed = b.constant(lengths)
            if fixed is not None and (fixed >= steps).all():
                lengths = ""
        if self._unrolls():
            return self._unrolled(way, gates, states, cell, lengths)
        count = dims.as_scalar(b, steps)
        column = b.reshape(lengths, [-1, 1]) if lengths else ""
        names = [gates, *captured, *([column] if column else [])]
        if isinstance(steps, str) and way.reverse:
            names.append(count)

        def step(body: Lowering, index: str, inner: list[str]) -> tuple[list[str], list[str]]:
            if way.reverse:
                end = (
                    dims.scalar(body, steps - 1)
                    if isinstance(steps, int)
                    else body.binary("SUB", count, dims.scalar(body, 1))
                )
                index = body.binary("SUB", end, index)
            at = dims.gather(body, gates, index, 0)
            new = cell(body, at, inner, "")
            return _masked(body, new, inner, column, index) if column else (new, [new[0]])

        finals, stacks = counted_loop(b, f"{way.name}__loop", count, states, names, step)
        y = stacks[0]
        if way.reverse:
            y = dims.backward(b, y, -1, -INT_LIMIT, 0, -1)
        return y, finals

    def _unrolls(self) -> bool:
        steps, hidden = self.shape.steps, self.shape.hidden
        if not isinstance(steps, int):
            return False
        weights = steps * self.gates * hidden * hidden
        return steps == 1 or (steps <= MAX_UNROLLED_STEPS and weights <= MAX_UNROLLED_WEIGHTS)

    def _unrolled(
        self, way: Direction, gates: str, states: list[str], cell: Cell, lengths: str
    ) -> tuple[str, list[str]]:
        b, steps = self.b, self.shape.steps
        assert isinstance(steps, int)
        column = b.reshape(lengths, [-1, 1]) if lengths else ""
        outputs = [""] * steps
        for position in range(steps):
            at = steps - 1 - position if way.reverse else position
            suffix = f"__step{at}" if steps > 1 else ""
            row = dims.squeeze(b, dims.strided_slice(b, gates, [at], [at + 1], [0]), [0])
            new = cell(b, row, states, suffix)
            made = [new[0]]
            if column:
                new, made = _masked(b, new, states, column, dims.scalar(b, at))
            states = new
            outputs[at] = dims.unsqueeze(b, made[0], [0])
        return (dims.concat(b, outputs, 0) if steps > 1 else outputs[0]), states

    def finish(self, outputs: list[str], finals: list[list[str]]) -> None:
        """Produce Y and the final states from those of the directions."""
        b, shape, names = self.b, self.shape, self.node.outputs
        for i, name in enumerate(names):
            if not name:
                continue
            parts = outputs if i == 0 else [states[i - 1] for states in finals]
            axis = (2 if self.layout else 1) if i == 0 else (1 if self.layout else 0)
            if i == 0 and self.layout:
                parts = [b.permute(_noted(b, part, shape), [1, 0, 2]) for part in parts]
            apart = [dims.unsqueeze(b, part, [axis], name if len(parts) == 1 else None) for part in parts]
            if len(parts) > 1:
                dims.concat(b, apart, axis, name)


def _noted(b: Lowering, x: str, shape: Shape) -> str:
    steps, batch = (d if isinstance(d, int) else None for d in (shape.steps, shape.batch))
    b.note(x, ValueInfo(FLOAT, (steps, batch, shape.hidden)))
    return x


def _masked(
    b: Lowering, new: list[str], old: list[str], lengths: str, at: str
) -> tuple[list[str], list[str]]:
    """Past the end of a sequence the states stay and the output is 0."""
    running = b.binary("GREATER", lengths, at)
    kept = []
    for fresh, before in zip(new, old, strict=True):
        fixed = b.constant(before)
        zero = fixed is not None and not fixed.any()
        no = b.const(np.float32(0), "zero") if zero else before
        kept.append(b.emit("Select", [running, fresh, no], info=b.info(fresh)))
    shown = b.binary("MUL", new[0], b.cast(running, "DT_FLOAT"))
    b.note(shown, b.info(new[0]))
    return kept, [shown]


def _state_info(b: Lowering, gates: str, hidden: int) -> ValueInfo:
    shape = b.shape(gates)
    return ValueInfo(FLOAT, (shape[0] if shape else None, hidden))


def _parts(b: Lowering, x: str, count: int, size: int) -> list[str]:
    """Cut ``[batch, count * size]`` into `count` parts."""
    if count == 1:
        return [x]
    outs = [b.fresh("gate") for _ in range(count)]
    return b.emit_many(
        "Slice", [x], outs, param_type="Slice", axis=1, sourceType="TORCH",
        slicePoints=np.full(count, size, np.int32), infos=[ValueInfo(FLOAT, (None, size))] * count,
    )  # fmt: skip


@lowers("LSTM")
def lstm(b: Lowering, node: Node) -> None:
    """``i, o, f = s(...)``, ``c' = f c + i g(...)``, ``h' = o h(c')``, with optional peepholes."""
    r = Recurrence(b, node, 4, "input_forget")
    hidden, couple = r.shape.hidden, dims.int_attr(node, "input_forget", 0)
    acts = activations(node, ["Sigmoid", "Tanh", "Tanh"], r.shape.directions)
    holes = _matrix(b, node.input(7))
    outputs, finals = [], []
    for way in r.directions:
        gates = r.projected(way, r.joint_bias(way.index))
        weight = r.recurrent_rows(way.index, 0, 4)
        peep = None
        if holes is not None:
            peep = [_part(b, holes, way.index, i * hidden, (i + 1) * hidden) for i in range(3)]
        captured = [m for m in (weight, *(peep or [])) if isinstance(m, str)]
        cell = _lstm_cell(weight, peep, acts[way.index], hidden, bool(couple), f"{way.name}__recurrent")
        y, last = r.run(way, gates, [r.initial(5, way.index), r.initial(6, way.index)], cell, captured)
        outputs.append(y)
        finals.append(last)
    r.finish(outputs, finals)


def _lstm_cell(
    weight: Matrix, peep: list[Matrix] | None, acts: list[Activation], hidden: int, couple: bool, name: str
) -> Cell:
    f, g, h = acts
    # The limit is on what the gates take in; the cell state that `h` reads is not limited.
    h = replace(h, clip=None)

    def cell(b: Lowering, gates: str, states: list[str], suffix: str) -> list[str]:
        state, memory = states
        total = _plus(b, gates, project(b, state, weight, None, name + suffix))
        i, o, forget, c = _parts(b, total, 4, hidden)
        if peep is not None:
            i = b.binary("ADD", i, b.binary("MUL", memory, _tensor(b, peep[0], "peephole")))
            forget = b.binary("ADD", forget, b.binary("MUL", memory, _tensor(b, peep[2], "peephole")))
        i = f(b, i)
        forget = b.binary("SUB", b.const(np.float32(1), "one"), i) if couple else f(b, forget)
        new = b.binary("ADD", b.binary("MUL", forget, memory), b.binary("MUL", i, g(b, c)))
        if peep is not None:
            o = b.binary("ADD", o, b.binary("MUL", new, _tensor(b, peep[1], "peephole")))
        out = b.binary("MUL", f(b, o), h(b, new))
        for tensor in (out, new):
            b.note(tensor, _state_info(b, gates, hidden))
        return [out, new]

    return cell


@lowers("GRU")
def gru(b: Lowering, node: Node) -> None:
    """``z, r = s(...)``, candidate ``n`` with the reset before or after its projection, ``h' = n + z (h - n)``."""
    r = Recurrence(b, node, 3, "linear_before_reset")
    after = bool(dims.int_attr(node, "linear_before_reset", 0))
    hidden = r.shape.hidden
    acts = activations(node, ["Sigmoid", "Tanh"], r.shape.directions)
    outputs, finals = [], []
    for way in r.directions:
        bias_in, bias_rec = r.split_bias(way.index)
        if after:
            weights = [r.recurrent_rows(way.index, 0, 3)]
        else:
            bias_in, bias_rec = r.joint_bias(way.index), None
            weights = [r.recurrent_rows(way.index, 0, 2), r.recurrent_rows(way.index, 2, 3)]
        gates = r.projected(way, bias_in)
        captured = [m for m in (*weights, bias_rec) if isinstance(m, str)]
        name = f"{way.name}__recurrent"
        cell = _gru_cell(weights, bias_rec, acts[way.index], hidden, name)
        y, last = r.run(way, gates, [r.initial(5, way.index)], cell, captured)
        outputs.append(y)
        finals.append(last)
    r.finish(outputs, finals)


def _gru_cell(
    weights: list[Matrix], bias: Matrix | None, acts: list[Activation], hidden: int, name: str
) -> Cell:
    f, g = acts

    def cell(b: Lowering, gates: str, states: list[str], suffix: str) -> list[str]:
        (state,) = states
        if len(weights) == 1:
            x_z, x_r, x_n = _parts(b, gates, 3, hidden)
            h_z, h_r, h_n = _parts(b, project(b, state, weights[0], bias, name + suffix), 3, hidden)
            z, reset = f(b, b.binary("ADD", x_z, h_z)), f(b, b.binary("ADD", x_r, h_r))
            n = g(b, b.binary("ADD", x_n, b.binary("MUL", reset, h_n)))
        else:
            x_z, x_r, x_n = _parts(b, gates, 3, hidden)
            h_z, h_r = _parts(b, project(b, state, weights[0], None, name + suffix), 2, hidden)
            z, reset = f(b, b.binary("ADD", x_z, h_z)), f(b, b.binary("ADD", x_r, h_r))
            kept = b.binary("MUL", reset, state)
            n = g(b, b.binary("ADD", x_n, project(b, kept, weights[1], None, f"{name}_candidate{suffix}")))
        new = b.binary("ADD", n, b.binary("MUL", z, b.binary("SUB", state, n)))
        b.note(new, _state_info(b, gates, hidden))
        return [new]

    return cell


@lowers("RNN")
def rnn(b: Lowering, node: Node) -> None:
    """``h' = f(W x + R h + biases)``."""
    r = Recurrence(b, node, 1)
    acts = activations(node, ["Tanh"], r.shape.directions)
    outputs, finals = [], []
    for way in r.directions:
        gates = r.projected(way, r.joint_bias(way.index))
        weight = r.recurrent_rows(way.index, 0, 1)
        cell = _rnn_cell(weight, acts[way.index][0], f"{way.name}__recurrent")
        captured = [weight] if isinstance(weight, str) else []
        y, last = r.run(way, gates, [r.initial(5, way.index)], cell, captured)
        outputs.append(y)
        finals.append(last)
    r.finish(outputs, finals)


def _rnn_cell(weight: Matrix, act: Activation, name: str) -> Cell:
    def cell(b: Lowering, gates: str, states: list[str], suffix: str) -> list[str]:
        new = act(b, _plus(b, gates, project(b, states[0], weight, None, name + suffix)))
        b.note(new, b.info(gates))
        return [new]

    return cell
