"""Checking a `.mnn` file against the ONNX model it came from, or runtimes against each other, by running them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.api import load_mnn
from mnnq.engines import Arrays, run_engine
from mnnq.errors import ConfigError, ModelError
from mnnq.files import is_mnn
from mnnq.ir.model import Model
from mnnq.quantization.embedding import stored_bits
from mnnq.quantization.stored import Storage, describe
from mnnq.report.errors import ErrorSums, OutputError

#: Largest relative error that passes for a file of float weights.
FLOAT_THRESHOLD = 1e-3

#: Largest relative error that passes for any file by the default rule: an output of zeros has 1.
WORST_THRESHOLD = 0.5

#: How much larger than the rule of thumb the error of an output may be.
MARGIN = 2.0


#: Runtimes for `.mnn` files, as results name them.
ENGINES = {"mnn": "MNN", "mnnq": "mnnq"}


@dataclass(frozen=True)
class Threshold:
    """Largest `OutputError.relative` that passes, and where it comes from."""

    value: float
    reason: str


def default_threshold(model: Model, *, memory_low: bool = False, precision: str = "normal") -> Threshold:
    """Return the error that a file may have, given how it stores its weights.

    ``min(0.5, 0.001 + 2 sqrt(sum e^2))`` over the layers with weights, where ``e`` is what rounding adds to a layer's
    result, relative to it: ``2 / (2^b - 1)`` for codes of ``b`` bits (range-to-range rounding of normally
    distributed weights: a step of 7 standard deviations by ``2^b - 1``, over ``sqrt(12)``), ``2^-11`` for half
    floats, 0 for floats. Layers add up as independent noise. A layer that computes in int8 (`memory_low`, or stored
    activation scales) rounds its input to 8 bits too; ``precision`` ``"low"`` rounds every layer's result to half
    floats.
    """
    kinds: Counter[str] = Counter()
    power = 0.0
    for _, op in model.all_ops():
        layer = op.param_type == "Convolution2D"
        if layer:
            stored = describe(op)
            int8 = stored.storage is Storage.OLD_INT8 or "symmetricQuan" in op.params
            bits = {Storage.INPUT: 32, Storage.SPARSE_FLOAT: 32}.get(stored.storage, stored.bits)
        else:
            int8, coded = False, stored_bits(op)
            half = op.type == "Const" and op.params.get("dataType") == "DT_HALF"
            bits = 16 if half else 32 if coded is None else coded
        if bits < 32:
            kinds["fp16" if bits == 16 else f"{bits} bits"] += 1
        power += 0.0 if bits == 32 else 2.0**-22 if bits == 16 else (2 / (2**bits - 1)) ** 2
        power += (2 / 255) ** 2 if layer and (int8 or (memory_low and bits <= 8)) else 0.0
        power += 2.0**-20 if layer and precision == "low" else 0.0
    value = min(WORST_THRESHOLD, FLOAT_THRESHOLD + MARGIN * math.sqrt(power))
    counts = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
    reason = f"for weights of {counts}" if counts else "for float weights"
    return Threshold(float(f"{value:.2g}"), reason)


@dataclass(frozen=True)
class VerifyResult:
    """Outcome of a comparison."""

    reference: str
    model: str
    engine: str
    samples: int
    threshold: float
    outputs: tuple[OutputError, ...]
    threshold_reason: str = "as given"
    reference_engine: str = "onnxruntime"

    @property
    def passed(self) -> bool:
        """Whether every output is within the threshold and nothing is wrong with it."""
        return bool(self.outputs) and all(
            out.problem is None and out.relative <= self.threshold for out in self.outputs
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON can hold it (no infinities)."""
        return {
            "reference": self.reference,
            "reference_engine": self.reference_engine,
            "model": self.model,
            "engine": self.engine,
            "samples": self.samples,
            "threshold": self.threshold,
            "threshold_reason": self.threshold_reason,
            "passed": self.passed,
            "outputs": [out.to_dict() for out in self.outputs],
        }


def compare(name: str, pairs: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]]) -> OutputError:
    """Compare an output with its reference over samples, given as (reference, output) pairs."""
    sums = ErrorSums(name)
    for reference, output in pairs:
        sums.add(reference, output)
    return sums.result()


def verify(
    reference: str | Path,
    model: str | Path,
    *,
    engine: str = "mnn",
    inputs: Mapping[str, npt.NDArray[Any]] | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    samples: int = 2,
    seed: int = 0,
    threshold: float | None = None,
    memory_low: bool = False,
    precision: str = "normal",
    dynamic: str = "auto",
    int8: str = "compat",
    timeout: float = 600.0,
) -> VerifyResult:
    """Run a reference and a `.mnn` file and compare. `verify_engines` compares several runtimes at once.

    Parameters
    ----------
    reference
        An ONNX model, which runs in onnxruntime, or a `.mnn` file, which runs in the real MNN runtime.
    engine
        What runs `model`: ``"mnn"``, the real MNN runtime, or ``"mnnq"``, our own.
    inputs
        Arrays by input name; by default `samples` sets of random ones (standard normal floats; integers that are
        valid indices, 0 and 1).
    input_shapes
        Shapes of inputs with symbolic axes, for random inputs; an axis not given is 1.
    threshold
        Largest `OutputError.relative` that passes; None for `default_threshold`, or, when `model` is the reference
        itself and computes in floats, `FLOAT_THRESHOLD`.
    memory_low
        Run `model` in low-memory mode (activations are quantized while running).
    dynamic, int8
        Of our own runtime, as in `SessionOptions`: which layers `memory_low` runs in integers, and whether
        offline-quantized layers pool as MNN does.

    Raises
    ------
    ConfigError
        Inputs do not fit the model, or an engine is not installed.
    ModelError
        A file cannot be read as what it should be.
    UnsupportedError
        Our own runtime does not have an operator of the model.
    EngineError
        An engine refused a model, died or hung.
    """
    (result,) = verify_engines(
        reference,
        model,
        (engine,),
        inputs=inputs,
        input_shapes=input_shapes,
        samples=samples,
        seed=seed,
        threshold=threshold,
        memory_low=memory_low,
        precision=precision,
        dynamic=dynamic,
        int8=int8,
        timeout=timeout,
    )
    return result


def verify_engines(
    reference: str | Path,
    model: str | Path,
    engines: Sequence[str],
    *,
    inputs: Mapping[str, npt.NDArray[Any]] | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    samples: int = 2,
    seed: int = 0,
    threshold: float | None = None,
    memory_low: bool = False,
    precision: str = "normal",
    dynamic: str = "auto",
    int8: str = "compat",
    timeout: float = 600.0,
) -> tuple[VerifyResult, ...]:
    """As `verify`, for each of several engines; the reference runs once per sample."""
    if samples < 1:
        msg = f"{samples} samples are not possible; use 1 or more"
        raise ConfigError(msg, key="samples")
    for engine in engines:
        if engine not in ENGINES:
            msg = f"{engine!r} is not possible; use {', '.join(ENGINES)}"
            raise ConfigError(msg, key="engine")
    reference, model = Path(reference), Path(model)
    limit = _threshold(threshold, reference, model, memory_low, precision)
    source = "mnn" if is_mnn(reference) else "onnxruntime"
    ports, outputs = _signature_mnn(reference) if is_mnn(reference) else _signature(reference)
    sets = [_checked(inputs, ports)] if inputs is not None else []
    generator = np.random.default_rng(seed)
    while len(sets) < samples and inputs is None:
        sets.append(_random(ports, input_shapes or {}, generator))
    wanted = [run_engine(source, reference, feeds, outputs, timeout=timeout) for feeds in sets]
    if dynamic != "auto" and not memory_low:
        msg = f"{dynamic!r} is of the low-memory mode, which is not asked for"
        raise ConfigError(msg, key="dynamic")
    options = {"memory_low": memory_low, "precision": precision, "dynamic": dynamic, "int8": int8}
    results = []
    for engine in engines:
        got = [run_engine(engine, model, feeds, outputs, options=options, timeout=timeout) for feeds in sets]
        errors = [
            compare(name, [(ref[name], out[name]) for ref, out in zip(wanted, got, strict=True)])
            for name in outputs
        ]
        label = ENGINES[engine] + (", memory low" if memory_low else "")
        results.append(
            VerifyResult(
                str(reference),
                str(model),
                label,
                len(sets),
                limit.value,
                tuple(errors),
                threshold_reason=limit.reason,
                reference_engine=ENGINES.get(source, source),
            )
        )
    return tuple(results)


def _threshold(
    given: float | None, reference: Path, path: Path, memory_low: bool, precision: str
) -> Threshold:
    """The threshold to apply; the model is read in any case, for its errors are clearer than those of a runtime."""
    if given is not None and not given >= 0:
        msg = f"{given!r} is not possible; use 0 or more"
        raise ConfigError(msg, key="threshold")
    model = load_mnn(path)
    default = default_threshold(model, memory_low=memory_low, precision=precision)
    if given is not None:
        return Threshold(given, "as given")
    same = reference.exists() and reference.samefile(path)
    if same and not memory_low and precision != "low" and not model.tensor_quant and not _int8_layers(model):
        return Threshold(FLOAT_THRESHOLD, "the same weights in floats")
    return default


def _int8_layers(model: Model) -> bool:
    """Whether a layer computes in int8 by parameters of its own."""
    layers = [op for _, op in model.all_ops() if op.param_type == "Convolution2D"]
    return any(describe(op).storage is Storage.OLD_INT8 or "symmetricQuan" in op.params for op in layers)


def _signature(path: Path) -> tuple[dict[str, tuple[np.dtype[Any], list[int | None]]], list[str]]:
    """Inputs (type and shape, None for unknown axes) and outputs of an ONNX file."""
    import onnx

    try:
        proto = onnx.load(path, load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # protobuf raises several unrelated types
        msg = f"not an ONNX file, or a damaged one: {error}"
        raise ModelError(msg, file=str(path)) from error
    constants = {tensor.name for tensor in proto.graph.initializer}
    ports = {}
    for value in proto.graph.input:
        if value.name in constants:
            continue
        tensor = value.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        ports[value.name] = (onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type), dims)
    if not proto.graph.output:
        msg = "not an ONNX file, or a damaged one: it has no outputs"
        raise ModelError(msg, file=str(path))
    return ports, [value.name for value in proto.graph.output]


#: NumPy types of the inputs of `.mnn` files; wide integers and booleans are passed as int32.
_MNN_TYPES = {"DT_FLOAT": "float32", "DT_UINT8": "uint8", "DT_INT8": "int8"}


def _signature_mnn(path: Path) -> tuple[dict[str, tuple[np.dtype[Any], list[int | None]]], list[str]]:
    """As `_signature`, of a `.mnn` file."""
    model = load_mnn(path)
    ports = {}
    for op in model.ops:
        if op.type != "Input":
            continue
        name = op.outputs[0]
        dims = [int(d) if d >= 0 else None for d in op.params.get("dims", ())]
        if op.params.get("dformat") == "NHWC" and len(dims) == 4:
            msg = "it is channels-last, which cannot be compared; give a file with inputs in NCHW order"
            raise ConfigError(msg, file=str(path), key=name)
        dtype = _MNN_TYPES.get(str(op.params.get("dtype", "DT_FLOAT")), "int32")
        ports[name] = (np.dtype(dtype), dims)
    return ports, list(model.outputs)


def _checked(
    inputs: Mapping[str, npt.NDArray[Any]], ports: Mapping[str, tuple[np.dtype[Any], list[int | None]]]
) -> Arrays:
    missing, unknown = set(ports) - set(inputs), set(inputs) - set(ports)
    if missing or unknown:
        wrong = f"missing {sorted(missing)}" if missing else f"unknown {sorted(unknown)}"
        msg = f"inputs do not fit the model: {wrong}; it has {sorted(ports)}"
        raise ConfigError(msg, key="inputs")
    return {name: np.asarray(inputs[name]).astype(ports[name][0], copy=False) for name in ports}


def _random(
    ports: Mapping[str, tuple[np.dtype[Any], list[int | None]]],
    shapes: Mapping[str, Sequence[int]],
    generator: np.random.Generator,
) -> Arrays:
    unknown = set(shapes) - set(ports)
    if unknown:
        msg = f"no input is named {sorted(unknown)[0]!r}; inputs: {', '.join(ports)}"
        raise ConfigError(msg, key="input_shapes")
    feeds: Arrays = {}
    for name, (dtype, dims) in ports.items():
        shape = tuple(shapes[name]) if name in shapes else tuple(1 if d is None else d for d in dims)
        if dtype.kind in "iub":
            feeds[name] = generator.integers(0, 2, shape).astype(dtype)
        else:
            feeds[name] = generator.standard_normal(shape).astype(dtype)
    return feeds
