"""Opening an ONNX file without copying its big tensors.

The protobuf runtime would hold the file and a parsed copy of every tensor, twice the model or more. Here the
file is mapped, the wire format is walked just deep enough to find large ``raw_data`` of initializers, and only
the rest is parsed; the large payloads become arrays over the mapping. External data are mapped likewise.

Field numbers (onnx.proto): ``ModelProto.graph`` 7, ``GraphProto.initializer`` 5, ``TensorProto.raw_data`` 9.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError

from mnnq.errors import ModelError

#: Payloads of at least this many bytes stay in the file.
MAPPED_BYTES = 1 << 16

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_LEN = 2

#: Element types whose raw bytes are a plain little-endian numpy array.
_PLAIN: dict[int, str] = {
    onnx.TensorProto.FLOAT: "<f4",
    onnx.TensorProto.DOUBLE: "<f8",
    onnx.TensorProto.FLOAT16: "<f2",
    onnx.TensorProto.INT8: "<i1",
    onnx.TensorProto.INT16: "<i2",
    onnx.TensorProto.INT32: "<i4",
    onnx.TensorProto.INT64: "<i8",
    onnx.TensorProto.UINT8: "<u1",
    onnx.TensorProto.UINT16: "<u2",
    onnx.TensorProto.UINT32: "<u4",
    onnx.TensorProto.UINT64: "<u8",
}

#: Payload of an initializer, by position in the file's list of initializers.
Payloads = dict[int, memoryview]


def open_model(path: Path) -> tuple[onnx.ModelProto, Payloads]:
    """Parse an ONNX file; large payloads of initializers come apart, as views of the mapped file.

    Raises
    ------
    ModelError
        The file is no ONNX model or is damaged.
    OSError
        The file cannot be read.
    """
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            msg = "the file is empty"
            raise ModelError(msg, file=str(path))
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    payloads: Payloads = {}
    try:
        light = _strip_model(view, payloads)
        proto = onnx.ModelProto.FromString(light)
    except (DecodeError, _Malformed, IndexError) as error:
        msg = f"not an ONNX file, or a damaged one ({error})"
        raise ModelError(msg, file=str(path)) from error
    if not proto.HasField("graph"):
        msg = "not an ONNX file, or a damaged one: it holds no graph"
        raise ModelError(msg, file=str(path))
    return proto, payloads


def to_array(tensor: onnx.TensorProto, base: Path, payload: memoryview | None = None) -> npt.NDArray[Any]:
    """Array of a tensor; over mapped memory when the data lie in `payload` or in an external file.

    Raises
    ------
    ModelError
        The data do not fit the declared type and shape, or lie outside the model's folder.
    """
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        payload = _external(tensor, base)
    if payload is None:
        array: npt.NDArray[Any] = onnx.numpy_helper.to_array(tensor)
        return array
    if tensor.data_type not in _PLAIN:
        whole = onnx.TensorProto()
        whole.CopyFrom(tensor)
        whole.ClearField("external_data")
        whole.data_location = onnx.TensorProto.DEFAULT
        whole.raw_data = bytes(payload)
        return np.asarray(onnx.numpy_helper.to_array(whole))
    dtype = np.dtype(_PLAIN[tensor.data_type])
    count = int(np.prod(np.asarray(tensor.dims, np.int64))) if tensor.dims else 1
    if count * dtype.itemsize != len(payload):
        msg = (
            f"tensor {tensor.name!r} of shape {list(tensor.dims)} and type {dtype.name} needs "
            f"{count * dtype.itemsize} bytes, its data have {len(payload)}"
        )
        raise ModelError(msg)
    return np.frombuffer(payload, dtype).reshape(tuple(tensor.dims))


def _external(tensor: onnx.TensorProto, base: Path) -> memoryview:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    path = (base / location).resolve()
    if not location or not path.is_relative_to(base.resolve()):
        msg = f"tensor {tensor.name!r} keeps its data in {location!r}, which is not beside the model"
        raise ModelError(msg)
    if not path.is_file():
        msg = f"tensor {tensor.name!r} keeps its data in {location!r}, which does not exist"
        raise ModelError(msg)
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", path.stat().st_size - offset))
    except ValueError as error:
        msg = f"tensor {tensor.name!r} has a bad offset or length of external data: {error}"
        raise ModelError(msg) from error
    if offset < 0 or length < 0 or offset + length > path.stat().st_size:
        msg = f"tensor {tensor.name!r}: bytes {offset}..{offset + length} lie outside {location!r}"
        raise ModelError(msg)
    if length == 0:
        return memoryview(b"")
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[offset : offset + length]


class _Malformed(Exception):
    """The wire format ends early or holds an unknown field kind."""


def _strip_model(view: memoryview, payloads: Payloads) -> bytes:
    parts: list[bytes | memoryview] = []
    initializers = _counter()
    for number, whole, body in _fields(view):
        if number == _GRAPH and body is not None:
            stripped = _strip_graph(body, payloads, initializers)
            parts += [_key(_GRAPH), _varint(len(stripped)), stripped]
        else:
            parts.append(whole)
    return b"".join(parts)


def _strip_graph(view: memoryview, payloads: Payloads, initializers: Iterator[int]) -> bytes:
    parts: list[bytes | memoryview] = []
    for number, whole, body in _fields(view):
        if number != _INITIALIZER or body is None:
            parts.append(whole)
            continue
        index = next(initializers)
        if len(body) < MAPPED_BYTES:
            parts.append(whole)
            continue
        kept = []
        for inner, field, data in _fields(body):
            if inner == _RAW_DATA and data is not None and len(data) >= MAPPED_BYTES:
                payloads[index] = data
            else:
                kept.append(field)
        tensor = b"".join(kept)
        parts += [_key(_INITIALIZER), _varint(len(tensor)), tensor]
    return b"".join(parts)


def _fields(view: memoryview) -> Iterator[tuple[int, memoryview, memoryview | None]]:
    """Fields of a message: number, the field's bytes with its key, the body of length-delimited ones."""
    position = 0
    while position < len(view):
        start = position
        key, position = _read_varint(view, position)
        kind = key & 7
        body = None
        if kind == 0:
            _, position = _read_varint(view, position)
        elif kind == 1:
            position += 8
        elif kind == _LEN:
            size, position = _read_varint(view, position)
            if position + size > len(view):
                msg = "a field ends behind the end of the file"
                raise _Malformed(msg)
            body = view[position : position + size]
            position += size
        elif kind == 5:
            position += 4
        else:
            msg = f"unknown field kind {kind}"
            raise _Malformed(msg)
        if position > len(view):
            msg = "a field ends behind the end of the file"
            raise _Malformed(msg)
        yield key >> 3, view[start:position], body


def _read_varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
        shift += 7
        if shift > 63:
            msg = "an integer is too long"
            raise _Malformed(msg)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _key(number: int) -> bytes:
    return _varint(number << 3 | _LEN)


def _counter() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1
