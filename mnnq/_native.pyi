"""The native part of mnnq."""

# ruff: noqa: PYI021 -- editors show the documentation of a compiled module from its stub.

from collections.abc import Callable
from os import PathLike
from typing import Any, Literal, TypedDict, final, type_check_only

import numpy as np
import numpy.typing as npt

__all__ = [
    "NativeSession",
    "__version__",
    "decode_weights",
    "describe_weights",
    "encode_weights",
    "model_to_bytes",
    "pack_half",
    "quantize_codes",
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
    plan_cache
        Number of input shapes whose plans are kept.
    fuse
        Fuse element-wise operators into the operator before them.
    """

    def __new__(
        cls,
        source: str | PathLike[str] | bytes,
        *,
        threads: int = 1,
        precision: str = "normal",
        memory: str = "normal",
        plan_cache: int = 16,
        fuse: bool = True,
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
