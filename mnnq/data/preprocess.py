"""From a decoded picture to what a network takes: size, order of channels, mean and scale."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mnnq.data.resample import corner_aligned
from mnnq.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image


class ColorFormat(str, enum.Enum):
    """Channels and their order, named as MNN names them."""

    RGB = "RGB"
    BGR = "BGR"
    RGBA = "RGBA"
    BGRA = "BGRA"
    GRAY = "GRAY"

    @property
    def channels(self) -> int:
        """Number of channels."""
        return {"GRAY": 1, "RGB": 3, "BGR": 3}.get(self.value, 4)


class Resize(str, enum.Enum):
    """How a picture gets the size of the input."""

    CROP = "crop"
    """Shorter side to `ImageProcess.margin` times the size, antialiased, then the centre: what classifiers expect."""
    STRETCH = "stretch"
    """To the size whatever the aspect, antialiased."""
    MNN = "mnn"
    """To the size whatever the aspect as MNN's image processing does: corners aligned, no antialiasing, cut off to
    whole numbers (`mnnq.data.resample.corner_aligned`)."""
    NONE = "none"
    """Not at all; a picture of another size is an error."""


#: Weights of the gray value of MNN, in 64ths.
_GRAY = (19, 38, 7)


@dataclass(frozen=True)
class ImageProcess:
    """What happens to a picture: ``(pixel - mean) * normal`` after resizing, pixels being 0 to 255.

    Attributes
    ----------
    format
        Channels and their order.
    mean, normal
        One number, or one per channel in the order of `format`.
    size
        (height, width); None for the size of the model's input.
    resize
        How the size is reached.
    center_crop
        Share of height and width that is kept, from the middle, before resizing (``resize`` ``"mnn"`` only).
    margin
        Shorter side relative to the size before the centre is cut out (``resize`` ``"crop"`` only); 256 / 224 by
        custom.

    Raises
    ------
    ConfigError
        A value is not possible; `key` names it.
    """

    format: ColorFormat = ColorFormat.RGB
    mean: tuple[float, ...] = (0.0,)
    normal: tuple[float, ...] = (1.0,)
    size: tuple[int, int] | None = None
    resize: Resize = Resize.CROP
    center_crop: tuple[float, float] = (1.0, 1.0)
    margin: float = 256 / 224

    def __post_init__(self) -> None:
        for key, kind in (("format", ColorFormat), ("resize", Resize)):
            object.__setattr__(self, key, _member(kind, getattr(self, key), key))
        for key in ("mean", "normal"):
            object.__setattr__(self, key, _numbers(getattr(self, key), key, self.format))
        if any(value == 0 for value in self.normal):
            msg = f"{list(self.normal)} has a 0, which makes a channel constant"
            raise ConfigError(msg, key="normal")
        if self.size is not None:
            object.__setattr__(self, "size", _size(self.size))
        crop = self.center_crop
        if len(crop) != 2 or not all(_is_number(c) and 0 < c <= 1 for c in crop):
            msg = f"{crop!r} is not possible; use two shares above 0, at most 1"
            raise ConfigError(msg, key="center_crop")
        if tuple(crop) != (1.0, 1.0) and self.resize is not Resize.MNN:
            msg = f"it goes with resize 'mnn' only, not with {self.resize.value!r}"
            raise ConfigError(msg, key="center_crop")
        if not _is_number(self.margin) or not 1 <= self.margin <= 4:
            msg = f"{self.margin!r} is not possible; use 1 to 4"
            raise ConfigError(msg, key="margin")

    def apply(self, picture: Image, size: tuple[int, int] | None = None) -> npt.NDArray[np.float32]:
        """Process one picture.

        Parameters
        ----------
        size
            (height, width) wanted where `self.size` leaves it open; that of the picture where both do.

        Returns
        -------
        ``[height, width, channels]``.
        """
        pixels = self.pixels(picture, size).astype(np.float32)
        mean, normal = (np.asarray(values, np.float32) for values in (self.mean, self.normal))
        return np.asarray((pixels - mean) * normal, np.float32)

    def pixels(self, picture: Image, size: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
        """As `apply`, before mean and scale: ``[height, width, channels]``, 0 to 255."""
        height, width = self.size or size or (picture.height, picture.width)
        plain = _eight_bits(picture).convert("RGBA" if self.format.channels == 4 else "RGB")
        if self.resize is Resize.MNN:
            return _reorder(corner_aligned(np.asarray(plain), height, width, self.center_crop), self.format)
        sized = self._sized(plain, height, width)
        rgb = np.asarray(sized)
        return _reorder(rgb, self.format)

    def _sized(self, picture: Image, height: int, width: int) -> Image:
        from PIL import Image as Pil

        if self.resize is Resize.NONE or (picture.height, picture.width) == (height, width):
            if (picture.height, picture.width) != (height, width):
                msg = f"a picture of {picture.height}x{picture.width}, wanted {height}x{width}; resize is 'none'"
                raise ConfigError(msg, key="resize")
            return picture
        if self.resize is Resize.STRETCH:
            return picture.resize((width, height), Pil.Resampling.BILINEAR)
        ratio = max(height * self.margin / picture.height, width * self.margin / picture.width)
        grown = (max(width, round(picture.width * ratio)), max(height, round(picture.height * ratio)))
        picture = picture.resize(grown, Pil.Resampling.BILINEAR)
        left, top = (grown[0] - width) // 2, (grown[1] - height) // 2
        return picture.crop((left, top, left + width, top + height))

    def undo(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Turn ``[height, width, channels]`` values of `apply` back into RGB pixels, to look at."""
        mean, normal = (np.asarray(item, np.float64) for item in (self.mean, self.normal))
        pixels = np.clip(np.rint(values / normal + mean), 0, 255).astype(np.uint8)
        if self.format is ColorFormat.GRAY:
            return np.repeat(pixels, 3, axis=-1)
        rgb = pixels[..., :3]
        return rgb[..., ::-1] if self.format.value.startswith("BGR") else rgb

    def summary(self) -> str:
        """One line: ``RGB, crop, mean 123.675,116.28,103.53, scale 0.0171,0.0175,0.0174``."""
        mean, normal = (",".join(f"{v:.6g}" for v in values) for values in (self.mean, self.normal))
        return f"{self.format.value}, resize {self.resize.value}, mean {mean}, scale {normal}"


def _member(kind: type[enum.Enum], value: object, key: str) -> enum.Enum:
    try:
        return kind(value)
    except ValueError:
        msg = f"{value!r} is unknown; use {', '.join(str(member.value) for member in kind)}"
        raise ConfigError(msg, key=key) from None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(value: Any, key: str, color: ColorFormat) -> tuple[float, ...]:
    values = (value,) if _is_number(value) else value
    if not isinstance(values, (tuple, list, np.ndarray)) or not all(
        _is_number(v) for v in np.asarray(values, object)
    ):
        msg = f"{value!r} is not possible; use a number, or one per channel"
        raise ConfigError(msg, key=key)
    if len(values) not in (1, color.channels):
        msg = f"{len(values)} numbers for {color.value}, wanted 1 or {color.channels}"
        raise ConfigError(msg, key=key)
    return tuple(float(v) for v in values)


def _size(value: Any) -> tuple[int, int]:
    good = isinstance(value, (tuple, list)) and len(value) == 2
    if not good or not all(
        isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= 1 << 16 for n in value
    ):
        msg = f"{value!r} is not possible; use (height, width), 1 to 65536 each"
        raise ConfigError(msg, key="size")
    return value[0], value[1]


def _eight_bits(picture: Image) -> Image:
    """The picture in 8 bits per channel: of 16 bits the upper ones."""
    from PIL import Image as Pil

    if picture.mode.startswith("I;16"):
        return Pil.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        values = np.asarray(picture)
        if values.size and (values.min() < 0 or values.max() > 65535):
            msg = f"values from {values.min():g} to {values.max():g} are no pixels"
            raise ValueError(msg)
        shift = 256 if values.size and values.max() > 255 else 1
        return Pil.fromarray((values // shift).astype(np.uint8))
    return picture


def _reorder(pixels: npt.NDArray[np.uint8], color: ColorFormat) -> npt.NDArray[np.uint8]:
    """RGB or RGBA to `color`; gray is MNN's ``(19 r + 38 g + 7 b) / 64``, cut off."""
    if color is ColorFormat.GRAY:
        weighted = sum(weight * pixels[..., i].astype(np.uint32) for i, weight in enumerate(_GRAY))
        return np.asarray((np.asarray(weighted) >> 6)[..., None], np.uint8)
    order = {"RGB": (0, 1, 2), "BGR": (2, 1, 0), "RGBA": (0, 1, 2, 3), "BGRA": (2, 1, 0, 3)}[color.value]
    return pixels[..., order]


_IMAGENET_STD = (58.395, 57.12, 57.375)

#: Ready-made processes by name.
PRESETS: Mapping[str, ImageProcess] = {
    # torchvision and timm: what most PyTorch classifiers were trained with
    "imagenet": ImageProcess(mean=(123.675, 116.28, 103.53), normal=tuple(1 / s for s in _IMAGENET_STD)),
    # TensorFlow and Keras MobileNets: -1 to 1
    "mobilenet": ImageProcess(mean=(127.5,), normal=(1 / 127.5,)),
    # 0 to 1
    "unit": ImageProcess(normal=(1 / 255,)),
    # Caffe's classifiers: BGR less the mean of ImageNet
    "caffe": ImageProcess(ColorFormat.BGR, mean=(104.0, 117.0, 123.0)),
    # 0 to 255
    "raw": ImageProcess(),
    # what MNN's tools do when nothing is said
    "mnn": ImageProcess(ColorFormat.BGR, resize=Resize.MNN),
}

#: Other names that presets go by.
_ALIASES = {"[-1,1]": "mobilenet", "[0,1]": "unit", "[0,255]": "raw"}


def preset(name: str | ImageProcess | None, **changes: Any) -> ImageProcess:
    """The process of that name with some fields replaced (those that are not None).

    Raises
    ------
    ConfigError
        There is none of that name, or a field has a wrong value.
    """
    if isinstance(name, ImageProcess):
        base = name
    else:
        key = _ALIASES.get(name or "raw", name or "raw")
        if key not in PRESETS:
            msg = f"{name!r} is unknown; use {', '.join(PRESETS)}"
            raise ConfigError(msg, key="preset")
        base = PRESETS[key]
    for key in changes:
        if key not in ImageProcess.__dataclass_fields__:
            msg = f"no such option; there are {', '.join(ImageProcess.__dataclass_fields__)}"
            raise ConfigError(msg, key=key)
    given = {key: value for key, value in changes.items() if value is not None}
    if "format" in given and len(base.mean) > 1 and "mean" not in given:
        order = _member(ColorFormat, given["format"], "format")
        if isinstance(order, ColorFormat) and order.value == base.format.value[::-1]:
            given.setdefault("mean", base.mean[::-1])
            given.setdefault("normal", base.normal[::-1])
    return replace(base, **given) if given else base
