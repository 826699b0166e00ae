"""MNN's ``input_type: sequence``: a folder per sample with text files of numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.data.dataset import Dataset
from mnnq.data.inputs import InputSpec
from mnnq.errors import InputError


class SequenceFolder(Dataset):
    """Samples as MNN's tools write and read them.

    Each sub-folder is a sample. Its ``input.json`` lists the inputs, ``{"inputs": [{"name": ..., "shape": [...]}]}``,
    and ``<name>.txt`` holds the numbers of an input, separated by white space (``:`` and ``/`` in a name are ``_`` in the
    file's name). Sub-folders are taken in the order of the numbers in their names.

    Parameters
    ----------
    path
        The folder of the sub-folders, or one of these.
    inputs
        Inputs of the model.
    samples
        Sub-folders to use at most; by default all.

    Raises
    ------
    InputError
        There is no sample, or a plain file lies beside the sub-folders that looks like one.
    OSError
        The folder cannot be read.
    """

    def __init__(self, path: str | Path, inputs: Sequence[InputSpec], *, samples: int | None = None) -> None:
        super().__init__(inputs)
        self.path = Path(path)
        if not self.path.is_dir():
            self.path.stat()
            msg = "it is a file; sequences are sub-folders with an input.json and a text file per input"
            raise InputError(msg, file=str(path))
        if (self.path / "input.json").is_file():
            self._folders = [self.path]
        else:
            entries = [entry for entry in self.path.iterdir() if not entry.name.startswith(".")]
            self._folders = sorted((entry for entry in entries if entry.is_dir()), key=_natural)
        self._extra = sorted(
            e.name for e in self.path.iterdir() if e.is_file() and not e.name.startswith(".")
        )
        if not self._folders:
            msg = "it has no sub-folders; each sample is one, with an input.json and a text file per input"
            raise InputError(msg, file=str(path))
        self._folders = self._folders[:samples]

    @property
    def description(self) -> str:
        """Number of samples and the folder."""
        count = len(self._folders)
        return f"{count} sequence{'s' if count != 1 else ''} of {self.path}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Files beside the sub-folders, which are not used."""
        if not self._extra or self._folders == [self.path]:
            return ()
        return (f"{self.path}: files beside the sub-folders are not used: {', '.join(self._extra[:5])}",)

    def __len__(self) -> int:
        return len(self._folders)

    def source(self, index: int) -> str:
        """Name of the sub-folder."""
        return self._folders[index].name

    def load(self, index: int) -> Mapping[str, npt.ArrayLike]:
        """Read the numbers of one sample."""
        folder = self._folders[index]
        shapes = _shapes(folder / "input.json")
        known = {spec.name: spec for spec in self.inputs}
        feeds: dict[str, npt.NDArray[Any]] = {}
        for name, shape in shapes.items():
            if name not in known:
                msg = f"the model has no input {name!r}; it has {', '.join(known) or 'none'}"
                raise InputError(msg, file=str(folder / "input.json"), key=name)
            feeds[name] = _numbers(_text_file(folder, name), shape, known[name])
        return feeds


def is_sequence_folder(path: Path) -> bool:
    """Whether a folder, or the first folder in it, has an ``input.json``."""
    if (path / "input.json").is_file():
        return True
    return any((entry / "input.json").is_file() for entry in sorted(path.iterdir()) if entry.is_dir())


def _natural(path: Path) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", path.name) if part]


def _shapes(path: Path) -> dict[str, tuple[int, ...] | None]:
    def refuse(problem: str) -> InputError:
        return InputError(problem, file=str(path))

    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        msg = "the sample has no input.json, which lists its inputs"
        raise InputError(msg, file=str(path.parent)) from None
    except ValueError as error:
        msg = f"not JSON: {error}"
        raise refuse(msg) from error
    entries = value.get("inputs") if isinstance(value, dict) else None
    if not isinstance(entries, list) or not entries:
        msg = 'wanted {"inputs": [{"name": ..., "shape": [...]}, ...]}'
        raise refuse(msg)
    shapes: dict[str, tuple[int, ...] | None] = {}
    for entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            msg = f"an input without a name: {entry!r}"
            raise refuse(msg)
        shape = entry.get("shape")
        if shape is not None and (
            not isinstance(shape, list)
            or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape)
        ):
            msg = f"input {name!r}: shape {shape!r} is no list of lengths"
            raise refuse(msg)
        if name in shapes:
            msg = f"input {name!r} is there twice"
            raise refuse(msg)
        shapes[name] = None if shape is None else tuple(shape)
    return shapes


def _text_file(folder: Path, name: str) -> Path:
    plain = folder / f"{re.sub('[/:]', '_', name)}.txt"
    if plain.is_file():
        return plain
    msg = f"no {plain.name} for input {name!r}"
    raise InputError(msg, file=str(folder), key=name)


def _numbers(path: Path, shape: tuple[int, ...] | None, spec: InputSpec) -> npt.NDArray[Any]:
    try:
        words = path.read_text(encoding="ascii").split()
        values = np.asarray([float(word) for word in words], np.float64)
    except (UnicodeDecodeError, ValueError) as error:
        msg = f"input {spec.name!r}: not a file of numbers: {error}"
        raise InputError(msg, file=str(path), key=spec.name) from error
    if shape is None and spec.shape is not None and None not in spec.shape:
        shape = tuple(n for n in spec.shape if n is not None)
    if shape is None:
        msg = f"input {spec.name!r}: its shape is not in input.json, and the model ({spec}) leaves it open"
        raise InputError(msg, file=str(path), key=spec.name)
    count = int(np.prod(shape, dtype=np.int64))
    if count != values.size:
        msg = f"input {spec.name!r}: {values.size} numbers, shape {list(shape)} wants {count}"
        raise InputError(msg, file=str(path), key=spec.name)
    wanted = np.dtype(spec.dtype)
    if wanted.kind != "f" and values.size and (values != np.rint(values)).any():
        msg = f"input {spec.name!r} is {wanted.name}, but there are numbers that are not whole"
        raise InputError(msg, file=str(path), key=spec.name)
    kind = wanted if wanted.kind == "f" else np.dtype(np.int64)
    return values.astype(kind).reshape(shape)
