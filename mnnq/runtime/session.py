"""`InferenceSession`: runs `.mnn` files, and ONNX models converted in memory.

The class has the methods of onnxruntime's of the same name that client code commonly uses, so that it can take its
place: ``run``, ``get_inputs``, ``get_outputs``, ``get_providers``.
"""

from __future__ import annotations

import enum
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from mnnq import _native
from mnnq.convert import convert_onnx
from mnnq.errors import ConfigError, InputError, UnsupportedError
from mnnq.ir.signature import Signature
from mnnq.writer.from_mnn import read_signature
from mnnq.writer.to_mnn import to_bytes

#: The one provider there is.
_PROVIDER = "CPUExecutionProvider"

#: Names of element types as onnxruntime spells them.
_TYPES = {
    "float32": "tensor(float)",
    "int32": "tensor(int32)",
    "uint8": "tensor(uint8)",
    "int8": "tensor(int8)",
    "float16": "tensor(float16)",
    "int64": "tensor(int64)",
    "bool": "tensor(bool)",
    "float64": "tensor(double)",
    "int16": "tensor(int16)",
    "uint16": "tensor(uint16)",
    "uint32": "tensor(uint32)",
    "uint64": "tensor(uint64)",
}


class Precision(enum.Enum):
    """How exact float arithmetic is."""

    NORMAL = "normal"
    """Single precision."""
    HIGH = "high"
    """Single precision, sums of reductions and normalizations in double precision."""
    LOW = "low"
    """Convolutions and matrix products with stored weights round both operands to 16-bit floats: bfloat16 with sums in
    single precision on CPUs with AVX512-BF16, float16 on aarch64 with half-precision arithmetic. On other CPUs nothing
    changes, and the profile says so. Everything else is in single precision."""


class Memory(enum.Enum):
    """What is traded for memory."""

    NORMAL = "normal"
    """Quantized weights are expanded once, when they are first used."""
    LOW = "low"
    """Quantized weights of dense convolutions (and of matrix products stored as such) stay in few bits: up to 4 bits as
    4, others as 8. Activations are quantized to 8 bits while running, and the products are computed in integers;
    `Dynamic` says which layers and how. Half-precision weights stay as they are and are expanded while running."""


class Dynamic(enum.Enum):
    """Which layers of `Memory.LOW` run in integers, and how their activations are quantized.

    Activations are ``x = s q + c`` with ``q`` in -128..127. Each row (pixel, token) or window of a convolution has its
    own scale ``s`` and offset ``c``.
    """

    AUTO = "auto"
    """Those that are estimated to be faster so on this CPU; the profile tells the estimate. Other layers are expanded to
    floats once. Ranges are asymmetric, ``s = (max - min) / 255``; windows with padding have ranges that hold 0."""
    ALWAYS = "always"
    """All layers that can, however slow; codes as with `AUTO`."""
    COMPAT = "compat"
    """MNN's rules of ``Memory_Low``: all dense layers; ``s = max|x| / 127`` for each row, without offset; an asymmetric
    range where there is only one row."""


class Int8(enum.Enum):
    """How offline-quantized layers compute where MNN departs from the formulas of its files."""

    EXACT = "exact"
    """By the formulas."""
    COMPAT = "compat"
    """As MNN 3.6.1 on x86-64: maximum pooling compares codes as unsigned bytes, mean pooling rounds down."""


def _available_cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


@dataclass(frozen=True)
class SessionOptions:
    """Options of a session.

    Attributes
    ----------
    threads
        Threads per run, 1 to 1024; by default one per available CPU. Results do not depend on it.
    precision, memory
        Modes; a member or its value (``"low"``).
    dynamic
        Which layers of ``memory="low"`` run in integers; a member of `Dynamic` or its value.
    int8
        Arithmetic of offline-quantized layers: ``"exact"`` or ``"compat"``.
    plan_cache
        Number of sets of input shapes whose plans are kept; the one not used for longest goes first.
    fuse
        Fuse element-wise operators into the operator before them.
    max_loop_iterations
        Iterations that all loops of one run may take together, those of nested loops each time; a run that needs more is an
        `ExecutionError`. So a loop whose condition never fails ends.
    allow_nan
        Accept inputs that hold NaN. By default they are refused with their name and the place of the first one.
    """

    threads: int = field(default_factory=_available_cpus)
    precision: Precision = Precision.NORMAL
    memory: Memory = Memory.NORMAL
    dynamic: Dynamic = Dynamic.AUTO
    int8: Int8 = Int8.EXACT
    plan_cache: int = 16
    fuse: bool = True
    max_loop_iterations: int = 1 << 20
    allow_nan: bool = False

    def __post_init__(self) -> None:
        for key, limit in (("threads", 1024), ("plan_cache", 1 << 31), ("max_loop_iterations", 1 << 62)):
            value = getattr(self, key)
            if isinstance(value, bool) or not hasattr(value, "__index__") or not 1 <= value <= limit:
                msg = f"{value!r}, wanted " + (f"1 to {limit}" if key == "threads" else "1 or more")
                raise ConfigError(msg, key=key)
            object.__setattr__(self, key, operator.index(value))
        for key in ("fuse", "allow_nan"):
            value = getattr(self, key)
            if not isinstance(value, (bool, np.bool_)):
                msg = f"{value!r}, wanted True or False"
                raise ConfigError(msg, key=key)
            object.__setattr__(self, key, bool(value))
        kinds = {"precision": Precision, "memory": Memory, "dynamic": Dynamic, "int8": Int8}
        for key, kind in kinds.items():
            object.__setattr__(self, key, _member(kind, getattr(self, key), key))


def _member(kind: type[enum.Enum], value: object, key: str) -> enum.Enum:
    try:
        return kind(value)
    except ValueError as error:
        allowed = ", ".join(repr(member.value) for member in kind)
        msg = f"{value!r}, wanted one of {allowed}"
        raise ConfigError(msg, key=key) from error


@dataclass(frozen=True)
class NodeArg:
    """An input or output of a model.

    Attributes
    ----------
    name
        Its name.
    type
        Element type as onnxruntime spells it, e.g. ``"tensor(float)"``.
    shape
        Lengths of the axes; a symbol of the source model or None for lengths that vary.
    """

    name: str
    type: str
    shape: list[int | str | None]


@dataclass(frozen=True)
class ModelMetadata:
    """What a model says of itself, as onnxruntime's class of this name.

    Attributes
    ----------
    producer_name
        What wrote the file: ``"mnnq"``, or ``"MNN"`` for files of other tools.
    graph_name, domain, description, graph_description
        Always empty: `.mnn` files have no place for them.
    version
        Always 0, likewise.
    custom_metadata_map
        Always empty, likewise.
    """

    producer_name: str
    graph_name: str = ""
    domain: str = ""
    description: str = ""
    graph_description: str = ""
    version: int = 0
    custom_metadata_map: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StepProfile:
    """One step of a plan and what it cost so far.

    Attributes
    ----------
    node, op_type
        The operator; ``"layout"`` for conversions that the planner has inserted.
    kernel
        What ran: algorithm, types, instruction set, fused steps, what precision and memory modes did.
    output_shapes
        Shapes of the outputs.
    runs, seconds
        How often it ran, and the time of all runs.
    """

    node: str
    op_type: str
    kernel: str
    output_shapes: list[list[int]]
    runs: int
    seconds: float


class InferenceSession:
    """A model ready to run.

    Several threads may call `run` at once; each run has its own memory.

    Parameters
    ----------
    path_or_bytes
        A `.mnn` file (mapped into memory), a `.onnx` file (converted in memory), the bytes of either, or an ONNX
        model. Bytes are taken for a `.mnn` file if they are one.
    sess_options
        Options, or a mapping of their names to values. Of an ``onnxruntime.SessionOptions`` the number of threads
        (``intra_op_num_threads``, if it is not 0) counts; profiling and writing the optimized model are refused, and what else it
        has says how onnxruntime goes about it, not what is computed.
    providers, provider_options
        As for onnxruntime; must name ``CPUExecutionProvider``, the only one there is, which has no options.

    Raises
    ------
    UnsupportedError
        Naming all operators and attributes of the model that cannot be run.
    FormatError, ModelError
        The file is broken.
    ConfigError
        An option has a wrong name or value.
    OSError
        The file cannot be read.

    Examples
    --------
    >>> session = InferenceSession("model.mnn")  # doctest: +SKIP
    >>> (scores,) = session.run(None, {"input": image})  # doctest: +SKIP
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes | onnx.ModelProto,
        sess_options: SessionOptions | Mapping[str, Any] | Any | None = None,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self._options = _options(sess_options)
        _check_providers(providers, provider_options)
        self._session = _native.NativeSession(
            _source(path_or_bytes),
            threads=self._options.threads,
            precision=self._options.precision.value,
            memory=self._options.memory.value,
            dynamic=self._options.dynamic.value,
            int8=self._options.int8.value,
            plan_cache=self._options.plan_cache,
            fuse=self._options.fuse,
            max_loop_iterations=self._options.max_loop_iterations,
            allow_nan=self._options.allow_nan,
        )
        self._inputs = {name: (dtype, shape) for name, dtype, shape in self._session.inputs()}
        known = read_signature(self._session.metadata())
        self._meta = ModelMetadata("MNN" if known is None else "mnnq")
        signature = known or Signature()
        #: Inputs and outputs as the source model states them; empty for files of other tools.
        self._source = {spec.name: spec for spec in (*signature.inputs, *signature.outputs)}
        self._output_names: list[str] = self._session.output_names()

    def get_session_options(self) -> SessionOptions:
        """The options of the session."""
        return self._options

    def get_providers(self) -> list[str]:
        """Name of the only provider."""
        return [_PROVIDER]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """Options of each provider: the only one has none."""
        return {_PROVIDER: {}}

    def get_modelmeta(self) -> ModelMetadata:
        """What the model says of itself."""
        return self._meta

    def get_overridable_initializers(self) -> list[NodeArg]:
        """Constants that feeds may replace: there are none."""
        return []

    def io_binding(self) -> None:
        """Refuse: inputs and outputs are arrays of `run`.

        Raises
        ------
        UnsupportedError
            Always.
        """
        raise UnsupportedError(problems=["inputs and outputs bound to memory: pass arrays to run()"])

    def run_with_iobinding(self, iobinding: object, run_options: object = None) -> None:
        """Refuse, as `io_binding` does."""
        self.io_binding()

    def run_with_ort_values(
        self, output_names: object, input_dict_ort_values: object, run_options: object = None
    ) -> None:
        """Refuse, as `io_binding` does."""
        self.io_binding()

    def get_inputs(self) -> list[NodeArg]:
        """The inputs, in the order of the model."""
        return [self._node_arg(name, dtype, shape) for name, (dtype, shape) in self._inputs.items()]

    def get_outputs(self) -> list[NodeArg]:
        """The outputs, in the order of the model; types and shapes as far as they are known before running."""
        return [self._node_arg(*info) for info in self._session.outputs()]

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, npt.ArrayLike],
        run_options: None = None,
    ) -> list[npt.NDArray[Any]]:
        """Run the model.

        Parameters
        ----------
        output_names
            Outputs wanted, in this order; None for all.
        input_feed
            Every input by name, in its type. Integers of any width and booleans stand for integers if their values
            fit; any shape that the model admits, no resizing is needed.
        run_options
            Only None: there are no options per run.

        Returns
        -------
        The outputs, new arrays.

        Raises
        ------
        InputError
            An input is missing, unknown, or of a wrong type, rank or shape, or an output name is unknown; `key` is
            its name.
        ExecutionError
            An operator cannot take what it gets; the message names it.
        """
        if run_options is not None:
            msg = f"{run_options!r}, wanted None"
            raise ConfigError(msg, key="run_options")
        feeds, names = self._feeds(input_feed), _names(output_names)
        outputs = self._session.run(names, feeds)
        return self._as_declared(names, outputs)

    def observe(
        self,
        input_feed: Mapping[str, npt.ArrayLike],
        observer: Callable[[str, npt.NDArray[Any]], None],
        output_names: Sequence[str] | None = None,
    ) -> list[npt.NDArray[Any]]:
        """Run the model and show every tensor to `observer`, e.g. to calibrate a quantizer.

        Parameters
        ----------
        input_feed, output_names
            As for `run`.
        observer
            Called with name and contents of each input and then of each tensor in order of computation. Nothing is
            fused, so all tensors of the file exist, constants and shape arithmetic apart. The array has the logical
            shape; its strides may be those of channels-last memory.

        Returns
        -------
        The outputs.
        """
        feeds, names = self._feeds(input_feed), _names(output_names)
        return self._as_declared(names, self._session.observe(names, feeds, observer))

    @property
    def native(self) -> _native.NativeSession:
        """The session as native functions take it."""
        return self._session

    def profile(self) -> list[StepProfile]:
        """The steps of all cached plans with their kernels and the time they took so far."""
        return [StepProfile(**step) for step in self._session.profile()]

    def _node_arg(self, name: str, dtype: str | None, shape: list[int] | None) -> NodeArg:
        kind = _TYPES.get(self._declared(name) or dtype or "", "tensor(?)")
        source = self._source.get(name)
        if source is not None and source.shape is not None:
            return NodeArg(name, kind, list(source.shape))
        return NodeArg(name, kind, [None if n < 0 else n for n in shape or []])

    def _declared(self, name: str) -> str | None:
        """Element type in the source model, when it is known and NumPy has it."""
        spec = self._source.get(name)
        return spec.dtype if spec is not None and spec.dtype in _TYPES else None

    def _feeds(self, feeds: Mapping[str, npt.ArrayLike]) -> dict[str, npt.NDArray[Any]]:
        if not isinstance(feeds, Mapping):
            msg = f"inputs are {type(feeds).__name__}, wanted a mapping of names to arrays"
            raise InputError(msg)
        return {name: self.feed(name, value) for name, value in feeds.items()}

    def feed(self, name: str, value: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return `value` as the array that the runtime reads for an input: checked, integers as 32 bits, contiguous.

        Python numbers and lists of them have no type of their own and take that of the input.

        Raises
        ------
        InputError
            Its type is not that of the input, or a number does not fit.
        """
        array = np.asarray(value)
        wanted = self._inputs.get(name, (None, None))[0]
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        if wanted == "float32" and array.dtype.kind in "fiu" and isinstance(value, (int, float, list, tuple)):
            array = array.astype(np.float32)
        if wanted == "int32" and array.dtype.kind in "biu" and array.dtype != np.int32:
            if array.size and (array.max() > np.iinfo(np.int32).max or array.min() < np.iinfo(np.int32).min):
                msg = f"input {name!r} has values beyond 32 bits"
                raise InputError(msg, key=name)
            array = array.astype(np.int32)
        elif (
            wanted == "float32" and self._declared(name) in ("float16", "float64") and array.dtype.kind == "f"
        ):
            array = array.astype(np.float32)
        if wanted is not None and array.dtype.name != wanted:
            msg = f"input {name!r} is {array.dtype.name}, wanted {self._declared(name) or wanted}"
            raise InputError(msg, key=name)
        return np.require(array, requirements=["C", "A"])

    def _as_declared(
        self, names: list[str] | None, outputs: list[npt.NDArray[Any]]
    ) -> list[npt.NDArray[Any]]:
        """The outputs in the element types of the source model."""
        if not self._source:
            return outputs
        pairs = zip(names or self._output_names, outputs, strict=True)
        return [out.astype(self._declared(name) or out.dtype, copy=False) for name, out in pairs]


def _names(output_names: Sequence[str] | None) -> list[str] | None:
    if isinstance(output_names, str):
        msg = f"output names are the string {output_names!r}, wanted a list of names"
        raise InputError(msg, key=output_names)
    return None if output_names is None or not len(output_names) else list(output_names)


def _foreign_options(options: Any) -> SessionOptions:
    """Options of an ``onnxruntime.SessionOptions``."""
    for key in ("enable_profiling", "optimized_model_filepath"):
        if getattr(options, key, None):
            msg = f"{getattr(options, key)!r}: onnxruntime's option has no counterpart"
            raise ConfigError(msg, key=key)
    threads = options.intra_op_num_threads
    return SessionOptions(threads=threads) if threads else SessionOptions()


def _options(options: SessionOptions | Mapping[str, Any] | Any | None) -> SessionOptions:
    if options is None:
        return SessionOptions()
    if isinstance(options, SessionOptions):
        return options
    if hasattr(options, "intra_op_num_threads"):
        return _foreign_options(options)
    if not isinstance(options, Mapping):
        msg = f"{type(options).__name__}, wanted SessionOptions or a mapping"
        raise ConfigError(msg, key="sess_options")
    known = set(SessionOptions.__dataclass_fields__)
    unknown = [key for key in options if key not in known]
    if unknown:
        msg = f"no such option; there are {', '.join(sorted(known))}"
        raise ConfigError(msg, key=unknown[0])
    return SessionOptions(**options)


def _check_providers(providers: Sequence[Any] | None, options: Sequence[Mapping[str, Any]] | None) -> None:
    names = [item[0] if isinstance(item, tuple) else item for item in providers or [_PROVIDER]]
    if _PROVIDER not in names:
        msg = f"{names!r}, wanted {_PROVIDER!r} among them"
        raise ConfigError(msg, key="providers")
    given = [item[1] for item in providers or [] if isinstance(item, tuple) and item[0] == _PROVIDER]
    given += [each for name, each in zip(names, options or [], strict=False) if name == _PROVIDER]
    if any(given):
        msg = f"{given!r}: {_PROVIDER} has no options here"
        raise ConfigError(msg, key="provider_options")


def _source(source: str | os.PathLike[str] | bytes | onnx.ModelProto) -> Path | bytes:
    """What the native session reads; ONNX models are converted."""
    if isinstance(source, onnx.ModelProto):
        return to_bytes(convert_onnx(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        proto = _onnx_bytes(data)
        return data if proto is None else to_bytes(convert_onnx(proto))
    path = Path(source)
    return to_bytes(convert_onnx(path)) if path.suffix.lower() == ".onnx" else path


def _onnx_bytes(data: bytes) -> onnx.ModelProto | None:
    """The ONNX model in `data`; None if it is none.

    A `.mnn` file begins with the offset of its root table, whose upper bytes are 0; as protobuf this is no model.
    """
    if len(data) >= 4 and data[1:4] == b"\0\0\0":
        return None
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception:
        return None
    return proto if proto.graph.node or proto.graph.output else None
