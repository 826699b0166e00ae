"""Folders of images as datasets."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mnnq.data.dataset import Dataset
from mnnq.data.inputs import InputSpec
from mnnq.data.labels import Labels, read_labels
from mnnq.data.preprocess import PRESETS, ColorFormat, ImageProcess, preset
from mnnq.errors import ConfigError, InputError

if TYPE_CHECKING:
    from PIL.Image import Image

#: Suffixes of the kinds of images that are read.
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp"})

#: Kinds of images, as Pillow calls them; others may need plug-ins that run programs.
KINDS = ("JPEG", "PNG", "BMP", "DIB", "WEBP")

#: Files left out that a message names; the rest are counted.
_NAMED = 5

#: Bytes of processed images that a folder keeps, the first ones that are asked for: several stages go through the first samples.
_KEPT_BYTES = 64 << 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unreadable:
    """A file that is no image, or a damaged one."""

    path: Path
    reason: str


class ImageFolder(Dataset):
    """The images of a folder (or one image), in order of their names.

    Parameters
    ----------
    path
        A folder with images, or with one sub-folder of images per class (then `labels` follow the sorted names of
        the sub-folders), or an image.
    inputs
        Inputs of the model; one of them takes the image.
    process
        What happens to an image, or the name of a preset; None only where the input takes pixels as they are (uint8).
    input_name
        The input that takes the image; by default the only one that can.
    constants
        Values of all other inputs, by name.
    samples
        Samples to use at most; by default all. Each image is decoded once to see whether it can be, until there are enough.
    seed
        Choose the images at random by this seed; by default the first, or the first of each class in turn.
    labels
        File that names the class of each image, see `read_labels`.
    changes
        Fields of the process to replace: ``mean=``, ``normal=``, ``size=``, ``format=`` ...

    Raises
    ------
    InputError
        There is no (readable) image, or none can be given to the model.
    ConfigError
        The process does not go with the model.
    OSError
        The folder cannot be read.

    Notes
    -----
    Files that cannot be read are not used, and named in `warnings`. As MNN does, alpha is dropped, not blended, and
    a note on orientation in the file (EXIF) is not followed. Where the batch of the model is fixed to more than 1,
    that many images make a sample.
    """

    def __init__(
        self,
        path: str | Path,
        inputs: Sequence[InputSpec],
        process: ImageProcess | str | None = None,
        *,
        input_name: str | None = None,
        constants: Mapping[str, npt.ArrayLike] | None = None,
        samples: int | None = None,
        seed: int | None = None,
        labels: str | Path | None = None,
        **changes: Any,
    ) -> None:
        super().__init__(inputs)
        _require_pillow()
        self.path = Path(path)
        self._constants = dict(constants or {})
        self.input = _image_input(self.inputs, input_name, self._constants)
        scaled = changes.get("mean") is not None or changes.get("normal") is not None
        if process is None and not scaled and self.input.dtype != "uint8":
            msg = (
                "say how pixels become values of the input: a preset "
                f"({', '.join(PRESETS)}), or mean and scale"
            )
            raise ConfigError(msg, key="preset")
        self.process = preset(process, **changes)
        assert self.input.shape is not None
        self._axis = self.input.image_axis
        assert self._axis is not None
        self._check_channels()
        self._batch = self.input.shape[0] or 1
        self._size = self._input_size()
        found = _Found.of(self.path)
        names = read_labels(Path(labels)) if labels is not None else None
        self._kept: dict[int, npt.NDArray[Any]] = {}
        self._room = _KEPT_BYTES
        self._select(found, samples, seed, names)

    # -- what it is

    @property
    def description(self) -> str:
        """Number of images and the folder."""
        count = len(self._files)
        return f"{count} image{'s' if count != 1 else ''} of {self.path}"

    @property
    def labels(self) -> tuple[int, ...] | None:
        """Class index of each sample, from sub-folders or the file of labels."""
        return self._labels

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the sub-folders."""
        return self._classes

    @property
    def unreadable(self) -> tuple[Unreadable, ...]:
        """Files that were looked at and left out."""
        return self._unreadable

    @property
    def warnings(self) -> tuple[str, ...]:
        """Files left out."""
        return self._warnings

    def __len__(self) -> int:
        return len(self._files) // self._batch

    def source(self, index: int) -> str:
        """Names of the files of the sample, relative to the folder."""
        files = self._files[index * self._batch : (index + 1) * self._batch]
        return ", ".join(self._relative(file) for file in files)

    def load(self, index: int) -> Mapping[str, npt.ArrayLike]:
        """Decode and process the images of the sample; some are kept, read-only, so that further passes need not."""
        if index in self._kept:
            return {**self._constants, self.input.name: self._kept[index]}
        files = self._files[index * self._batch : (index + 1) * self._batch]
        values = [self._image(file) for file in files]
        if len({value.shape for value in values}) > 1:
            msg = f"{self.label_of(index)}: the images of a batch have different sizes; give a size"
            raise InputError(msg, key=self.input.name)
        stacked = np.stack(values)
        if stacked.nbytes <= self._room:
            stacked.flags.writeable = False
            self._kept[index] = stacked
            self._room -= stacked.nbytes
        return {**self._constants, self.input.name: stacked}

    def __getstate__(self) -> dict[str, Any]:
        """Without the images kept: other processes decode their own."""
        return {**self.__dict__, "_kept": {}, "_room": _KEPT_BYTES}

    # -- choosing

    def _select(self, found: _Found, samples: int | None, seed: int | None, labels: Labels | None) -> None:
        if samples is not None and (isinstance(samples, bool) or samples < 1):
            msg = f"{samples!r} samples are not possible; use 1 or more"
            raise ConfigError(msg, key="samples")
        candidates = found.spread()
        if seed is not None:
            candidates = [int(i) for i in np.random.default_rng(seed).permutation(len(found.files))]
        wanted = len(candidates) if samples is None else samples * self._batch
        good: list[int] = []
        bad: list[Unreadable] = []
        for index in candidates:
            if len(good) == wanted:
                break
            reason = _why_unreadable(found.files[index])
            if reason is None:
                good.append(index)
            else:
                bad.append(Unreadable(found.files[index], reason))
        self._unreadable = tuple(bad)
        if not good:
            raise InputError(_nothing(bad), file=str(self.path))
        good.sort()
        spare = len(good) % self._batch
        if len(good) < self._batch:
            msg = f"{len(good)} images do not fill the model's batch of {self._batch}"
            raise InputError(msg, file=str(self.path))
        good = good[: len(good) - spare]
        self._files = [found.files[i] for i in good]
        self._warnings = tuple(self._describe_rest(bad, found, spare))
        self._classes = found.classes or (labels.classes if labels is not None else None)
        self._labels = self._label_all(found, good, labels)

    def _label_all(
        self, found: _Found, chosen: Sequence[int], labels: Labels | None
    ) -> tuple[int, ...] | None:
        if labels is None and found.labels is None:
            return None
        if self._batch != 1:
            msg = f"labels need a model of batch 1, not {self._batch}"
            raise ConfigError(msg, key="labels")
        if labels is not None:
            return tuple(labels.of(self._relative(found.files[i])) for i in chosen)
        assert found.labels is not None
        return tuple(found.labels[i] for i in chosen)

    def _describe_rest(self, bad: Sequence[Unreadable], found: _Found, spare: int) -> Iterator[str]:
        if bad:
            named = "; ".join(f"{self._relative(entry.path)} ({entry.reason})" for entry in bad[:_NAMED])
            more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
            count = "1 file is" if len(bad) == 1 else f"{len(bad)} files are"
            yield f"{self.path}: {count} no readable image and not used: {named}{more}"
        if found.ignored:
            yield f"{self.path}: sub-folders are not used where there are images beside them: {', '.join(found.ignored[:_NAMED])}"
        if spare:
            yield f"{self.path}: the last {spare} images do not fill a batch of {self._batch} and are not used"

    # -- one image

    def _image(self, file: Path) -> npt.NDArray[Any]:
        def refuse(problem: object) -> InputError:
            return InputError(f"not a readable image: {problem}", file=str(file))

        try:
            picture = _decode(file)
            value = (
                self.process.pixels(picture, self._size)
                if self.input.dtype == "uint8"
                else self.process.apply(picture, self._size)
            )
        except ConfigError as error:
            error.file = str(file)
            raise
        except Exception as error:  # decoders raise many unrelated types on damaged files
            if isinstance(error, OSError) and error.filename is not None:
                raise
            raise refuse(error) from error
        return np.ascontiguousarray(value if self._axis == 3 else value.transpose(2, 0, 1))

    def _relative(self, file: Path) -> str:
        return file.name if self.path == file else file.relative_to(self.path).as_posix()

    def _check_channels(self) -> None:
        assert self.input.shape is not None
        assert self._axis is not None
        wanted, given = self.input.shape[self._axis], self.process.format.channels
        if wanted == 1 and self.process.format is ColorFormat.RGB and len(self.process.mean) == 1:
            self.process = preset(self.process, format=ColorFormat.GRAY)
            return
        if wanted is not None and wanted != given:
            msg = (
                f"{self.process.format.value} has {given} channels, input {self.input.name!r} ({self.input}) has "
                f"{wanted}; use {'GRAY' if wanted == 1 else 'RGB or BGR' if wanted == 3 else 'RGBA or BGRA'}"
            )
            raise ConfigError(msg, key="format")
        if self.input.dtype == "uint8" and (
            set(self.process.mean) != {0.0} or set(self.process.normal) != {1.0}
        ):
            msg = f"input {self.input.name!r} takes pixels as they are (uint8); leave out mean and scale"
            raise ConfigError(msg, key="mean")

    def _input_size(self) -> tuple[int, int] | None:
        assert self.input.shape is not None
        own = self.input.shape[1:3] if self._axis == 3 else self.input.shape[2:4]
        asked = self.process.size
        for given, wanted in zip(asked or (), own, strict=False):
            if wanted is not None and given != wanted:
                msg = f"{asked}, but input {self.input.name!r} is {self.input}"
                raise ConfigError(msg, key="size")
        if asked is not None:
            return asked
        if own[0] is not None and own[1] is not None:
            return own[0], own[1]
        if self._batch > 1 or own[0] is not None or own[1] is not None:
            msg = f"input {self.input.name!r} ({self.input}) leaves the size open; give one"
            raise ConfigError(msg, key="size")
        return None


@dataclass(frozen=True)
class _Found:
    """Files of a folder, with class indices when they lie in sub-folders."""

    files: list[Path]
    labels: list[int] | None = None
    classes: tuple[str, ...] | None = None
    ignored: tuple[str, ...] = ()

    def spread(self) -> list[int]:
        """Indices of the files in the order they are chosen: one of each class after the other."""
        if self.labels is None:
            return list(range(len(self.files)))
        seen: Counter[int] = Counter()
        ranks = []
        for index, label in enumerate(self.labels):
            ranks.append((seen[label], label, index))
            seen[label] += 1
        return [index for _, _, index in sorted(ranks)]

    @classmethod
    def of(cls, path: Path) -> _Found:
        if path.is_file():
            return cls([path])
        path.stat()  # the error names the path
        files, folders = _entries(path)
        images = [file for file in files if file.suffix.lower() in SUFFIXES]
        if images or not folders:
            return cls(files, ignored=tuple(folder.name for folder in folders))
        nested, labels = [], []
        for index, folder in enumerate(folders):
            inner = _entries(folder)[0]
            nested += inner
            labels += [index] * len(inner)
        return cls(nested, labels, tuple(folder.name for folder in folders))


def image_values(
    path: str | Path, spec: InputSpec, process: ImageProcess, size: tuple[int, int] | None = None
) -> npt.NDArray[Any]:
    """One image as the input that it is for.

    Parameters
    ----------
    spec
        The input; pixels go to a uint8 input as they are.
    process
        What happens to the image. RGB with one mean and scale becomes gray where the input has one channel.
    size
        (height, width); by default that of the input, or of the image where the input leaves it open.

    Returns
    -------
    ``[1, c, h, w]``, or ``[1, h, w, c]`` where the last axis of the input has the channels.

    Raises
    ------
    InputError
        The file is no image, or the input cannot be one.
    ConfigError
        The process does not go with the input.
    OSError
        The file cannot be read.
    """
    file = Path(path)
    file.stat()  # the error names the path
    _require_pillow()
    reason = _why_unreadable(file)
    if reason is not None:
        msg = f"input {spec.name!r}: no readable image: {reason}"
        raise InputError(msg, file=str(file))
    folder = ImageFolder(file, [spec], process, size=size)
    return np.asarray(folder.load(0)[spec.name])


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files and folders, sorted by name; hidden ones are left out."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return [e for e in entries if e.is_file()], [e for e in entries if e.is_dir()]


def has_images(folder: Path) -> bool:
    """Whether a folder, or a folder in it, has files with the suffix of an image."""
    files, folders = _entries(folder)
    if any(file.suffix.lower() in SUFFIXES for file in files):
        return True
    return any(file.suffix.lower() in SUFFIXES for inner in folders for file in _entries(inner)[0])


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        msg = "images need Pillow; `pip install pillow` installs it"
        raise ConfigError(msg) from None


def _decode(file: Path) -> Image:
    from PIL import Image as Pil

    picture: Image
    with Pil.open(file, formats=KINDS) as picture:
        picture.load()
    return picture


def _why_unreadable(file: Path) -> str | None:
    """Decode an image (a JPEG at an eighth of its size); None when that works."""
    from PIL import Image as Pil
    from PIL import UnidentifiedImageError

    try:
        with Pil.open(file, formats=KINDS) as opened:
            opened.draft("RGB", (max(1, math.ceil(opened.width / 8)), max(1, math.ceil(opened.height / 8))))
            opened.load()
    except UnidentifiedImageError:
        return "it is no JPEG, PNG, BMP or WebP"
    except Exception as error:  # decoders raise many unrelated types on damaged files
        return str(getattr(error, "strerror", None) or error) or type(error).__name__
    return None


def _nothing(bad: Sequence[Unreadable]) -> str:
    if not bad:
        return "there are no images in it"
    first = f"{bad[0].path.name}: {bad[0].reason}"
    return f"no readable image in it; {len(bad)} file{'s were' if len(bad) > 1 else ' was'} tried, the first is {first}"


def _image_input(
    inputs: Sequence[InputSpec], name: str | None, constants: Mapping[str, npt.ArrayLike]
) -> InputSpec:
    known = {spec.name: spec for spec in inputs}
    for key in (*constants, *([name] if name is not None else [])):
        if key not in known:
            msg = f"the model has no input {key!r}; it has {', '.join(known) or 'none'}"
            raise ConfigError(msg, key="inputs")
    rest = [spec for spec in inputs if spec.name not in constants]
    chosen = [spec for spec in rest if spec.image_axis is not None] if name is None else [known[name]]
    if len(chosen) != 1:
        found = ", ".join(f"{spec.name} ({spec})" for spec in rest)
        which = (
            "none can be an image"
            if not chosen
            else "several can be images; say which (--image-input, input_name=)"
        )
        msg = f"of the inputs {found or 'without a value'} {which}"
        raise ConfigError(msg, key="inputs")
    if chosen[0].image_axis is None:
        msg = f"input {chosen[0].name!r} ({chosen[0]}) cannot be an image; give arrays"
        raise ConfigError(msg, key="inputs")
    missing = [spec.name for spec in rest if spec is not chosen[0]]
    if missing:
        msg = f"input {missing[0]!r} has no value; give a constant for it, or all inputs as arrays"
        raise ConfigError(msg, key="inputs")
    return chosen[0]
