"""Running a model layer by layer over a data set, float and quantized side by side.

`Stepper` cuts the operators of a model into segments that end where the next layers with weights have their
inputs. Each segment is a small model of its own and runs on all samples before the next one starts, so that
the weights of a layer can be changed once its inputs are known, and later layers see what the change does. The
whole costs one pass of the data over the float model and one over the quantized model, however many layers
there are. Between segments only the tensors that are still needed are kept, in memory up to a budget and in a
temporary file beyond it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq import _native
from mnnq.errors import ConfigError, InputError, UnsupportedError
from mnnq.ir.model import WEIGHT_OPS, Model, Op
from mnnq.runtime.session import InferenceSession, SessionOptions
from mnnq.writer.to_mnn import to_bytes

Array = npt.NDArray[Any]

#: Bytes of activations kept in memory by default; what goes beyond lies in a temporary file.
MEMORY_BUDGET = 1 << 30

_CONSTANTS = frozenset({"Const", "TrainableParam"})

_DTYPES = {"float32": "DT_FLOAT", "int32": "DT_INT32", "uint8": "DT_UINT8", "int8": "DT_INT8"}


@dataclass
class _Spilled:
    """An array in the temporary file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class _Store:
    """Arrays by (side, tensor, sample); the oldest ones move to a file when memory runs out."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._held = 0
        self._arrays: dict[tuple[str, int], Array | _Spilled] = {}
        self._file: Any = None

    def put(self, name: str, sample: int, array: Array) -> None:
        old = self._arrays.pop((name, sample), None)
        if old is not None and not isinstance(old, _Spilled):
            self._held -= old.nbytes
        if self._held + array.nbytes > self._budget:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by `close`
            offset = self._file.seek(0, 2)
            self._file.write(np.ascontiguousarray(array).data)
            self._arrays[name, sample] = _Spilled(offset, array.shape, array.dtype)
            return
        self._held += array.nbytes
        self._arrays[name, sample] = array

    def get(self, name: str, sample: int) -> Array:
        held = self._arrays[name, sample]
        if isinstance(held, _Spilled):
            self._file.seek(held.offset)
            count = int(np.prod(held.shape, dtype=np.int64)) * held.dtype.itemsize
            return np.frombuffer(self._file.read(count), held.dtype).reshape(held.shape)
        return held

    def drop(self, keep: set[str]) -> None:
        for key in [key for key in self._arrays if key[0] not in keep]:
            held = self._arrays.pop(key)
            if not isinstance(held, _Spilled):
                self._held -= held.nbytes
        if self._file is not None and not any(isinstance(held, _Spilled) for held in self._arrays.values()):
            self._file.truncate(0)

    def close(self) -> None:
        self._arrays.clear()
        if self._file is not None:
            self._file.close()


@dataclass
class Step:
    """Layers whose inputs are known now.

    Attributes
    ----------
    layers
        Output tensors of operators with `Convolution2D` weights, in the order of the model.
    """

    layers: list[str]
    _stepper: Stepper = field(repr=False)

    def inputs(self, layer: str) -> Iterator[tuple[Array, Array]]:
        """Input of a layer, sample by sample: in the float model, in the quantized model.

        The two are the same array where nothing before the layer differs.
        """
        name = self._stepper.layer(layer)[0].inputs[0]
        for sample in range(self._stepper.samples):
            yield self._stepper.tensors(name, sample)


class _Side:
    """One of the two models, and how far it has run."""

    def __init__(self, model: Model, mark: str) -> None:
        self.model, self.mark = model, mark
        self.constants = {op.outputs[0]: op for op in model.ops if op.type in _CONSTANTS}
        self.known = {*self.constants, *model.inputs}
        self.done = {i for i, op in enumerate(model.ops) if op.type == "Input" or op.type in _CONSTANTS}

    @property
    def finished(self) -> bool:
        return len(self.done) == len(self.model.ops)

    def ready(self, op: Op) -> bool:
        return all(not name or name in self.known for name in op.inputs)

    def pending(self) -> list[str]:
        """Layers that could run now."""
        return [
            op.outputs[0] for i, op in enumerate(self.model.ops)
            if i not in self.done and has_weights(op) and self.ready(op)
        ]  # fmt: skip

    def advance(self, layers: Sequence[str]) -> list[Op]:
        """Operators to run now: `layers`, and all that need no further weights."""
        segment = {i for i, op in enumerate(self.model.ops) if i not in self.done and op.outputs[0] in layers}
        for i in segment:
            self.known.update(self.model.ops[i].outputs)
        for i, op in enumerate(self.model.ops):
            if i not in self.done and i not in segment and not has_weights(op) and self.ready(op):
                segment.add(i)
                self.known.update(op.outputs)
        self.done |= segment
        return [self.model.ops[i] for i in sorted(segment)]

    def needed(self) -> set[str]:
        """Tensors that operators still to come read, and the outputs."""
        coming = (op for i, op in enumerate(self.model.ops) if i not in self.done)
        return {name for op in coming for name in op.inputs if name} | set(self.model.outputs)


class Stepper:
    """Two models of the same layers, run in step over samples.

    Parameters
    ----------
    float_model
        The reference; it is not changed.
    model
        The model whose layers are being changed. Its operators with weights must be those of `float_model`; the rest
        may differ.
    samples
        Inputs by name, one mapping per sample; read once.
    threads
        Threads of the runtime; None for all CPUs.
    memory
        Bytes of activations to keep in memory; what goes beyond lies in a temporary file.

    Raises
    ------
    ConfigError
        There is no sample, or the models differ in their layers.
    InputError
        A sample does not fit the inputs of the model.
    UnsupportedError
        The runtime cannot run the model.

    Examples
    --------
    >>> with Stepper(float_model, model, samples) as stepper:  # doctest: +SKIP
    ...     for step in stepper:
    ...         for layer in step.layers:
    ...             exact_op, op = stepper.layer(layer)
    ...             for exact, actual in step.inputs(layer):
    ...                 ...
    ...             op.params["bias"] = ...
    """

    def __init__(
        self,
        float_model: Model,
        model: Model,
        samples: Iterable[Mapping[str, Array]],
        *,
        threads: int | None = None,
        memory: int = MEMORY_BUDGET,
    ) -> None:
        self._layers = {side: _layers(m) for side, m in (("=", float_model), ("~", model))}
        if list(self._layers["="]) != list(self._layers["~"]):
            msg = "the two models do not have the same layers with weights in the same order"
            raise ConfigError(msg, file=None if model.source is None else str(model.source))
        self._exact, self._actual = _Side(float_model, "="), _Side(model, "~")
        self._options = SessionOptions() if threads is None else SessionOptions(threads=threads)
        self._store = _Store(memory)
        #: Tensors that are the same in both models.
        self._shared: set[str] = set(model.inputs)
        self.samples = 0
        self._feed(samples)

    def __enter__(self) -> Stepper:  # noqa: PYI034 -- `Self` needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget all activations."""
        self._store.close()

    def layer(self, name: str) -> tuple[Op, Op]:
        """Return the operator of a layer in the float model and in the other, by its output tensor."""
        return self._layers["="][name], self._layers["~"][name]

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self._layers["~"])

    def linear(self, op: Op) -> Callable[[Array], Array]:
        """Return a function that applies a layer without its bias and activation to an input ``[N, C, H, W]``."""
        outputs = int(op.params["common"]["outputCount"])
        params = {key: value for key, value in op.params.items() if key != "symmetricQuan"}
        params["common"] = {**params["common"], "relu": False, "relu6": False}
        params["bias"] = np.zeros(outputs, np.float32)
        name, result = op.inputs[0], op.outputs[0]

        def run(x: Array) -> Array:
            source = _input_op(name, [x.shape], x.dtype)
            part = Model(ops=[source, replace(op, params=params)], outputs=[result])
            session = _native.NativeSession(to_bytes(part), threads=self._options.threads, allow_nan=True)
            return session.run([result], {name: np.require(x, requirements=["C", "A"])})[0]

        return run

    def _feed(self, samples: Iterable[Mapping[str, Array]]) -> None:
        names = self._actual.model.inputs
        session: InferenceSession | None = None
        for sample in samples:
            if session is None:
                # Inputs alone: the whole model would lie in memory twice more.
                source = self._exact.model
                inputs = [op for op in source.ops if op.type == "Input"]
                session = InferenceSession(
                    to_bytes(replace(source, ops=inputs, outputs=list(source.inputs), tensor_quant={})),
                    self._options,
                )
            missing = [name for name in names if name not in sample]
            unknown = [name for name in sample if name not in names]
            if missing or unknown:
                msg = f"a calibration sample has the inputs {sorted(sample)}, wanted {sorted(names)}"
                raise InputError(msg, key=(missing or unknown)[0])
            for name in names:
                self._store.put(f"={name}", self.samples, session.feed(name, sample[name]))
            self.samples += 1
        if self.samples == 0:
            msg = "the calibration data set is empty"
            raise ConfigError(msg, key="calib")

    def tensors(self, name: str, sample: int) -> tuple[Array, Array]:
        """Return a tensor of a sample: in the float model, in the quantized model."""
        exact = self._store.get(f"={name}", sample)
        return exact, exact if name in self._shared else self._store.get(f"~{name}", sample)

    def divide(self, name: str, factors: npt.NDArray[np.float64]) -> None:
        """Divide the channels of a tensor ``[N, C, H, W]`` that is kept of the quantized model.

        What makes it must have been changed alike; in the float model it stays.
        """
        by = (1 / factors).astype(np.float32)[:, None, None]
        for sample in range(self.samples):
            self._store.put(f"~{name}", sample, self.tensors(name, sample)[1] * by)
        self._shared.discard(name)

    # -- steps

    def __iter__(self) -> Iterator[Step]:
        """Layers in the order of the graph. The layers of a step must be finished before the next one is taken."""
        pending: list[str] = []
        while True:
            self._advance(pending)
            pending = [name for name in self._actual.pending() if name in self._exact.pending()]
            if not pending:
                break
            yield Step(pending, self)
        if not self._actual.finished:
            stuck = next(op for i, op in enumerate(self._actual.model.ops) if i not in self._actual.done)
            raise UnsupportedError([f"{stuck.name}: its inputs are never computed"])

    def outputs(self) -> Iterator[tuple[list[Array], list[Array]]]:
        """Outputs of each sample, float and quantized; after the last step."""
        for sample in range(self.samples):
            pairs = [self.tensors(name, sample) for name in self._actual.model.outputs]
            yield [exact for exact, _ in pairs], [actual for _, actual in pairs]

    def _advance(self, layers: Sequence[str]) -> None:
        """Run what can be run on all samples: in the float model, and in the other where it differs."""
        exact_ops, ops = self._exact.advance(layers), self._actual.advance(layers)
        wanted = self._run(self._exact, exact_ops)
        same = _same_ops(exact_ops, ops) and self._shared.issuperset(
            name for name in _sources(ops) if name not in self._actual.constants
        )
        if same:
            self._shared.update(wanted)
        else:
            self._run(self._actual, ops)
        needed = self._exact.needed() | self._actual.needed()
        self._store.drop({f"{mark}{name}" for name in needed for mark in "=~"})

    def _run(self, side: _Side, ops: Sequence[Op]) -> list[str]:
        """Run some operators of a model; returns the tensors that are kept."""
        needed = side.needed()
        wanted = [name for op in ops for name in op.outputs if name in needed]
        if not wanted:
            return []
        sources = _sources(ops)
        live = [name for name in sources if name not in side.constants]

        def value(name: str, sample: int) -> Array:
            exact, actual = self.tensors(name, sample)
            return exact if side is self._exact else actual

        session = self._session(side, ops, sources, wanted, value)
        for sample in range(self.samples):
            feeds = {name: np.require(value(name, sample), requirements=["C", "A"]) for name in live}
            for name, array in zip(wanted, session.run(wanted, feeds), strict=True):
                if array.dtype.name not in _DTYPES:
                    raise UnsupportedError([f"{name}: tensors of {array.dtype.name} cannot be carried on"])
                self._store.put(f"{side.mark}{name}", sample, array)
        return wanted

    def _session(
        self,
        side: _Side,
        ops: Sequence[Op],
        sources: Sequence[str],
        wanted: list[str],
        value: Callable[[str, int], Array],
    ) -> _native.NativeSession:
        """A session of some operators of a model."""
        live = [name for name in sources if name not in side.constants]
        shapes = {name: [value(name, sample).shape for sample in range(self.samples)] for name in live}
        inputs = [_input_op(name, shapes[name], value(name, 0).dtype) for name in live]
        constants = [side.constants[name] for name in sources if name in side.constants]
        part = replace(side.model, ops=[*inputs, *constants, *ops], outputs=wanted, signature=None)
        names = {name for op in part.ops for name in (*op.inputs, *op.outputs)}
        part.tensor_quant = {name: info for name, info in part.tensor_quant.items() if name in names}
        part.net = {key: value for key, value in part.net.items() if key != "extraInfo"}
        return _native.NativeSession(to_bytes(part), threads=self._options.threads, allow_nan=True)


def has_weights(op: Op) -> bool:
    """Whether an operator is a layer with constant weights."""
    return op.type in WEIGHT_OPS and op.param_type == "Convolution2D" and len(op.inputs) == 1


def _layers(model: Model) -> dict[str, Op]:
    return {op.outputs[0]: op for op in model.ops if has_weights(op)}


def _sources(ops: Sequence[Op]) -> list[str]:
    """Tensors that some operators read and do not make."""
    made = {name for op in ops for name in op.outputs}
    return list(dict.fromkeys(name for op in ops for name in op.inputs if name and name not in made))


def _same_ops(exact: Sequence[Op], ops: Sequence[Op]) -> bool:
    """Whether operators of the two models compute the same."""
    return len(exact) == len(ops) and all(
        a.type == b.type and a.inputs == b.inputs and a.outputs == b.outputs and _same(a.params, b.params)
        for a, b in zip(exact, ops, strict=True)
    )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return a is b
    return bool(a == b)


def _input_op(name: str, shapes: Sequence[tuple[int, ...]], dtype: np.dtype[Any]) -> Op:
    """An input of a segment: lengths that are the same in all samples are fixed."""
    if len({len(shape) for shape in shapes}) > 1:
        raise UnsupportedError([f"{name}: its rank differs between samples"])
    dims = [axis[0] if len(set(axis)) == 1 else -1 for axis in zip(*shapes, strict=True)]
    params = {"dims": np.asarray(dims, np.int32), "dtype": _DTYPES[dtype.name], "dformat": "NCHW"}
    return Op("Input", name, [], [name], "Input", params)
