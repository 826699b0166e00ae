"""The base of all datasets."""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mnnq.data.inputs import InputSpec, check_feeds
from mnnq.errors import ConfigError

#: One run of a model: arrays by input name.
Feeds: TypeAlias = Mapping[str, npt.NDArray[Any]]


class Dataset(Collection[Feeds], abc.ABC):
    """Samples that are made when asked for, always in the same order.

    Every sample is checked against the inputs of the model before it is handed out.

    Parameters
    ----------
    inputs
        Inputs of the model.
    """

    #: Whether the values are made up: fit for timing, not for calibration.
    is_generated: bool = False

    def __init__(self, inputs: Sequence[InputSpec]) -> None:
        self.inputs = tuple(inputs)

    @property
    @abc.abstractmethod
    def description(self) -> str:
        """What the data are, for reports: ``"100 images of photos/"``."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abc.abstractmethod
    def load(self, index: int) -> Mapping[str, npt.ArrayLike]:
        """Make sample `index` (0 to ``len - 1``), not checked yet."""

    def source(self, index: int) -> str:
        """Where sample `index` comes from; empty when it has no name."""
        return ""

    @property
    def labels(self) -> tuple[int, ...] | None:
        """Class index of each sample, or None when there are no labels."""
        return None

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes, when known."""
        return None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of the data: files left out, and why."""
        return ()

    def __getitem__(self, index: int) -> dict[str, npt.NDArray[Any]]:
        """Sample `index`, checked.

        Raises
        ------
        InputError
            It does not fit the model; sample and input are named.
        IndexError
            There is no such sample.
        """
        count = len(self)
        if not -count <= index < count:
            msg = f"sample {index} of {count}"
            raise IndexError(msg)
        index %= count
        return check_feeds(self.load(index), self.inputs, self.label_of(index))

    def label_of(self, index: int) -> str:
        """What errors call a sample: ``sample 3 (cat.jpg)``."""
        source = self.source(index)
        return f"sample {index} ({source})" if source else f"sample {index}"

    def __iter__(self) -> Iterator[dict[str, npt.NDArray[Any]]]:
        return (self[index] for index in range(len(self)))

    def __contains__(self, item: object) -> bool:
        """Never: samples are made anew each time, so none *is* in the dataset."""
        return False

    def take(self, indices: Sequence[int]) -> Dataset:
        """The samples at `indices`, in that order."""
        return Subset(self, indices)

    def subset(self, count: int, *, seed: int | None = None) -> Dataset:
        """At most `count` samples: the first, or with `seed` a random choice (in the order of the whole).

        Raises
        ------
        ConfigError
            `count` is not positive.
        """
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            msg = f"{count!r} samples are not possible; use 1 or more"
            raise ConfigError(msg, key="samples")
        if count >= len(self):
            return self
        if seed is None:
            return Subset(self, range(count))
        chosen = np.random.default_rng(seed).choice(len(self), count, replace=False)
        return Subset(self, sorted(int(i) for i in chosen))

    def shard(self, index: int, count: int) -> Dataset:
        """Part `index` of `count`: samples ``index, index + count, ...``. The parts together are the whole.

        Raises
        ------
        ConfigError
            There is no such part.
        """
        if count < 1 or not 0 <= index < count:
            msg = f"part {index} of {count} is not possible; use 0 to count - 1"
            raise ConfigError(msg, key="shard")
        return Subset(self, range(index, len(self), count))


class Subset(Dataset):
    """Some samples of another dataset."""

    def __init__(self, base: Dataset, indices: Sequence[int]) -> None:
        super().__init__(base.inputs)
        #: The whole.
        self.base = base
        self._indices = tuple(indices)
        self.is_generated = base.is_generated
        for index in self._indices:
            if not 0 <= index < len(base):
                msg = f"sample {index} of {len(base)}"
                raise IndexError(msg)

    @property
    def description(self) -> str:
        """The whole and the number of samples."""
        return f"{len(self)} of {self.base.description}"

    @property
    def labels(self) -> tuple[int, ...] | None:
        """Class index of each sample."""
        labels = self.base.labels
        return None if labels is None else tuple(labels[i] for i in self._indices)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes of the whole."""
        return self.base.classes

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of the whole."""
        return self.base.warnings

    def __len__(self) -> int:
        return len(self._indices)

    def load(self, index: int) -> Mapping[str, npt.ArrayLike]:
        """Sample `index` of this part."""
        return self.base.load(self._indices[index])

    def source(self, index: int) -> str:
        """Where it comes from."""
        return self.base.source(self._indices[index])
