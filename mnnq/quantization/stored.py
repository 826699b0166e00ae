"""How a convolution-like operator of a `.mnn` model holds its weights now."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq import _native
from mnnq.errors import FormatError
from mnnq.ir.model import Op


class Storage(enum.Enum):
    """Kinds of storage."""

    FLOAT = "float"
    HALF = "fp16"
    CODES = "codes"
    SPARSE_FLOAT = "sparse float"
    OLD_INT8 = "old int8"
    INPUT = "input"


@dataclass(frozen=True)
class StoredWeights:
    """Description of a layer's weights.

    Attributes
    ----------
    shape
        Rows (``outputCount``) and weights per row.
    kernel
        Kernel positions (kh * kw).
    bits
        2 to 8, 16 or 32.
    symmetric
        Whether codes have a scale only.
    block
        Input channels per block; None for one block per output channel.
    size
        Bytes of weights, scales and minima.
    """

    storage: Storage
    shape: tuple[int, int]
    kernel: int
    bits: int
    symmetric: bool
    block: int | None
    size: int
    fp16_scales: bool = False

    @property
    def scheme(self) -> str | None:
        """``"symmetric"``, ``"asymmetric"``, or None for floats."""
        if self.storage not in (Storage.CODES, Storage.OLD_INT8):
            return None
        return "symmetric" if self.symmetric else "asymmetric"

    @property
    def channels(self) -> int:
        """Input channels of a row."""
        return self.shape[1] // self.kernel


def quant_size(quant: Mapping[str, Any]) -> int:
    """Bytes of codes, scales and minima of an ``IDSTQuan`` table."""
    return (
        _length(quant, "buffer")
        + 4 * _length(quant, "alpha")
        + 2 * _length(quant, "alphaFp16")
        + 4 * _length(quant, "index")
    )


def _length(fields: Mapping[str, Any], key: str) -> int:
    value = fields.get(key)
    return 0 if value is None else int(value.size) if isinstance(value, np.ndarray) else len(value)


def describe(op: Op) -> StoredWeights:
    """Describe the weights of an operator with ``Convolution2D`` parameters.

    Raises
    ------
    FormatError
        The stored weights break the format.
    """
    params = op.params
    outputs, kernel = _outputs(op), _kernel(op)
    quant = params.get("quanParameter")
    old = params.get("symmetricQuan", {})
    if quant is not None:
        return _describe_quant(op, quant, kernel)
    if _length(params, "weight"):
        count = _length(params, "weight")
        return StoredWeights(Storage.FLOAT, _shape(op, count), kernel, 32, False, None, 4 * count)
    if _length(old, "weight"):
        count = _length(old, "weight")
        size = count + 4 * _length(old, "scale")
        return StoredWeights(Storage.OLD_INT8, _shape(op, count), kernel, 8, True, None, size)
    return StoredWeights(Storage.INPUT, (outputs, 0), kernel, 32, False, None, 0)


def _outputs(op: Op) -> int:
    """Output channels of an operator."""
    outputs = int(op.params.get("common", {}).get("outputCount", 0)) or max(_length(op.params, "bias"), 1)
    if outputs < 0:
        msg = f"{outputs} output channels"
        raise FormatError(msg, node=op.name, key="common.outputCount")
    return outputs


def _kernel(op: Op) -> int:
    """Kernel positions of an operator."""
    common = op.params.get("common", {})
    width, height = int(common.get("kernelX", 1)), int(common.get("kernelY", 1))
    if width < 1 or height < 1:
        msg = f"a kernel of {width} x {height}"
        raise FormatError(msg, node=op.name, key="common.kernelX")
    return width * height


def _shape(op: Op, count: int) -> tuple[int, int]:
    """Rows and their length of `count` weights."""
    outputs = _outputs(op)
    if count % outputs:
        msg = f"{count} weights are not the same number for each of {outputs} output channels"
        raise FormatError(msg, node=op.name, key="weight")
    return outputs, count // outputs


def _describe_quant(op: Op, quant: Mapping[str, Any], kernel: int) -> StoredWeights:
    if _length(quant, "index"):
        count = int(quant.get("weightSize", 0))
        return StoredWeights(
            Storage.SPARSE_FLOAT, _shape(op, count), kernel, 32, False, None, quant_size(quant)
        )
    if int(quant.get("type", 0)) == 3:
        size = quant_size(quant)
        return StoredWeights(Storage.HALF, _shape(op, size // 2), kernel, 16, False, None, size)
    bits, rows, row_len, asymmetric = _native.describe_weights(op.params)
    shape = _shape(op, rows * row_len)
    blocks = rows // shape[0]
    return StoredWeights(
        Storage.CODES,
        shape,
        kernel,
        bits,
        not asymmetric,
        row_len // kernel if blocks > 1 else None,
        quant_size(quant),
        quant.get("scaleStorage") == "FP16",
    )


def float_weights(op: Op) -> npt.NDArray[Any]:
    """Weights of an operator as floats ``[outputCount, n]``; a view of what it holds where possible.

    The type is float32, or float16 or bfloat16 where a source model has that.

    Raises
    ------
    FormatError
        The stored weights break the format.
    """
    plain = op.params.get("quanParameter") is None
    weights = np.asarray(op.params["weight"] if plain else _native.decode_weights(op.params)["weight"])
    return aligned(weights.reshape(_shape(op, weights.size)))


def aligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array itself, or a copy in the same order when it lies at an odd address (as in a mapped ONNX file)."""
    return array if array.flags.aligned else array.copy(order="K")
