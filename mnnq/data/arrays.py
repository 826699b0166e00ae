"""Samples from arrays: .npy and .npz files, folders of them, Python iterables, random numbers."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.data.dataset import Dataset
from mnnq.data.inputs import InputSpec, shape_text
from mnnq.errors import ConfigError, InputError

#: Bytes that an iterator may yield before it is refused: its samples have to be kept to be used twice.
ITERATOR_LIMIT = 4 << 30

#: Suffixes of files of arrays.
SUFFIXES = (".npy", ".npz")

#: Arrays of an .npz file that hold the class of each sample, unless the model has such an input.
LABELS = ("labels", "label")

_Arrays = dict[str, npt.NDArray[Any]]


class ArrayDataset(Dataset):
    """Samples given as arrays.

    Parameters
    ----------
    source
        * a `.npz` file with an array per input (a single array is taken for the only input) and, if there are,
          class indices under the name ``labels``; or a `.npy` file for a model with one input; memory is that of
          the file;
        * a folder of such files, each with one sample or several;
        * a collection (list, dataset, anything with a length that can be iterated twice) of samples: mappings from
          input name to array, or the array itself for a model with one input;
        * an iterator: it is read once and its samples are kept, at most 4 GiB of them.
    inputs
        Inputs of the model.

    Notes
    -----
    An array of a file may have one axis less than the input (the batch axis of 1 is added) or one more (its first
    axis counts samples). Otherwise it is cut along its first axis into pieces as long as the model's batch, or of 1
    where the batch may vary.

    Raises
    ------
    InputError
        Files or samples do not fit the model.
    ConfigError
        `source` is nothing of this.
    """

    def __init__(self, source: str | Path | Iterable[Any], inputs: Sequence[InputSpec]) -> None:
        super().__init__(inputs)
        self._fetch: Callable[[int], Any]
        self._names: list[str] = []
        self._labels: tuple[int, ...] | None = None
        self._given: Any = None if isinstance(source, (str, Path)) else source
        if isinstance(source, (str, Path)):
            self._open(Path(source))
        else:
            self._adopt(source)

    @property
    def description(self) -> str:
        """Number of samples and where they come from."""
        return f"{self._count} sample{'s' if self._count != 1 else ''} of {self._origin}"

    @property
    def labels(self) -> tuple[int, ...] | None:
        """Labels of the files, or of the collection when it is a dataset that has them."""
        if self._labels is not None:
            return self._labels
        labels = getattr(self._given, "labels", None)
        return tuple(labels) if isinstance(labels, (tuple, list)) else None

    def __len__(self) -> int:
        return self._count

    def load(self, index: int) -> Mapping[str, npt.ArrayLike]:
        """Make sample `index`."""
        return self._as_feeds(self._fetch(index), index)

    def source(self, index: int) -> str:
        """File of the sample."""
        return self._names[index] if self._names else ""

    # -- files

    def _open(self, path: Path) -> None:
        files = [path] if path.is_file() else _array_files(path)
        pieces: list[tuple[Path, int, int]] = []
        labels: list[int] = []
        for file in files:
            arrays, found = _read(file, self.inputs)
            count = len(_split(arrays, self.inputs, file))
            pieces += [(file, i, count) for i in range(count)]
            labels += _labels(found, count, file)
        if labels and len(labels) < len(pieces):
            msg = "some of its files have labels and others have none"
            raise InputError(msg, file=str(path), key="labels")
        self._labels = tuple(labels) or None
        many = len(files) > 1
        self._names = [
            (f"{file.name}" if many else file.name) + (f"[{i}]" if count > 1 else "")
            for file, i, count in pieces
        ]
        self._count, self._origin = len(pieces), str(path)
        self._fetch = _Pieces(pieces, self.inputs)

    # -- Python values

    def _adopt(self, source: Iterable[Any]) -> None:
        if isinstance(source, Mapping):
            msg = "a mapping is one sample; give a list of samples"
            raise ConfigError(msg, key="dataset")
        if isinstance(source, np.ndarray):
            if len(self.inputs) != 1:
                msg = "one array cannot feed several inputs; give mappings from input name to array"
                raise ConfigError(msg, key="dataset")
            samples = _split({self.inputs[0].name: source}, self.inputs, None)
            self._fetch, self._count, self._origin = samples.__getitem__, len(samples), "an array"
            return
        if not isinstance(source, Iterable) and not hasattr(source, "__getitem__"):
            msg = f"{type(source).__name__} is no collection of samples"
            raise ConfigError(msg, key="dataset")
        length = getattr(source, "__len__", None)
        if isinstance(source, Iterator) or length is None:
            kept = _materialize(source)
            self._fetch, self._count, self._origin = kept.__getitem__, len(kept), type(source).__name__
        else:
            self._count, self._origin = int(length()), type(source).__name__
            self._fetch = self._given.__getitem__ if _indexed(source) else _Walk(source)
        if self._count == 0:
            msg = "there are no samples in it"
            raise InputError(msg, key="dataset")

    def _as_feeds(self, item: Any, index: int) -> Mapping[str, npt.ArrayLike]:
        if isinstance(item, Mapping):
            return item
        if isinstance(item, np.ndarray) and len(self.inputs) == 1:
            return {self.inputs[0].name: item}
        if isinstance(item, (tuple, list)) and len(item) == len(self.inputs) and len(item) > 1:
            return {spec.name: value for spec, value in zip(self.inputs, item, strict=True)}
        names = ", ".join(spec.name for spec in self.inputs)
        msg = f"{self.label_of(index)} is {type(item).__name__}, wanted a mapping with arrays for {names}"
        raise InputError(msg, key="dataset")


class _Pieces:
    """Samples by index from files; the arrays of the last file are kept."""

    def __init__(self, pieces: Sequence[tuple[Path, int, int]], inputs: Sequence[InputSpec]) -> None:
        self._pieces, self._inputs = pieces, inputs
        self._file: Path | None = None
        self._arrays: list[_Arrays] = []

    def __call__(self, index: int) -> _Arrays:
        file, piece, _ = self._pieces[index]
        if file != self._file:
            self._arrays = _split(_read(file, self._inputs)[0], self._inputs, file)
            self._file = file
        return self._arrays[piece]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_arrays": []}


class _Walk:
    """Index into a collection that can only be iterated; cheap when it is asked for one after the other."""

    def __init__(self, source: Iterable[Any]) -> None:
        self._source = source
        self._iterator: Iterator[Any] | None = None
        self._next = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"_source": self._source, "_iterator": None, "_next": 0}

    def __call__(self, index: int) -> Any:
        if self._iterator is None or index < self._next:
            self._iterator, self._next = iter(self._source), 0
        try:
            while True:
                item = next(self._iterator)
                self._next += 1
                if self._next == index + 1:
                    return item
        except StopIteration:
            msg = f"sample {index}: the dataset ended after {self._next}; it must give the same samples each time"
            raise InputError(msg, key="dataset") from None


def _indexed(source: object) -> bool:
    return isinstance(source, (Sequence, Dataset)) or (
        hasattr(source, "__getitem__") and not hasattr(source, "__iter__")
    )


def _materialize(source: Iterable[Any]) -> list[Any]:
    kept: list[Any] = []
    size = 0
    for item in source:
        values = (
            item.values()
            if isinstance(item, Mapping)
            else item
            if isinstance(item, (tuple, list))
            else [item]
        )
        size += sum(np.asarray(value).nbytes for value in values)
        if size > ITERATOR_LIMIT:
            msg = (
                f"an iterator of more than {ITERATOR_LIMIT >> 30} GiB ({len(kept)} samples so far) cannot be kept; "
                "give a collection that can be iterated again (a class with __len__ and __getitem__)"
            )
            raise InputError(msg, key="dataset")
        kept.append(item)
    return kept


def _array_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        folder.stat()  # the error names the path
    files = sorted(f for f in folder.iterdir() if f.is_file() and f.suffix.lower() in SUFFIXES)
    if not files:
        msg = "no .npy or .npz files in it"
        raise InputError(msg, file=str(folder))
    return files


def _labels(found: npt.NDArray[Any] | None, count: int, file: Path) -> list[int]:
    """Class indices of a file's samples; none when it has none."""
    if found is None:
        return []
    if found.dtype.kind not in "iu" or found.size != count or (found.size and int(found.min()) < 0):
        msg = f"labels are {found.dtype.name} {shape_text(found.shape)}, wanted {count} class indices from 0"
        raise InputError(msg, file=str(file), key="labels")
    return [int(label) for label in found.reshape(-1)]


def _read(path: Path, inputs: Sequence[InputSpec]) -> tuple[_Arrays, npt.NDArray[Any] | None]:
    """The arrays of a file by input name, and its labels."""
    names = [spec.name for spec in inputs]
    try:
        if path.suffix.lower() == ".npz":
            # numpy leaves a file open that turns out to be none, so it is opened here
            with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
                arrays = {key: loaded[key] for key in loaded.files}
        else:
            arrays = {"": np.load(path, allow_pickle=False, mmap_mode="r")}
            if not isinstance(arrays[""], np.ndarray):
                arrays[""].close()
                msg = "its name ends in .npy, but it is an .npz file"
                raise ValueError(msg)
    except (ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        msg = f"not a file of arrays: {error}"
        raise InputError(msg, file=str(path)) from error
    label = next((key for key in LABELS if key in arrays and key not in names), None)
    labels = None if label is None else arrays.pop(label)
    if len(names) == 1 and len(arrays) == 1 and names[0] not in arrays:
        return {names[0]: next(iter(arrays.values()))}, labels
    if "" in arrays:
        msg = f"one array cannot feed {len(names)} inputs; give an .npz file with {', '.join(names)}"
        raise InputError(msg, file=str(path))
    missing = [name for name in names if name not in arrays]
    if missing:
        msg = f"no array for input {missing[0]!r}; it has {', '.join(arrays) or 'none'}"
        raise InputError(msg, file=str(path), key=missing[0])
    unknown = [name for name in arrays if name not in names]
    if unknown:
        msg = f"the model has no input {unknown[0]!r}; it has {', '.join(names)}"
        raise InputError(msg, file=str(path), key=unknown[0])
    return arrays, labels


def _split(arrays: _Arrays, inputs: Sequence[InputSpec], file: Path | None) -> list[_Arrays]:
    """Cut arrays into samples along their first axes."""
    parts: dict[str, list[npt.NDArray[Any]]] = {}
    for spec in inputs:
        parts[spec.name] = _pieces(arrays[spec.name], spec, file)
    counts = {name: len(pieces) for name, pieces in parts.items()}
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{count} for {name!r}" for name, count in counts.items())
        msg = f"the inputs have different numbers of samples: {each}"
        raise InputError(msg, file=None if file is None else str(file))
    count = next(iter(counts.values()), 0)
    return [{name: pieces[i] for name, pieces in parts.items()} for i in range(count)]


def _pieces(array: npt.NDArray[Any], spec: InputSpec, file: Path | None) -> list[npt.NDArray[Any]]:
    rank = None if spec.shape is None else len(spec.shape)
    where = None if file is None else str(file)
    if rank is None or rank == 0:
        return [array]
    assert spec.shape is not None
    if array.ndim == rank + 1:
        pieces = list(array)
    elif array.ndim == rank - 1 and spec.shape[0] in (1, None):
        pieces = [array[None]]
    elif array.ndim == rank:
        batch = spec.shape[0] or 1
        if len(array) % batch:
            msg = f"input {spec.name!r}: {len(array)} rows do not fill batches of {batch}"
            raise InputError(msg, file=where, key=spec.name)
        pieces = [array[i : i + batch] for i in range(0, len(array), batch)]
    else:
        msg = f"input {spec.name!r} has shape {shape_text(array.shape)}, wanted {shape_text(spec.shape)}"
        raise InputError(msg, file=where, key=spec.name)
    if not pieces:
        msg = f"input {spec.name!r}: there are no samples in it"
        raise InputError(msg, file=where, key=spec.name)
    return pieces


class RandomDataset(Dataset):
    """Random values: standard normal floats, integers 0 and 1 (valid as indices). For timing and for trials.

    Parameters
    ----------
    count
        Number of samples.
    shapes
        Shapes of inputs with axes that vary, by name; such axes are 1 without.
    """

    is_generated = True

    def __init__(
        self,
        inputs: Sequence[InputSpec],
        count: int = 8,
        *,
        seed: int = 0,
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(inputs)
        if count < 1:
            msg = f"{count!r} samples are not possible; use 1 or more"
            raise ConfigError(msg, key="samples")
        self._count, self._seed, self._shapes = count, seed, dict(shapes or {})
        unknown = set(self._shapes) - {spec.name for spec in self.inputs}
        if unknown:
            msg = f"no input is named {sorted(unknown)[0]!r}"
            raise ConfigError(msg, key="shapes")

    @property
    def description(self) -> str:
        """Number of samples."""
        return f"{self._count} random samples"

    def __len__(self) -> int:
        return self._count

    def load(self, index: int) -> Mapping[str, npt.ArrayLike]:
        """Sample `index`: the same values each time."""
        generator = np.random.default_rng([self._seed, index])
        feeds: dict[str, npt.ArrayLike] = {}
        for spec in self.inputs:
            shape = self._shapes.get(spec.name, tuple(n or 1 for n in spec.shape or ()))
            if np.dtype(spec.dtype).kind == "f":
                feeds[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
            else:
                feeds[spec.name] = generator.integers(0, 2, shape).astype(spec.dtype)
        return feeds
