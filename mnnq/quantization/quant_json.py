"""``quant.json``, the configuration of MNN's quantization tool: every key with its meaning, or an error."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from mnnq.data.dataset import Dataset
from mnnq.data.images import ImageFolder
from mnnq.data.inputs import Inputs, InputSpec, input_specs, shape_text
from mnnq.data.preprocess import ColorFormat, ImageProcess, Resize
from mnnq.data.sequence import SequenceFolder
from mnnq.errors import ConfigError

#: Channels that MNN keeps means and scales for.
_MAX_CHANNELS = 4


@dataclass(frozen=True)
class InputEntry:
    """An entry of ``inputs``.

    Attributes
    ----------
    name
        The input.
    shape
        Its shape, or None for that of the model.
    value
        Number that fills the input in every sample, or None.
    """

    name: str
    shape: tuple[int, ...] | None = None
    value: float | None = None


@dataclass(frozen=True)
class QuantJson:
    """A checked ``quant.json``; attributes are its keys, with MNN's defaults.

    Attributes
    ----------
    path
        Folder of the data, absolute, or relative to the working directory (not to the file).
    input_type
        ``"image"`` or ``"sequence"`` (a folder per sample).
    format, mean, normal, width, height, center_crop_h, center_crop_w
        For images: channels and order, ``(pixel - mean) * normal``, size of the input, share of the picture that is
        kept before resizing.
    used_image_num
        Samples to use, 0 for all (``used_sample_num`` is another name for it, and wins).
    feature_quantize_method
        ``"KL"``, ``"ADMM"`` or ``"EMA"``.
    weight_quantize_method
        ``"MAX_ABS"`` or ``"ADMM"``.
    feature_clamp_value, weight_clamp_value
        Largest code of activations and weights, 1 to 127.
    quant_bits
        2 to 8; below 8 it bounds codes whether or not clamp values are given.
    skip_quant_op_names
        Operators left float; ``*`` and ``?`` match.
    inputs
        Inputs with shape or constant value.
    debug
        Print cosine distance and overflow of each layer.
    batch_size, winogradOpt, model
        Change nothing here; `notes` says why.
    given
        Keys that the file has.
    file
        The file.
    """

    path: Path
    input_type: str = "image"
    format: ColorFormat = ColorFormat.BGR
    mean: tuple[float, ...] = ()
    normal: tuple[float, ...] = ()
    width: int | None = None
    height: int | None = None
    center_crop_h: float = 1.0
    center_crop_w: float = 1.0
    used_image_num: int = 0
    feature_quantize_method: str = "KL"
    weight_quantize_method: str = "MAX_ABS"
    feature_clamp_value: int = 127
    weight_clamp_value: int = 127
    quant_bits: int = 8
    batch_size: int | None = None
    skip_quant_op_names: tuple[str, ...] = ()
    winogradOpt: bool | None = None
    inputs: tuple[InputEntry, ...] = ()
    debug: bool = False
    model: str | None = None
    given: frozenset[str] = frozenset()
    file: Path | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Keys that change nothing, or less than they seem to, one line each."""
        lines = []
        if "batch_size" in self.given:
            lines.append(
                "batch_size changes nothing: samples are run one by one, and memory does not grow with them"
            )
        if self.winogradOpt:
            lines.append(
                "winogradOpt changes nothing: convolutions are quantized as they are, not in Winograd's domain"
            )
        if "model" in self.given:
            lines.append("model changes nothing, as in MNN")
        if {"used_image_num", "used_sample_num"} <= self.given:
            lines.append("used_sample_num wins over used_image_num, as in MNN")
        if self.input_type == "sequence":
            idle = sorted(self.given & _IMAGE_KEYS)
            if idle:
                lines.append(f"{', '.join(idle)}: for images only, unused with input_type sequence")
        for key in ("mean", "normal"):
            extra = len(getattr(self, key)) - self.format.channels
            if extra > 0 and self.input_type == "image":
                lines.append(
                    f"{key}: the last {extra} of {len(getattr(self, key))} numbers are unused for {self.format.value}"
                )
        return tuple(lines)

    def offline_options(self, *, compat: bool = False) -> dict[str, Any]:
        """Fields of `mnnq.quantization.offline.OfflineConfig`.

        Parameters
        ----------
        compat
            Choose ranges exactly as MNN's tool, and do nothing that it does not do.
        """
        options: dict[str, Any] = {
            "feature_method": self.feature_quantize_method.lower(),
            "weight_method": self.weight_quantize_method.lower(),
            "feature_clamp": self.feature_clamp_value,
            "weight_clamp": self.weight_clamp_value,
            "bits": self.quant_bits,
            "skip": self.skip_quant_op_names,
        }
        if compat:
            options |= {"compat": True, "bias_correction": False, "equalization": False, "keep_float": False}
        return options

    def process(self) -> ImageProcess:
        """What happens to images."""
        channels = self.format.channels
        size = None
        if self.height is not None and self.width is not None:
            size = (self.height, self.width)
        return ImageProcess(
            self.format,
            self.mean[:channels] or (0.0,),
            self.normal[:channels] or (1.0,),
            size,
            Resize.MNN,
            (self.center_crop_h, self.center_crop_w),
        )

    def dataset(self, inputs: Inputs) -> Dataset:
        """Open the data for a model.

        Raises
        ------
        ConfigError
            A key does not fit the model or the data; it is named.
        InputError
            The data do not fit the model.
        """
        specs = input_specs(inputs)
        where = None if self.file is None else str(self.file)
        if not self.path.is_dir():
            beside = self.file is not None and (self.file.parent / self.path).is_dir()
            kind = "no folder" if self.path.exists() else "no such folder"
            hint = (
                f"; it is relative to the working directory, {Path.cwd()}, not to this file" if beside else ""
            )
            msg = f"{str(self.path)!r}: {kind}{hint}"
            raise ConfigError(msg, file=where, key="path")
        try:
            return self._sequence(specs) if self.input_type == "sequence" else self._images(specs)
        except ConfigError as error:
            error.file = error.file or where
            raise

    def _sequence(self, specs: tuple[InputSpec, ...]) -> Dataset:
        known = {spec.name: spec for spec in specs}
        for entry in self.inputs:
            _check_entry(entry, known)
        dataset = SequenceFolder(self.path, specs, samples=self.used_image_num or None)
        constants = _constants(self.inputs, known)
        return dataset if not constants else _WithConstants(dataset, constants)

    def _images(self, specs: tuple[InputSpec, ...]) -> Dataset:
        known = {spec.name: spec for spec in specs}
        for entry in self.inputs:
            _check_entry(entry, known)
        constants = _constants(self.inputs, known)
        named = [entry.name for entry in self.inputs if entry.value is None]
        return ImageFolder(
            self.path,
            specs,
            self.process(),
            input_name=named[0] if len(named) == 1 else None,
            constants=constants,
            samples=self.used_image_num or None,
        )


#: Keys that concern images only.
_IMAGE_KEYS = frozenset({"format", "mean", "normal", "width", "height", "center_crop_h", "center_crop_w"})


class _WithConstants(Dataset):
    """A dataset whose samples get further inputs."""

    def __init__(self, base: Dataset, constants: Mapping[str, Any]) -> None:
        super().__init__(base.inputs)
        self._base, self._constants = base, dict(constants)

    @property
    def description(self) -> str:
        return self._base.description

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._base.warnings

    def __len__(self) -> int:
        return len(self._base)

    def source(self, index: int) -> str:
        return self._base.source(index)

    def load(self, index: int) -> Mapping[str, Any]:
        return {**self._constants, **self._base.load(index)}


def _check_entry(entry: InputEntry, known: Mapping[str, InputSpec]) -> None:
    spec = known.get(entry.name)
    if spec is None:
        msg = f"the model has no input {entry.name!r}; it has {', '.join(known) or 'none'}"
        raise ConfigError(msg, key="inputs")
    if entry.shape is None or spec.shape is None:
        return
    fits = len(entry.shape) == len(spec.shape) and all(
        wanted is None or wanted == n for n, wanted in zip(entry.shape, spec.shape, strict=True)
    )
    if not fits:
        msg = f"input {entry.name!r}: shape {shape_text(entry.shape)}, the model has {shape_text(spec.shape)}"
        raise ConfigError(msg, key="inputs")


def _constants(entries: tuple[InputEntry, ...], known: Mapping[str, InputSpec]) -> dict[str, Any]:
    constants = {}
    for entry in entries:
        if entry.value is None:
            continue
        spec = known[entry.name]
        shape = entry.shape if entry.shape is not None else spec.shape
        if shape is None or any(n is None for n in shape):
            msg = f"input {entry.name!r} ({spec}): its shape varies; give one"
            raise ConfigError(msg, key="inputs")
        dtype = np.dtype(spec.dtype)
        if dtype.kind != "f" and entry.value != int(entry.value):
            msg = f"input {entry.name!r} is {dtype.name}; {entry.value!r} is no whole number"
            raise ConfigError(msg, key="inputs")
        constants[entry.name] = np.full([n or 0 for n in shape], entry.value, dtype)
    return constants


# -- reading


def read_quant_json(path: str | Path) -> QuantJson:
    """Read and check a ``quant.json``.

    Raises
    ------
    ConfigError
        It is no JSON object, or a key or a value is wrong; the message names the key, the value and what is allowed.
    OSError
        It cannot be read.
    """
    path = Path(path)
    try:
        return parse_quant_json(path.read_text(encoding="utf-8-sig"), path)
    except UnicodeDecodeError as error:
        msg = f"not a text file: {error.reason}"
        raise ConfigError(msg, file=str(path)) from error


def parse_quant_json(text: str, file: Path | None = None) -> QuantJson:
    """As `read_quant_json`, from the text of the file."""
    try:
        return _parse(text, file)
    except ConfigError as error:
        error.file = error.file or (None if file is None else str(file))
        raise


def _parse(text: str, file: Path | None) -> QuantJson:
    try:
        record = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except ValueError as error:
        msg = f"not JSON: {error}"
        raise ConfigError(msg) from error
    if not isinstance(record, dict):
        msg = f"wanted an object {{...}}, got {type(record).__name__}"
        raise ConfigError(msg)
    for key in record:
        if key not in _READERS:
            close = difflib.get_close_matches(key, _READERS, n=1, cutoff=0.6)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(_READERS)}"
            msg = f"no such key; {hint}"
            raise ConfigError(msg, key=key)
    values = {key: _READERS[key](value, key) for key, value in record.items()}
    if "path" not in values:
        msg = "missing; it names the folder of the data"
        raise ConfigError(msg, key="path")
    if "used_sample_num" in values:
        values["used_image_num"] = values.pop("used_sample_num")
    result = QuantJson(**values, given=frozenset(record), file=file)
    if result.input_type == "image":
        for key in ("width", "height"):
            if key not in values:
                msg = "missing; images need the width and height of the model's input"
                raise ConfigError(msg, key=key)
        _check_channels(result)
    return result


def _check_channels(config: QuantJson) -> None:
    channels = config.format.channels
    for key in ("mean", "normal"):
        values = getattr(config, key)
        if values and len(values) < channels:
            msg = f"{list(values)} has {len(values)} numbers, {config.format.value} has {channels} channels"
            raise ConfigError(msg, key=key)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            msg = "it is there twice"
            raise ConfigError(msg, key=key)
        seen[key] = value
    return seen


def _no_number(text: str) -> float:
    msg = f"{text} is no number of JSON"
    raise ValueError(msg)


def _wrong(key: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(f"{json.dumps(value, default=str)}, wanted {allowed}", key=key)


def _number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def _whole(low: int, high: int | None) -> Callable[[object, str], int]:
    allowed = f"a whole number, {low} or more" if high is None else f"a whole number from {low} to {high}"

    def read(value: object, key: str) -> int:
        if (
            not isinstance(value, int)
            or isinstance(value, bool)
            or value < low
            or (high is not None and value > high)
        ):
            raise _wrong(key, value, allowed)
        return value

    return read


def _one_of(*allowed: str) -> Callable[[object, str], str]:
    def read(value: object, key: str) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise _wrong(key, value, f"one of {', '.join(allowed)}")
        return value

    return read


def _color(value: object, key: str) -> ColorFormat:
    return ColorFormat(_one_of(*(member.value for member in ColorFormat))(value, key))


def _numbers(value: object, key: str) -> tuple[float, ...]:
    if not isinstance(value, list) or not value or len(value) > _MAX_CHANNELS or not all(map(_number, value)):
        raise _wrong(key, value, f"a list of numbers, one per channel, at most {_MAX_CHANNELS}")
    if key == "normal" and 0 in value:
        raise _wrong(key, value, "numbers other than 0, which makes a channel constant")
    return tuple(float(item) for item in value)


def _share(value: object, key: str) -> float:
    if not _number(value) or not 0 < value <= 1:
        raise _wrong(key, value, "a number above 0, at most 1")
    return float(value)


def _folder(value: object, key: str) -> Path:
    if not isinstance(value, str) or not value:
        raise _wrong(key, value, "the name of a folder")
    return Path(value)


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise _wrong(key, value, "text")
    return value


def _names(value: object, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise _wrong(key, value, "a list of names of operators")
    return tuple(value)


def _flag(value: object, key: str) -> bool:
    if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise _wrong(key, value, "true or false")


def _entries(value: object, key: str) -> tuple[InputEntry, ...]:
    if not isinstance(value, list):
        raise _wrong(key, value, 'a list of {"name": ..., "shape": [...], "value": ...}')
    known = {entry.name for entry in fields(InputEntry)}
    entries = []
    for item in value:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str) or set(item) - known:
            raise _wrong(key, item, '{"name": ..., "shape": [...], "value": ...}')
        shape, number = item.get("shape"), item.get("value")
        lengths = isinstance(shape, list) and all(
            isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape
        )
        if shape is not None and not lengths:
            raise _wrong(key, item, "a shape that is a list of lengths, 1 or more each")
        if number is not None and not _number(number):
            raise _wrong(key, item, "a value that is a number")
        entries.append(InputEntry(item["name"], None if shape is None else tuple(shape), number))
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise _wrong(key, names, "each input once")
    return tuple(entries)


_READERS: Mapping[str, Callable[[Any, str], Any]] = {
    "format": _color,
    "mean": _numbers,
    "normal": _numbers,
    "width": _whole(1, 1 << 16),
    "height": _whole(1, 1 << 16),
    "center_crop_h": _share,
    "center_crop_w": _share,
    "path": _folder,
    "used_image_num": _whole(0, None),
    "used_sample_num": _whole(0, None),
    "feature_quantize_method": _one_of("KL", "ADMM", "EMA"),
    "weight_quantize_method": _one_of("MAX_ABS", "ADMM"),
    "feature_clamp_value": _whole(1, 127),
    "weight_clamp_value": _whole(1, 127),
    "quant_bits": _whole(2, 8),
    "batch_size": _whole(1, None),
    "skip_quant_op_names": _names,
    "winogradOpt": _flag,
    "input_type": _one_of("image", "sequence"),
    "inputs": _entries,
    "debug": _flag,
    "model": _text,
}
