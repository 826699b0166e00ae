"""Comparing two versions of a model tensor by tensor, e.g. before and after quantization."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mnnq.api import load, load_mnn
from mnnq.data.dataset import Dataset, Feeds
from mnnq.data.inputs import input_specs
from mnnq.errors import ConfigError, InputError, ModelError
from mnnq.files import is_mnn
from mnnq.ir.model import Model
from mnnq.report.errors import ErrorSums, OutputError, finite
from mnnq.runtime.session import InferenceSession, SessionOptions
from mnnq.writer.to_mnn import to_bytes

#: What is compared: a file (ONNX or `.mnn`) or a model.
Source: TypeAlias = "str | os.PathLike[str] | Model"

#: Called after each sample with (samples done, samples in all, name of the sample).
Progress: TypeAlias = Callable[[int, int, str], None]

#: Operators whose results are no layers: they make data, or move it unchanged.
_NO_LAYERS = frozenset({"Input", "Const", "TrainableParam", "ConvertTensor"})


@dataclass(frozen=True)
class LayerError:
    """How far the result of one operator is off.

    Attributes
    ----------
    error
        Its name (that of the tensor), shape and errors.
    op_type
        The operator in the model that is compared.
    node
        Its name.
    added
        Noise that this layer adds: the power of the error of its output relative to the power of the output, less
        that of its worst input; 0 when it adds none. None where something is wrong with the tensor.
    """

    error: OutputError
    op_type: str
    node: str
    added: float | None = None


@dataclass(frozen=True)
class CompareResult:
    """Outcome of a comparison.

    Attributes
    ----------
    reference, model
        What was compared.
    samples
        Number of samples.
    data
        What they are.
    layers
        Every float tensor that both have, in order of computation; empty when layers were not asked for.
    outputs
        The outputs of the model.
    unmatched
        Tensors of the model that the reference does not have: they are not compared.
    min_sqnr_db, min_cosine
        Thresholds that the outputs must reach, or None.
    """

    reference: str
    model: str
    samples: int
    data: str
    layers: tuple[LayerError, ...]
    outputs: tuple[OutputError, ...]
    unmatched: tuple[str, ...] = ()
    min_sqnr_db: float | None = None
    min_cosine: float | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            msg = "a comparison needs samples"
            raise ConfigError(msg, key="data")

    @property
    def failures(self) -> tuple[str, ...]:
        """Why it did not pass, one line each."""
        found = ((out.name, self.failure(out)) for out in self.outputs)
        return tuple(f"output {name!r}: {failure}" for name, failure in found if failure is not None)

    def failure(self, output: OutputError) -> str | None:
        """What is wrong with an output; None when it passes."""
        if output.problem is not None:
            return output.problem
        if self.min_sqnr_db is not None and output.sqnr_db < self.min_sqnr_db:
            return f"SQNR {output.sqnr_db:.1f} dB is below {self.min_sqnr_db:g}"
        if self.min_cosine is not None and output.cosine < self.min_cosine:
            return f"cosine {output.cosine:.6f} is below {self.min_cosine:g}"
        return None

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong with an output and all reach the thresholds."""
        return not self.failures

    def worst(self, count: int = 10) -> tuple[LayerError, ...]:
        """The layers that add most noise, most first."""
        ranked = [layer for layer in self.layers if layer.added]
        return tuple(sorted(ranked, key=lambda layer: -(layer.added or 0.0))[:count])

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON can hold it (no infinities)."""
        return {
            "reference": self.reference,
            "model": self.model,
            "samples": self.samples,
            "data": self.data,
            "passed": self.passed,
            "failures": list(self.failures),
            "min_sqnr_db": self.min_sqnr_db,
            "min_cosine": self.min_cosine,
            "outputs": [out.to_dict() for out in self.outputs],
            "layers": [
                {
                    **layer.error.to_dict(),
                    "op_type": layer.op_type,
                    "node": layer.node,
                    "added": None if layer.added is None else finite(layer.added),
                }
                for layer in self.layers
            ],
            "unmatched": list(self.unmatched),
        }


def compare(
    reference: Source,
    model: Source,
    data: Collection[Feeds],
    *,
    layers: bool = True,
    min_sqnr_db: float | None = None,
    min_cosine: float | None = None,
    options: SessionOptions | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> CompareResult:
    """Run two versions of a model in mnnq's runtime on the same data and measure how far their tensors are apart.

    Tensors are matched by name. Codes of int8 tensors are compared as the numbers they stand for. Sums are kept, not
    tensors: memory is that of one sample.

    Parameters
    ----------
    reference, model
        Files (ONNX or `.mnn`) or models: the exact one and the one to judge. Both must have the same inputs and
        outputs.
    data
        Samples: mappings from input name to array, e.g. what `mnnq.data.open_dataset` returns.
    layers
        Compare every tensor (nothing is fused then), or only the outputs.
    min_sqnr_db, min_cosine
        Thresholds of `CompareResult.passed`.
    options
        Options of the sessions.

    Raises
    ------
    ConfigError
        The models differ in inputs or outputs, a threshold makes no sense, or there are no samples.
    InputError
        A sample does not fit.
    UnsupportedError
        The runtime lacks an operator of a model.
    FormatError, ModelError, OSError
        A file cannot be read.

    Examples
    --------
    >>> import mnnq, mnnq.data
    >>> photos = mnnq.data.open_dataset("photos/", mnnq.load("m.onnx"), preset="imagenet")  # doctest: +SKIP
    >>> result = mnnq.compare("m.onnx", "m-int8.mnn", photos)  # doctest: +SKIP
    >>> [(layer.error.name, layer.error.sqnr_db) for layer in result.worst(3)]  # doctest: +SKIP
    """
    _check_thresholds(min_sqnr_db, min_cosine)
    sides = _Side.of(reference, options), _Side.of(model, options)
    _check_ports(*sides)
    pair = _Pair(*sides)
    count = len(data)
    seen = 0
    for seen, feeds in enumerate(data, 1):
        try:
            pair.add(feeds, layers)
        except InputError as error:
            error.message = (
                f"sample {seen - 1}: {error.message}" if "sample" not in error.message else error.message
            )
            raise
        if progress is not None:
            progress(seen, count, "")
    if not seen:
        msg = "there are no samples in it"
        raise ConfigError(msg, key="data")
    return CompareResult(
        sides[0].name,
        sides[1].name,
        seen,
        data.description if isinstance(data, Dataset) else f"{seen} samples",
        pair.layer_errors(),
        pair.output_errors(),
        pair.unmatched(),
        min_sqnr_db,
        min_cosine,
    )


def _check_thresholds(min_sqnr_db: float | None, min_cosine: float | None) -> None:
    if min_sqnr_db is not None and not math.isfinite(min_sqnr_db):
        msg = f"{min_sqnr_db!r} is not possible; use a number of dB"
        raise ConfigError(msg, key="min_sqnr_db")
    if min_cosine is not None and not -1 <= min_cosine <= 1:
        msg = f"{min_cosine!r} is not possible; use -1 to 1"
        raise ConfigError(msg, key="min_cosine")


@dataclass(frozen=True)
class _Side:
    """One of the two models."""

    name: str
    model: Model
    session: InferenceSession

    @classmethod
    def of(cls, source: Source, options: SessionOptions | Mapping[str, Any] | None) -> _Side:
        if isinstance(source, Model):
            name = str(source.source) if source.source is not None else "model"
            return cls(name, source, InferenceSession(to_bytes(source), options))
        path = Path(source)
        if path.is_dir():
            msg = "it is a folder; name a model file"
            raise ModelError(msg, file=str(path))
        if is_mnn(path):
            return cls(str(path), load_mnn(path), InferenceSession(path, options))
        model = load(path)
        return cls(str(path), model, InferenceSession(to_bytes(model), options))


def _check_ports(reference: _Side, model: _Side) -> None:
    for what, one, other in (
        (
            "inputs",
            [s.name for s in input_specs(reference.session)],
            [s.name for s in input_specs(model.session)],
        ),
        ("outputs", list(reference.model.outputs), list(model.model.outputs)),
    ):
        if set(one) != set(other):
            msg = f"its {what} are {', '.join(other) or 'none'}; {reference.name} has {', '.join(one) or 'none'}"
            raise ConfigError(msg, file=model.name, key=what)


class _Pair:
    """Both models, run side by side."""

    def __init__(self, reference: _Side, model: _Side) -> None:
        self._sides = reference, model
        self._sums: dict[str, ErrorSums] = {}
        self._missing: dict[str, None] = {}
        self._outputs = {name: ErrorSums(name) for name in model.model.outputs}
        self._producer = {name: op for op in model.model.ops for name in op.outputs}

    def add(self, feeds: Feeds, layers: bool) -> None:
        reference, model = self._sides
        names = list(model.model.outputs)
        if not layers:
            wanted = reference.session.run(names, feeds)
            got = model.session.run(names, feeds)
        else:
            kept: dict[str, npt.NDArray[Any]] = {}

            def keep(name: str, array: npt.NDArray[Any]) -> None:
                op = self._producer.get(name)
                if op is not None and op.type not in _NO_LAYERS:
                    kept[name] = _real(reference.model, name, array)

            def check(name: str, array: npt.NDArray[Any]) -> None:
                self._compare_tensor(name, array, kept.pop(name, None))

            wanted = reference.session.observe(feeds, keep, names)
            got = model.session.observe(feeds, check, names)
        for name, one, other in zip(names, wanted, got, strict=True):
            self._outputs[name].add(
                _real(reference.model, name, one),
                _real(model.model, name, other),
            )

    def _compare_tensor(self, name: str, array: npt.NDArray[Any], wanted: npt.NDArray[Any] | None) -> None:
        op = self._producer.get(name)
        if op is None or op.type in _NO_LAYERS:
            return
        if wanted is None:
            self._missing.setdefault(name)
            return
        if wanted.dtype.kind == "f":
            codes = _codes(self._sides[1].model, name, array)
            self._sums.setdefault(name, ErrorSums(name)).add(wanted, array, codes)

    def output_errors(self) -> tuple[OutputError, ...]:
        return tuple(sums.result() for sums in self._outputs.values())

    def unmatched(self) -> tuple[str, ...]:
        return tuple(self._missing)

    def layer_errors(self) -> tuple[LayerError, ...]:
        errors = {name: sums.result() for name, sums in self._sums.items()}
        found = []
        for name, error in errors.items():
            op = self._producer[name]
            before = [
                _noise(errors[source].sqnr_db) for source in self._sources(op.inputs) if source in errors
            ]
            added = None
            if error.problem is None:
                added = max(0.0, _noise(error.sqnr_db) - max(before, default=0.0))
            found.append(LayerError(error, op.type, op.name, added))
        return tuple(found)

    def _sources(self, names: list[str]) -> list[str]:
        """Tensors that were compared and from which `names` are moved."""
        out = []
        for name in names:
            op = self._producer.get(name)
            while op is not None and op.type == "ConvertTensor" and op.inputs:
                name = op.inputs[0]
                op = self._producer.get(name)
            out.append(name)
        return out


def _noise(sqnr_db: float) -> float:
    """Power of the error relative to that of the signal."""
    return float(np.power(10.0, -sqnr_db / 10)) if sqnr_db > -300 else math.inf


def _codes(model: Model, name: str, array: npt.NDArray[Any]) -> tuple[float, float] | None:
    """Scale and zero point of an array that holds codes, or None."""
    info = model.tensor_quant.get(name)
    if info is None or array.dtype.kind != "i" or array.dtype.itemsize != 1:
        return None
    return float(info.get("scale", 0.0)), float(info.get("zero", 0.0))


def _real(model: Model, name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The numbers that an array stands for: ``(code - zero) * scale`` where it holds codes."""
    codes = _codes(model, name, array)
    if codes is None:
        return array
    scale, zero = np.float32(codes[0]), np.float32(codes[1])
    return np.asarray((array.astype(np.float32) - zero) * scale, np.float32)
