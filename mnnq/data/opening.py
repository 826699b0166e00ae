"""`open_dataset`: a dataset from whatever the user has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from mnnq.data import arrays, images
from mnnq.data.arrays import ArrayDataset
from mnnq.data.dataset import Dataset
from mnnq.data.images import ImageFolder
from mnnq.data.inputs import Inputs, input_specs
from mnnq.data.preprocess import ImageProcess
from mnnq.data.sequence import SequenceFolder, is_sequence_folder
from mnnq.errors import ConfigError, InputError


def open_dataset(
    source: str | Path | Iterable[Any],
    inputs: Inputs,
    *,
    preset: str | ImageProcess | None = None,
    samples: int | None = None,
    seed: int | None = None,
    labels: str | Path | None = None,
    input_name: str | None = None,
    constants: Mapping[str, npt.ArrayLike] | None = None,
    **process: Any,
) -> Dataset:
    """Open data for a model; what they are follows from the content.

    Parameters
    ----------
    source
        A folder of images (JPEG, PNG, BMP, WebP), of `.npy` or `.npz` files, or of MNN's sequences; one image or
        file of arrays; or a Python collection of samples (mappings from input name to array).
    inputs
        The model, a session of it, or a list of its inputs.
    preset, process
        For images: an `ImageProcess` or the name of one, and fields of it to replace (``mean=``, ``size=`` ...).
    samples, seed
        Samples to use; by default all. The first, or a random choice by the seed.
    labels
        File with the class of each image.
    input_name, constants
        For images: which input takes the image, and the values of the others.

    Raises
    ------
    InputError
        There are no data, or they do not fit the model.
    ConfigError
        An option goes with other data only.
    OSError
        A file cannot be read.

    Examples
    --------
    >>> import mnnq.data
    >>> model = mnnq.load("mobilenet.onnx")  # doctest: +SKIP
    >>> photos = mnnq.data.open_dataset("photos/", model, preset="imagenet", samples=100)  # doctest: +SKIP
    """
    specs = input_specs(inputs)
    for_images = {
        "preset": preset,
        "labels": labels,
        "input_name": input_name,
        "constants": constants,
        **process,
    }
    if not isinstance(source, (str, Path)):
        if isinstance(source, Dataset) and not any(v is not None for v in for_images.values()):
            return source if samples is None else source.subset(samples, seed=seed)
        _only_images(for_images, "a Python collection")
        dataset: Dataset = ArrayDataset(source, specs)
        return dataset if samples is None else dataset.subset(samples, seed=seed)
    path = Path(source)
    kind = kind_of(path)
    if kind == "images":
        return ImageFolder(
            path,
            specs,
            preset,
            input_name=input_name,
            constants=constants,
            samples=samples,
            seed=seed,
            labels=labels,
            **process,
        )
    _only_images(for_images, str(path))
    dataset = SequenceFolder(path, specs) if kind == "sequence" else ArrayDataset(path, specs)
    return dataset if samples is None else dataset.subset(samples, seed=seed)


def kind_of(path: Path) -> str:
    """``"images"``, ``"arrays"`` or ``"sequence"``, by the content of a folder or the suffix of a file.

    Raises
    ------
    InputError
        It is none of these; the message says what there is.
    OSError
        It does not exist.
    """
    if not path.is_dir():
        path.stat()
        suffix = path.suffix.lower()
        if suffix in arrays.SUFFIXES:
            return "arrays"
        if suffix in images.SUFFIXES:
            return "images"
        msg = "it is neither an image nor a file of arrays (.npy, .npz)"
        raise InputError(msg, file=str(path))
    if is_sequence_folder(path):
        return "sequence"
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    has_arrays = any(entry.suffix.lower() in arrays.SUFFIXES for entry in entries if entry.is_file())
    has_images = images.has_images(path)
    if has_arrays and has_images:
        msg = "it has images and files of arrays; keep one kind in a folder"
        raise InputError(msg, file=str(path))
    if has_arrays or has_images:
        return "arrays" if has_arrays else "images"
    if not entries:
        msg = "the folder is empty; wanted images, .npy or .npz files, or folders with an input.json"
        raise InputError(msg, file=str(path))
    names = ", ".join(sorted(entry.name for entry in entries)[:5])
    msg = f"there are no images, .npy or .npz files, or folders with an input.json in it; it has {names}"
    raise InputError(msg, file=str(path))


def _only_images(options: Mapping[str, Any], what: str) -> None:
    for key, value in options.items():
        if value is not None:
            msg = f"it goes with images only, not with {what}; arrays are used as they are"
            raise ConfigError(msg, key=key)
