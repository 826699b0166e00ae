"""Options for data: the same for every command that needs real inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mnnq.cli import common
from mnnq.cli.inputs import PRESETS, NumbersOption, SizeOption

if TYPE_CHECKING:
    from mnnq.data import Dataset
    from mnnq.ir.model import Model

_F = TypeVar("_F", bound=Callable[..., Any])


def data_options(
    flag: str, *, required: bool = False, default_samples: int | None = None
) -> Callable[[_F], _F]:
    """Add the options that `DataOptions` holds; `flag` names the data: ``--calib`` or ``--data``."""
    count = "all" if default_samples is None else str(default_samples)
    decorators = (
        click.option(
            flag, "data_path", type=click.Path(path_type=Path), required=required, metavar="DIR|FILE",
            help="Real inputs: a folder of images (JPEG, PNG, BMP, WebP), of .npy or .npz files or of MNN's "
            "sequences; or one such file.",
        ),
        click.option(
            "--preset", type=click.Choice(PRESETS),
            help="How pixels become values: imagenet (mean and deviation, centre crop), mobilenet (-1 to 1), unit (0 to "
            "1), caffe (BGR less mean), raw (0 to 255), mnn (BGR, 0 to 255, MNN's resizing).",
        ),
        click.option("--mean", type=NumbersOption(), metavar="NUMBERS", help="Taken from pixels (0 to 255); one or one per channel."),
        click.option(
            "--scale", "--normal", "scale", type=NumbersOption(), metavar="NUMBERS",
            help="Multiplies pixels less mean; one or one per channel.",
        ),
        click.option("--size", type=SizeOption(), metavar="HxW", help="Size of images. [default: the model's]"),
        click.option(
            "--format", "color", type=click.Choice(["RGB", "BGR", "GRAY", "RGBA", "BGRA"]), help="Channels and their order."
        ),
        click.option(
            "--resize", type=click.Choice(["crop", "stretch", "mnn", "none"]),
            help="crop: shorter side, then the centre; stretch: whatever the aspect; mnn: as MNN, corners aligned; none.",
        ),
        click.option("--image-input", metavar="NAME", help="The input that takes the image, when several could."),
        click.option("--samples", type=click.IntRange(1), help=f"Samples to use. [default: {count}]"),
        click.option("--shuffle", type=int, metavar="SEED", help="Choose the samples at random. [default: the first by name]"),
        click.option(
            "--preview", type=click.Path(path_type=Path), metavar="FILE.png",
            help="Save what the network sees as a picture, and print the range of the values.",
        ),
    )  # fmt: skip

    def add(function: _F) -> _F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return add


@dataclass(frozen=True)
class DataOptions:
    """Values of `data_options`; None where nothing was given."""

    path: Path | None = None
    preset: str | None = None
    mean: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    color: str | None = None
    resize: str | None = None
    image_input: str | None = None
    samples: int | None = None
    shuffle: int | None = None
    labels: Path | None = None
    preview: Path | None = None

    @classmethod
    def of(cls, options: dict[str, Any]) -> DataOptions:
        """Take the values out of a command's options."""
        options["path"] = options.pop("data_path")
        return cls(**{entry.name: options.pop(entry.name, None) for entry in fields(cls)})

    def refuse_all(self, instead: str) -> None:
        """Check that nothing was given that goes with data files only.

        Raises
        ------
        ConfigError
            It was.
        """
        from mnnq.errors import ConfigError

        for entry in fields(self):
            if entry.name not in ("path", "samples") and getattr(self, entry.name) is not None:
                flag = "--format" if entry.name == "color" else "--" + entry.name.replace("_", "-")
                msg = f"{flag} goes with data from files, not with {instead}"
                raise ConfigError(msg)

    def open(self, model: Model, *, default_samples: int | None = None) -> Dataset:
        """Open the data for `model`, say what is suspicious about them, and save the preview.

        Raises
        ------
        ConfigError, InputError, OSError
            There are no data, or they do not fit the model.
        """
        from mnnq.data import open_dataset

        assert self.path is not None
        wanted = self.samples if self.samples is not None else default_samples
        dataset = open_dataset(
            self.path,
            model,
            preset=self.preset,
            samples=wanted,
            seed=self.shuffle,
            labels=self.labels,
            input_name=self.image_input,
            mean=self.mean,
            normal=self.scale,
            size=self.size,
            format=self.color,
            resize=self.resize,
        )
        warn_of_few(dataset, self.samples)
        describe_data(model, dataset, self.preview, {"the data": self.path})
        return dataset


def warn_of_few(dataset: Dataset, asked: int | None) -> None:
    """Warn when there are fewer samples than were asked for."""
    if asked is not None and len(dataset) < asked:
        common.warn(f"{asked} samples were asked for, there are {dataset.description}")


def describe_data(
    model: Model, dataset: Dataset, picture: Path | None, others: Mapping[str, Path | None]
) -> None:
    """Warn of what is suspicious about data, and save the preview.

    Parameters
    ----------
    picture
        The preview; None for none.
    others
        Files of the command that it must not replace.
    """
    from mnnq.data import input_specs, preview, range_warnings

    common.warn_all(dataset.warnings)
    common.warn_all(range_warnings(model, dataset))
    if picture is not None:
        common.check_output(picture, others, what="the preview")
        result = preview(dataset, input_specs(model), picture)
        for entry in result.ranges:
            common.note(str(entry))
        common.note(f"{picture} shows the first {result.samples} samples")
