"""The native part of mnnq."""

# ruff: noqa: PYI021 -- editors show the documentation of a compiled module from its stub.

from collections.abc import Callable
from os import PathLike
from typing import Any, Literal, TypedDict, final, type_check_only

import numpy as np
import numpy.typing as npt

__all__ = [
    "InputMoments",
    "InputStatistics",
    "NativeSession",
    "NativeStatistics",
    "__version__",
    "activation_codes",
    "compensate_weights",
    "cpu_kernels",
    "decode_weights",
    "describe_weights",
    "difference_sums",
    "encode_weights",
    "layer_output_error",
    "model_to_bytes",
    "pack_half",
    "quantize_codes",
    "quantize_correlated",
    "quantize_rows",
    "quantize_weighted",
    "quantize_weights",
    "read_model",
    "schema",
    "supported_operators",
    "table_from_bytes",
    "table_to_bytes",
    "validate",
    "write_model",
]

__version__: str

@type_check_only
class Schema(TypedDict):
    """What `schema` returns."""

    enums: dict[str, dict[str, int]]
    tables: dict[str, dict[str, dict[str, Any]]]
    union: list[str]

@type_check_only
class DecodedWeights(TypedDict):
    """What `decode_weights` returns."""

    kind: Literal["float", "sparse", "half", "quantized", "old_int8"]
    weight: npt.NDArray[np.float32]
    codes: npt.NDArray[np.int8] | None
    scale: npt.NDArray[np.float32] | None
    min: npt.NDArray[np.float32] | None
    bias: npt.NDArray[np.int32] | None
    bits: int | None
    rows: int | None
    row_len: int | None

@type_check_only
class WeightStats(TypedDict):
    """Error figures of a quantized matrix, and what it was quantized to."""

    sqnr_db: float
    relative_rms: float
    max_abs_error: float
    squared_error: float
    squared_weight: float
    rows: int
    row_len: int
    bits: int
    block: int
    symmetric: bool
    method: str

@type_check_only
class QuantizedCodes(TypedDict):
    """What `quantize_codes` returns."""

    codes: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    min: npt.NDArray[np.float32] | None
    row_relative_rms: npt.NDArray[np.float64]
    stats: WeightStats

def read_model(
    source: str | PathLike[str] | bytes, external: str | PathLike[str] | None = None
) -> dict[str, Any]:
    """Read a `.mnn` file, or its content, as nested dictionaries.

    Parameters
    ----------
    source
        Path of the file, or the content as `bytes`.
    external
        Path of the external weight file. By default ``<source>.weight`` is used where it exists.

    Returns
    -------
    dict
        The root table. Keys are the field names of the schema. Numbers are always there (absent ones with their
        default); strings, vectors and tables only if the file has them. Enum values are their names, or numbers
        where the schema has no name. Vectors of numbers are arrays; the parameters of an op are in ``main``, their
        type in ``main_type``. External weights are in the ordinary vectors, unless there is no such file: then
        ``external`` is kept.

    Raises
    ------
    FormatError
        If the content breaks an invariant of the format.
    OSError
        If a file cannot be opened.
    """

def validate(source: str | PathLike[str] | bytes) -> None:
    """Check a `.mnn` file, or its content, without converting it.

    Parameters
    ----------
    source
        Path of the file, or the content as `bytes`.

    Raises
    ------
    FormatError
        If the content breaks an invariant of the format.
    OSError
        If the file cannot be opened.
    """

def write_model(model: dict[str, Any], path: str | PathLike[str], *, external: bool = False) -> int:
    """Write a model, given as `read_model` returns it, to a file.

    Enum values may be names or numbers, vectors arrays or sequences of numbers. A value of None stands for absent.
    Contiguous arrays of the right dtype are not copied. The file appears when it is complete.

    Parameters
    ----------
    model
        The root table.
    path
        Where to write.
    external
        Put weights into ``<path>.weight``. Models beyond 2 GiB are written that way in any case.

    Returns
    -------
    int
        The number of bytes written, both files together.

    Raises
    ------
    FormatError
        If a key is unknown or a value of the wrong type; its ``key`` says which.
    OSError
        If the file cannot be written.
    """

def model_to_bytes(model: dict[str, Any]) -> bytes:
    """Return the bytes of a model, given as `read_model` returns it, in one file.

    Parameters
    ----------
    model
        The root table.

    Raises
    ------
    FormatError
        If a key is unknown, a value of the wrong type, or the model larger than 2 GiB.
    """

def table_to_bytes(kind: str, fields: dict[str, Any]) -> bytes:
    """Serialize one table as a buffer of its own, as some byte fields hold them (`ExtraInfo.buffer` holds an `Extra`).

    Parameters
    ----------
    kind
        Name of the table in the schema.
    fields
        Its fields, as `read_model` returns tables.

    Raises
    ------
    FormatError
        If there is no such table, a key is unknown or a value of the wrong type.
    """

def table_from_bytes(kind: str, content: bytes) -> dict[str, Any]:
    """Read a buffer whose root is a table of the given kind: the inverse of `table_to_bytes`.

    Raises
    ------
    FormatError
        If there is no such table, or the content breaks an invariant of the format.
    """

def schema() -> Schema:
    """Return the schema.

    Returns
    -------
    Schema
        ``enums``: name -> {key: number}; ``tables``: name -> {field: {"slot", "type", "default"}}, where ``type``
        is a scalar, an enum, "string", a table, "union" or one of these in brackets; ``union``: its members, tag 1
        first.
    """

def decode_weights(conv: dict[str, Any]) -> DecodedWeights:
    """Decode the weights of a ``Convolution2D`` table.

    Parameters
    ----------
    conv
        The table, as `read_model` returns it.

    Returns
    -------
    DecodedWeights
        ``weight``: float32, flat, in the order of the source tensor (for "old_int8" the codes themselves). For
        "quantized" also ``bits``, ``rows``, ``row_len``, ``codes`` (int8, flat), ``scale`` (per row) and ``min``
        (per row, or None if symmetric); for "old_int8" ``codes``, ``scale``, ``bias`` where present. The others
        are None.

    Raises
    ------
    FormatError
        If the payload is damaged, absent, or in a side file that was not loaded.
    """

def describe_weights(conv: dict[str, Any]) -> tuple[int, int, int, bool]:
    """How the quantized weights of a ``Convolution2D`` table are stored; dense codes are not decoded.

    Parameters
    ----------
    conv
        The table, as `read_model` returns it.

    Returns
    -------
    tuple
        Bits, rows, weights per row, and whether rows have a minimum.

    Raises
    ------
    FormatError
        If the payload is damaged as far as its header shows, absent, or in a side file that was not loaded.
    """

def encode_weights(
    codes: npt.NDArray[np.int8],
    scale: npt.NDArray[np.float32],
    min: npt.NDArray[np.float32] | None,
    bits: int,
    *,
    fp16_scales: bool = False,
    sparse: bool = False,
    wide: bool = False,
) -> dict[str, Any]:
    """Encode quantized weights as an ``IDSTQuan`` table.

    The weights are ``codes * scale`` per row, or ``min + scale * (codes + 2**(bits - 1))`` if `min` is given.

    Parameters
    ----------
    codes
        int8, ``[rows, row_len]`` or flat; within ``-2**(bits - 1) .. 2**(bits - 1) - 1``.
    scale
        float32, ``[rows]``.
    min
        float32, ``[rows]``, for asymmetric weights.
    bits
        2 to 8.
    fp16_scales
        Store scales and minima as half floats.
    sparse
        Use the sparse layout where it is smaller.
    wide
        Store 32-bit dimensions even where 16 bits suffice.

    Raises
    ------
    FormatError
        If the parts do not fit together.
    """

def pack_half(weight: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Encode weights as half floats: an ``IDSTQuan`` table of type 3.

    Parameters
    ----------
    weight
        float32, any shape; clamped to ±65504 and rounded to nearest even.
    """

def quantize_weights(
    weight: npt.NDArray[Any],
    *,
    bits: int,
    symmetric: bool,
    block: int | None = None,
    method: str = "rtn",
    gain_correction: bool = False,
    fp16_scales: bool = False,
    sparse: bool = False,
    threads: int | None = None,
) -> tuple[dict[str, Any], WeightStats]:
    """Quantize a weight matrix and encode it as an ``IDSTQuan`` table.

    Parameters
    ----------
    weight
        float32, float16 or bfloat16, ``[rows, row_len]``, any strides; a row is an output channel. A transposed view
        is read in place.
    bits
        Bits per code, 2 to 8.
    symmetric
        Store a scale per block only; otherwise a scale and a minimum.
    block
        Elements of a row that share a scale; must divide ``row_len``. None: the whole row.
    method
        "rtn" (MNN's default rule), "hqq" (MNN's ``--hqq``), "hqq_ref" (as published) or "search" (smallest squared
        error).
    gain_correction
        Restore gain and, if asymmetric, mean of each row.
    fp16_scales
        Store scales and minima as half floats.
    sparse
        Use the sparse layout where it is smaller.
    threads
        Number of threads; by default one per CPU. The result does not depend on it.

    Returns
    -------
    tuple
        The table as `write_model` takes it for ``quanParameter``, and the error figures.

    Raises
    ------
    QuantizationError
        If an option does not fit, or a weight is not finite; its ``key`` names the argument.
    """

def quantize_codes(
    weight: npt.NDArray[Any],
    *,
    bits: int,
    symmetric: bool,
    block: int | None = None,
    method: str = "rtn",
    gain_correction: bool = False,
    fp16_scales: bool = False,
    threads: int | None = None,
) -> QuantizedCodes:
    """Quantize a weight matrix and return codes, scales and minima as arrays.

    Parameters are those of `quantize_weights`.

    Returns
    -------
    QuantizedCodes
        ``codes``: int8 ``[rows, row_len]``; ``scale``: float32 ``[rows, row_len / block]``; ``min``: likewise, or None
        if symmetric; ``row_relative_rms``: float64 ``[rows]``; ``stats``: the error figures.

    Raises
    ------
    QuantizationError
        If an option does not fit, or a weight is not finite; its ``key`` names the argument.
    """

@type_check_only
class RowCodes(TypedDict):
    """What `quantize_rows` returns."""

    codes: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    error: float
    power: float

def quantize_rows(
    weight: npt.NDArray[np.float32],
    *,
    method: str,
    limit: int,
    floor: npt.NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> RowCodes:
    """Quantize a weight matrix to codes of ``-limit`` to ``limit`` with one scale per row and no offset.

    Parameters
    ----------
    weight
        ``[rows, row_len]``, contiguous; a row is an output channel.
    method
        ``"search"``, ``"max_abs"`` or ``"admm"``.
    limit
        Largest code, 1 to 127.
    floor
        Smallest scale of each row, ``[rows]``.
    threads
        Threads; by default one per CPU. The result does not depend on it.

    Returns
    -------
    RowCodes
        ``codes`` ``[rows, row_len]``, ``scale`` ``[rows]`` (0 for rows of zeros), sums of the squared errors and weights.

    Raises
    ------
    QuantizationError
        If an option does not fit, or a weight is not finite; its ``key`` names the argument.
    """

def difference_sums(
    reference: npt.NDArray[np.float32],
    values: npt.NDArray[np.float32] | npt.NDArray[np.int8],
    scale: float = 1.0,
    zero: float = 0.0,
) -> tuple[float, float, float, float, float, float] | Literal[False] | None:
    """Compare values, or codes for ``(code - zero) * scale``, with their references, both contiguous and of one axis.

    Returns
    -------
    Largest ``|y - r|``, largest ``|r|``, ``sum (y - r)^2``, ``sum r^2``, ``sum y^2``, ``sum y r``; or False where a reference is
    not finite, None where a value is not.
    """

@type_check_only
class OutputError(TypedDict):
    """What `layer_output_error` returns."""

    own: float
    total: float
    power: float

@final
class InputMoments:
    """Means and covariances of what a layer's kernel meets, collected from its inputs.

    Parameters
    ----------
    channels, groups
        Input channels, and groups of them that do not meet.
    kernel, stride, dilation
        Along height and width.
    cross
        Whether the inputs in the float model are given too.
    threads
        Number of threads; by default one per CPU.
    """

    def __new__(
        cls,
        channels: int,
        groups: int,
        *,
        kernel: tuple[int, int] = ...,
        stride: tuple[int, int] = ...,
        dilation: tuple[int, int] = ...,
        cross: bool = False,
        threads: int | None = None,
    ) -> InputMoments: ...
    def add(
        self,
        actual: npt.NDArray[np.float32],
        exact: npt.NDArray[np.float32] | None,
        pad: tuple[int, int],
        outputs: tuple[int, int],
        rows: tuple[int, int] = ...,
    ) -> None:
        """Add the inputs of a sample: in the quantized model and, with `cross`, in the float model.

        Parameters
        ----------
        actual, exact
            float32 ``[N, C, H, W]``, contiguous.
        pad
            Padding above and left.
        outputs
            Rows and columns of the layer's output.
        rows
            Every how many rows of outputs are counted, and the first of them.
        """

    def finish(self) -> InputStatistics:
        """End the collection and return the statistics."""

@final
class InputStatistics:
    """Means and covariances of the inputs of a layer; made by `InputMoments.finish`."""

    def __new__(
        cls,
        groups: int,
        columns: int,
        count: int,
        mean: npt.NDArray[np.float64],
        second: npt.NDArray[np.float64],
        delta: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None = None,
    ) -> InputStatistics: ...
    def __getnewargs__(self) -> tuple[Any, ...]: ...
    @property
    def count(self) -> int:
        """Positions seen."""

    @property
    def columns(self) -> int:
        """Inputs of a group that one output sees."""

    def means(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean inputs ``[groups, columns]`` in the quantized and in the float model."""

    def covariance(self) -> npt.NDArray[np.float64]:
        """Covariances ``[groups, columns, columns]`` of the inputs in the quantized model."""

    def merge(self, other: InputStatistics) -> None:
        """Add the statistics of other inputs of the same layer."""

def quantize_correlated(
    weight: npt.NDArray[np.float32],
    *,
    taps: int,
    correlation: float,
    bits: int,
    symmetric: bool,
    block: int | None = None,
    gain_correction: bool = False,
    fp16_scales: bool = False,
    threads: int | None = None,
) -> QuantizedCodes:
    """Quantize a weight matrix whose kernels see inputs that go together: the search, with errors of a kernel that cancel.

    Parameters
    ----------
    weight
        ``[rows, row_len]``, contiguous; a row is an output channel.
    taps
        Consecutive weights of a kernel; must divide the blocks.
    correlation
        Correlation between the inputs of a kernel, from 0 to below 1.

    Raises
    ------
    QuantizationError
        If an option does not fit, or a weight is not finite; its ``key`` names the argument.
    """

def quantize_weighted(
    weight: npt.NDArray[np.float32],
    power: npt.NDArray[np.float64],
    *,
    bits: int,
    symmetric: bool,
    block: int | None = None,
    fp16_scales: bool = False,
    threads: int | None = None,
) -> QuantizedCodes:
    """Quantize a weight matrix for inputs of known power: the search, with errors weighted by it.

    Parameters
    ----------
    weight
        ``[rows, row_len]``, contiguous; a row is an output channel.
    power
        ``[row_len]``: mean square of each input, up to a common factor.

    Raises
    ------
    QuantizationError
        If an option does not fit, or a weight is not finite; its ``key`` names the argument.
    """

def compensate_weights(
    weight: npt.NDArray[np.float32],
    inputs: InputStatistics,
    *,
    bits: int,
    symmetric: bool,
    block: int | None = None,
    damping: float = 0.01,
    by_variance: bool = True,
    follow_float: bool = True,
    sweeps: int = 4,
    fp16_scales: bool = False,
    threads: int | None = None,
) -> QuantizedCodes:
    """Quantize a weight matrix for the inputs of its layer: searched scales, compensated errors, coordinate descent.

    Parameters
    ----------
    weight
        float32 ``[rows, row_len]``, contiguous.
    inputs
        Statistics of the layer's inputs.
    bits, symmetric, block, fp16_scales, threads
        As for `quantize_weights`.
    damping
        Ridge, as a fraction of the mean variance of the inputs.
    by_variance
        Round the inputs of the largest variance first.
    follow_float
        Aim at the outputs of the float model in spite of changed inputs.
    sweeps
        Most sweeps of coordinate descent.

    Raises
    ------
    QuantizationError
        If an option does not fit, or a weight is not finite; its ``key`` names the argument.
    """

def layer_output_error(
    weight: npt.NDArray[np.float32],
    decoded: npt.NDArray[np.float32],
    inputs: InputStatistics,
    *,
    threads: int | None = None,
) -> OutputError:
    """Squared error of a layer's outputs with other weights, means apart.

    Parameters
    ----------
    weight, decoded
        float32 ``[rows, row_len]``, contiguous: the weights, and those in their place.
    inputs
        Statistics of the layer's inputs.

    Returns
    -------
    OutputError
        ``own``: on the inputs in the quantized model; ``total``: against the float model's outputs, up to a constant
        of the layer; ``power``: variance of the outputs. Sums over rows of means over positions.
    """

@type_check_only
class CpuKernels(TypedDict):
    """What `cpu_kernels` returns."""

    levels: list[str]
    requested: str | None
    level: str
    kernels: dict[str, str]

def cpu_kernels() -> CpuKernels:
    """Instruction sets of the CPU and the kernels in use, chosen once per process.

    Returns
    -------
    dict
        ``levels``: instruction-set levels of the CPU that mnnq knows, the lowest first; ``requested``: that of
        ``MNNQ_ISA``, or None; ``level``: the highest in use; ``kernels``: the kernel of each family.

    Raises
    ------
    ConfigError
        ``MNNQ_ISA`` names no level of this architecture.
    """

def supported_operators() -> list[str]:
    """Names of the MNN operators that sessions can run."""

@final
class NativeSession:
    """A `.mnn` model, ready to run. `mnnq.runtime.InferenceSession` is the class for users.

    Parameters
    ----------
    source
        Path of a `.mnn` file, or its bytes.
    threads
        Threads per run, 1 to 1024. Results do not depend on it.
    precision
        "normal", "high" (sums in double precision) or "low" (float weights stored in half precision).
    memory
        "normal", or "low" (quantized weights stay in their bits).
    int8
        "exact", or "compat" (pooling of int8 tensors as MNN computes it on x86-64).
    plan_cache
        Number of input shapes whose plans are kept.
    fuse
        Fuse element-wise operators into the operator before them.
    max_loop_iterations
        Iterations that all loops of one run may take together.
    allow_nan
        Accept inputs that hold NaN.
    """

    def __new__(
        cls,
        source: str | PathLike[str] | bytes,
        *,
        threads: int = 1,
        precision: str = "normal",
        memory: str = "normal",
        dynamic: str = "auto",
        int8: str = "exact",
        plan_cache: int = 16,
        fuse: bool = True,
        max_loop_iterations: int = ...,
        allow_nan: bool = False,
    ) -> NativeSession: ...
    def inputs(self) -> list[tuple[str, str | None, list[int] | None]]:
        """Inputs: name, dtype, shape (-1 for lengths that vary), as tuples."""

    def outputs(self) -> list[tuple[str, str | None, list[int] | None]]:
        """Outputs, as `inputs`; dtype and shape are None where only running tells."""

    def output_names(self) -> list[str]:
        """Names of the outputs, without planning for their shapes."""

    def plan_info(self, shapes: list[tuple[str, list[int]]] | None = None) -> dict[str, Any]:
        """What running on inputs of these shapes takes: arena_bytes, multiply_adds, steps, outputs, complete."""

    def metadata(self) -> bytes:
        """What the file keeps in `extraInfo.buffer`: a buffer whose root is a table `Extra`, or nothing."""

    def run(self, names: list[str] | None, feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Run the model on arrays of the inputs' very dtypes; returns the outputs named, or all."""

    def observe(
        self,
        names: list[str] | None,
        feeds: dict[str, npt.NDArray[Any]],
        observer: Callable[[str, npt.NDArray[Any]], object],
    ) -> list[npt.NDArray[Any]]:
        """Run the model and call `observer(name, array)` for the inputs and every tensor that is computed.

        The arrays are copies in the logical shape; their strides show the layout that the runtime works in.
        """

    def profile(self) -> list[dict[str, Any]]:
        """Steps that have run so far: node, op_type, kernel, output shapes, runs, seconds."""

@type_check_only
class TensorSummary(TypedDict):
    """What `NativeStatistics.summary` returns."""

    min: float
    max: float
    count: int
    zeros: int
    width: float
    centres: npt.NDArray[np.float64]
    counts: npt.NDArray[np.uint64]

@final
class NativeStatistics:
    """Statistics of named tensors over any number of samples, of constant size.

    Parameters
    ----------
    tensors
        Tensors whose values are counted.
    channels
        Tensors whose mean and extremes per channel (axis 1; the last axis for fewer than 3) are kept.
    momentum
        Weight of the past in averaged ranges, 0 to 1.
    limits
        Largest magnitudes by name, where MNN's own histogram is wanted besides.
    """

    def __new__(
        cls,
        tensors: list[str],
        channels: list[str] = ...,
        momentum: float = 0.99,
        limits: dict[str, float] = ...,
    ) -> NativeStatistics: ...
    @property
    def samples(self) -> int:
        """Number of samples seen."""
    @property
    def tensors(self) -> list[str]:
        """Names of the tensors whose values are counted."""
    def observe(self, session: NativeSession, feeds: dict[str, npt.NDArray[Any]]) -> None:
        """Run a session on one sample and count what it computes."""
    def merge(self, other: NativeStatistics) -> None:
        """Add the statistics of samples that come behind these."""
    def state(self) -> bytes:
        """The statistics as bytes; `from_state` takes them."""
    @staticmethod
    def from_state(state: bytes) -> NativeStatistics:
        """The statistics that `state` has given."""
    def summary(self, name: str) -> TensorSummary:
        """What was seen of a tensor: extremes, number of values and zeros, bins that are not empty."""
    def range(
        self,
        names: list[str],
        method: str,
        *,
        symmetric: bool,
        low_code: int,
        high_code: int,
        percentile: float = 99.99,
        clipping: float = 1.0,
    ) -> tuple[float, float]:
        """The range that a method chooses for tensors that share their codes.

        Parameters
        ----------
        names
            The tensors; their values count together.
        method
            "mse", "minmax", "percentile", "kl", "admm" or "ema".
        symmetric, low_code, high_code
            The codes to choose from.
        percentile
            Share of the values that the range holds, for that method.
        clipping
            Weight of the error of clipping against that of rounding, for "mse".
        """
    def mnn_scale(self, name: str, clamp: int) -> float | None:
        """Scale by MNN's own rule of divergence, with `clamp` the largest code; None without its histogram."""
    def error(self, name: str, scale: float, zero: int, min: int, max: int) -> tuple[float, float, float]:
        """What codes do to a tensor: sum of squares, expected sum of squared errors, share of values beyond the codes."""
    def channel_statistics(
        self, name: str
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Means, minima and maxima of the channels of a tensor."""

def activation_codes(
    low: float, high: float, *, symmetric: bool, low_code: int, high_code: int
) -> tuple[float, int, int, int]:
    """The codes for values of a range, which is widened to hold 0: scale, zero point, smallest and largest code."""
