"""Inputs of ``run`` and ``bench``: arrays from files, images, random numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mnnq.cli import common

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mnnq.data.preprocess import ImageProcess
    from mnnq.runtime.session import InferenceSession, NodeArg

_F = TypeVar("_F", bound=Callable[..., Any])

#: Names of `mnnq.data.PRESETS`.
PRESETS = ("imagenet", "mobilenet", "unit", "caffe", "raw", "mnn")


class FileOption(common.ParamBase):
    """``name=file``, or ``file`` alone: (name or None, path)."""

    name = "name=file"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str | None, Path]:
        """Split the text of the option; names may hold ``=`` and an existing file is never split."""
        if isinstance(value, tuple):
            return value
        text = str(value)
        name, equals, path = text.rpartition("=")
        if not equals or Path(text).is_file():
            return None, Path(text)
        if not name or not path:
            self.fail(f"{text!r} is not of the form name=file", param, ctx)
        return name, Path(path)


class SizeOption(common.ParamBase):
    """``HEIGHTxWIDTH``."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Parse the text of the option."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([1-9]\d*)[x,]([1-9]\d*)", str(value))
        if match is None:
            self.fail(f"{value!r} is not of the form HEIGHTxWIDTH", param, ctx)
        return int(match[1]), int(match[2])


class NumbersOption(common.ParamBase):
    """One number, or one per channel: ``0.5`` or ``123.7,116.3,103.5``."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Parse the text of the option."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no number, nor numbers with commas between", param, ctx)


@dataclass(frozen=True)
class ImageSettings:
    """How an image becomes an input; None where nothing was given."""

    preset: str | None = None
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    bgr: bool = False
    resize: str | None = None

    @classmethod
    def of(cls, options: dict[str, Any]) -> ImageSettings:
        """Take the values out of a command's options."""
        return cls(**{entry.name: options.pop(entry.name) for entry in fields(cls)})

    def process(self) -> ImageProcess:
        """What happens to images: without a preset they are stretched to the size, antialiased.

        Raises
        ------
        ConfigError
            A value is not possible.
        """
        from mnnq.data.preprocess import preset

        resize = self.resize or (None if self.preset else "stretch")
        order = "BGR" if self.bgr else None
        return preset(self.preset, mean=self.mean, normal=self.scale, format=order, resize=resize)


def options(function: _F) -> _F:
    """Add the options that `gather` takes."""
    decorators = (
        click.option(
            "--input",
            "-i",
            "files",
            type=FileOption(),
            multiple=True,
            metavar="NAME=FILE",
            help="An input: .npy, .npz (the array of that name, or the only one) or an image. "
            "FILE alone: the input of a model that has one, or an .npz with all. Repeatable.",
        ),
        click.option(
            "--random", "seed", type=int, metavar="SEED", help="Random values for all other inputs."
        ),
        click.option(
            "--shape",
            "shapes",
            type=common.ShapeOption(),
            multiple=True,
            metavar="NAME=SHAPE",
            help="Shape of a random input, e.g. input=1x3x224x224; axes that vary are 1 without. Repeatable.",
        ),
        click.option(
            "--size", type=SizeOption(), metavar="HxW", help="Size of images. [default: the model's]"
        ),
        click.option(
            "--preset", type=click.Choice(PRESETS), help="How pixels of images become values, as for quant."
        ),
        click.option("--mean", type=NumbersOption(), help="Taken from pixels (0 to 255). [default: 0]"),
        click.option("--scale", type=NumbersOption(), help="Multiplies pixels less mean. [default: 1]"),
        click.option(
            "--resize",
            type=click.Choice(["crop", "stretch", "mnn", "none"]),
            help="How images get their size. [default: the preset's, or stretch]",
        ),
        click.option("--bgr", is_flag=True, help="Channels of images in the order blue, green, red."),
    )
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


def session_options(function: _F) -> _F:
    """Add the options of sessions; `open_session` takes what they give."""
    decorators = (
        click.option("--threads", type=click.IntRange(1, 1024), help="Threads to use. [default: all CPUs]"),
        click.option(
            "--precision",
            type=click.Choice(["normal", "high", "low"]),
            default="normal",
            show_default=True,
            help="high: sums in double precision; low: products in 16-bit floats where the CPU has them.",
        ),
        click.option(
            "--memory",
            type=click.Choice(["normal", "low"]),
            default="normal",
            show_default=True,
            help="low: quantized weights stay packed, activations are quantized while running.",
        ),
        click.option(
            "--dynamic",
            type=click.Choice(["auto", "always", "compat"]),
            default="auto",
            show_default=True,
            help="With --memory low, layers that run in integers: those that gain, all, or all with MNN's rules.",
        ),
        click.option(
            "--int8",
            type=click.Choice(["exact", "compat"]),
            default="exact",
            show_default=True,
            help="Offline-quantized layers: by the formulas, or pooling as MNN computes it.",
        ),
        click.option("--allow-nan", is_flag=True, help="Accept inputs that hold NaN."),
    )
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


def open_session(model: Path, threads: int | None, allow_nan: bool, **modes: str) -> InferenceSession:
    """A session for `model` with the modes of `session_options`; its errors name the file."""
    from mnnq.errors import ConfigError, MnnqError
    from mnnq.runtime import InferenceSession

    common.check_source(model)
    if modes["dynamic"] != "auto" and modes["memory"] != "low":
        msg = f"{modes['dynamic']!r} is of --memory low, which is not given"
        raise ConfigError(msg, key="--dynamic")
    chosen: dict[str, Any] = {"allow_nan": allow_nan, **modes}
    if threads is not None:
        chosen["threads"] = threads
    try:
        return InferenceSession(model, chosen)
    except MnnqError as error:
        error.file = error.file or str(model)
        raise


def gather(
    ports: Sequence[NodeArg],
    files: Sequence[tuple[str | None, Path]],
    seed: int | None,
    shapes: Mapping[str, Sequence[int]],
    image: ImageSettings,
) -> dict[str, npt.NDArray[Any]]:
    """The arrays to run a model on.

    Raises
    ------
    InputError
        An input is missing, unknown or given twice, or a file does not hold it; the message names it.
    OSError
        A file cannot be read.
    """
    import numpy as np

    from mnnq.errors import InputError

    known = {port.name: port for port in ports}
    feeds: dict[str, npt.NDArray[Any]] = {}
    for name, path in files:
        for found, array in _from_file(name, path, known, image).items():
            _known(found, known)
            if found in feeds:
                msg = f"input {found!r} is given twice"
                raise InputError(msg, file=str(path))
            feeds[found] = array
    for name in shapes:
        _known(name, known)
        if name in feeds or seed is None:
            msg = f"--shape is for random inputs; input {name!r} is {'read from a file' if name in feeds else 'none'}"
            raise InputError(msg)
    generator = None if seed is None else np.random.default_rng(abs(seed))
    for name, port in known.items():
        if name in feeds:
            continue
        if generator is None:
            msg = f"input {name!r} ({describe(port)}) is not given; use --input {name}=FILE or --random 0"
            raise InputError(msg)
        feeds[name] = _random(port, shapes.get(name), generator)
    return feeds


def describe(port: NodeArg) -> str:
    """Type and shape of an input: ``float32 1x3x?x?``."""
    axes = "x".join("?" if n is None else str(n) for n in port.shape)
    return f"{_dtype(port).name} {axes or 'scalar'}"


def _known(name: str, known: Mapping[str, NodeArg]) -> None:
    from mnnq.errors import InputError

    if name not in known:
        msg = f"no input is named {name!r}; inputs: {', '.join(known) or 'none'}"
        raise InputError(msg)


def _dtype(port: NodeArg) -> np.dtype[Any]:
    import numpy as np

    kind = port.type.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(kind, kind))


def _random(port: NodeArg, shape: Sequence[int] | None, generator: np.random.Generator) -> npt.NDArray[Any]:
    """Standard normal floats; integers that are 0 or 1, valid as indices."""
    lengths = tuple(shape) if shape is not None else tuple(n if isinstance(n, int) else 1 for n in port.shape)
    dtype = _dtype(port)
    if dtype.kind == "f":
        return generator.standard_normal(lengths).astype(dtype)
    return generator.integers(0, 2, lengths).astype(dtype)


def _from_file(
    name: str | None, path: Path, known: Mapping[str, NodeArg], image: ImageSettings
) -> dict[str, npt.NDArray[Any]]:
    """The inputs that a file holds."""
    from mnnq.errors import InputError

    suffix = path.suffix.lower()
    if suffix == ".npz":
        arrays = _arrays(path, name)
        if name is None and (len(known) != 1 or len(arrays) != 1 or set(arrays) <= set(known)):
            return arrays
        target = name or next(iter(known))
        if target in arrays:
            return {target: arrays[target]}
        if len(arrays) == 1:
            return {target: next(iter(arrays.values()))}
        msg = f"no array for input {target!r}; the file has {', '.join(arrays) or 'none'}"
        raise InputError(msg, file=str(path))
    if name is None and len(known) != 1:
        msg = f"say which input this file is for, NAME={path}; inputs: {', '.join(known) or 'none'}"
        raise InputError(msg, file=str(path))
    target = name or next(iter(known))
    _known(target, known)
    if suffix == ".npy":
        return _arrays(path, target)
    return {target: _image(path, known[target], image)}


def _arrays(path: Path, name: str | None) -> dict[str, npt.NDArray[Any]]:
    """Arrays of an .npz file, or the one of an .npy file under `name`."""
    import zipfile
    import zlib

    import numpy as np

    from mnnq.errors import InputError

    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {name or "": loaded}
        with loaded as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        what = "inputs" if name is None else f"input {name!r}"
        msg = f"not a file of arrays for {what}: {error}"
        raise InputError(msg, file=str(path)) from error


def _image(path: Path, port: NodeArg, settings: ImageSettings) -> npt.NDArray[Any]:
    """An image as an input ``[1, c, h, w]``, or ``[1, h, w, c]`` where the model's last axis has the channels."""
    from mnnq.data import image_values, input_specs

    return image_values(path, input_specs([port])[0], settings.process(), settings.size)
