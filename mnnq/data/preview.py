"""A picture of what the network sees: the first samples side by side, and the range of their values."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mnnq.data.dataset import Feeds, Subset
from mnnq.data.images import ImageFolder
from mnnq.data.inputs import InputSpec
from mnnq.data.preprocess import ImageProcess
from mnnq.errors import ConfigError

#: Pixels between the samples of a sheet, and the gray there.
_GAP, _GROUND = 4, 128

#: Widest sheet, in pixels; samples are shrunk to fit.
_WIDTH = 1600


@dataclass(frozen=True)
class InputRange:
    """Values of one input over some samples.

    Attributes
    ----------
    minimum, maximum, mean, std
        Of all values.
    whole
        Whether all values are whole numbers.
    """

    name: str
    shape: tuple[int, ...]
    minimum: float
    maximum: float
    mean: float
    std: float
    whole: bool

    def __str__(self) -> str:
        kind = ", whole numbers" if self.whole else ""
        shape = "x".join(map(str, self.shape))
        return (
            f"input {self.name!r} ({shape}): {self.minimum:.4g} to {self.maximum:.4g}, mean {self.mean:.4g}, "
            f"deviation {self.std:.4g}{kind}"
        )


@dataclass(frozen=True)
class Preview:
    """What `preview` found.

    Attributes
    ----------
    samples
        Number of samples looked at.
    ranges
        Values of each input over them.
    file
        The picture, if one was written.
    """

    samples: int
    ranges: tuple[InputRange, ...]
    file: Path | None = None


def preview(
    dataset: Collection[Feeds],
    inputs: Sequence[InputSpec],
    file: str | Path | None = None,
    *,
    count: int = 16,
) -> Preview:
    """Measure the first samples, and draw them when the model takes pictures.

    Images are turned back into pixels by the inverse of their process; other arrays are stretched from their
    smallest to their largest value.

    Parameters
    ----------
    file
        PNG to write.
    count
        Samples to show at most.

    Raises
    ------
    ConfigError
        A file is asked for but no input can be drawn (four axes, 1, 3 or 4 channels), or its suffix is not ``.png``.
    InputError
        A sample does not fit the model.
    """
    spec = next((entry for entry in inputs if entry.image_axis is not None), None)
    if file is not None:
        file = Path(file)
        if file.suffix.lower() != ".png":
            msg = "the preview is a PNG; let its name end in .png"
            raise ConfigError(msg, file=str(file), key="preview")
        if spec is None:
            named = ", ".join(f"{entry.name} ({entry})" for entry in inputs)
            msg = f"no input can be drawn as a picture: {named}"
            raise ConfigError(msg, key="preview")
    pictures: list[npt.NDArray[np.uint8]] = []
    sums = [_Sums(entry) for entry in inputs]
    seen = 0
    for feeds in islice(iter(dataset), count):
        seen += 1
        for total in sums:
            total.add(np.asarray(feeds[total.spec.name]))
        if spec is not None and file is not None:
            pictures += _draw(np.asarray(feeds[spec.name]), spec, _process_of(dataset))
    if file is not None:
        _write_sheet(pictures[:count], file)
    return Preview(seen, tuple(total.result() for total in sums), file)


class _Sums:
    def __init__(self, spec: InputSpec) -> None:
        self.spec = spec
        self._shape: tuple[int, ...] = ()
        self._low, self._high, self._whole = math.inf, -math.inf, True
        self._sum = self._square = 0.0
        self._count = 0

    def add(self, array: npt.NDArray[Any]) -> None:
        self._shape = array.shape
        if not array.size:
            return
        values = array.astype(np.float64)
        self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))
        self._whole = self._whole and bool((values == np.rint(values)).all())
        self._sum += float(values.sum())
        self._square += float(np.square(values).sum())
        self._count += values.size

    def result(self) -> InputRange:
        count = max(self._count, 1)
        low, high = (self._low, self._high) if self._count else (0.0, 0.0)
        mean = self._sum / count
        std = math.sqrt(max(0.0, self._square / count - mean * mean))
        return InputRange(self.spec.name, self._shape, low, high, mean, std, self._whole)


def _process_of(dataset: object) -> ImageProcess | None:
    while isinstance(dataset, Subset):
        dataset = dataset.base
    return dataset.process if isinstance(dataset, ImageFolder) else None


def _draw(
    array: npt.NDArray[Any], spec: InputSpec, process: ImageProcess | None
) -> list[npt.NDArray[np.uint8]]:
    """One RGB picture per row of the batch."""
    values = array if spec.image_axis == 3 else array.transpose(0, 2, 3, 1)
    if process is not None and process.format.channels == values.shape[-1]:
        return [process.undo(row) for row in values]
    out = []
    for row in values:
        low, high = float(row.min()), float(row.max())
        pixels = np.rint((row.astype(np.float64) - low) * (255 / (high - low) if high > low else 0)).astype(
            np.uint8
        )
        out.append(pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=-1))
    return out


def _write_sheet(pictures: Sequence[npt.NDArray[np.uint8]], file: Path) -> None:
    import io

    from PIL import Image

    from mnnq.files import write_atomically

    columns = min(len(pictures), math.ceil(math.sqrt(len(pictures))))
    width = max(picture.shape[1] for picture in pictures)
    height = max(picture.shape[0] for picture in pictures)
    scale = min(1.0, (_WIDTH - _GAP) / columns / width)
    cell = max(1, int(width * scale)), max(1, int(height * scale))
    rows = math.ceil(len(pictures) / columns)
    step = cell[0] + _GAP, cell[1] + _GAP
    sheet = Image.new("RGB", (columns * step[0] + _GAP, rows * step[1] + _GAP), (_GROUND,) * 3)
    for i, picture in enumerate(pictures):
        image = Image.fromarray(np.ascontiguousarray(picture))
        if scale < 1:
            image = image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))
        sheet.paste(image, (_GAP + i % columns * step[0], _GAP + i // columns * step[1]))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_atomically(file, buffer.getvalue())
