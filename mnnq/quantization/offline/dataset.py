"""What calibration data is: anything sized that can be gone through again and again, of dictionaries of arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy.typing as npt

#: Arrays by input name.
Feeds = Mapping[str, npt.NDArray[Any]]


class Dataset(Protocol):
    """Samples as feeds; a list of dictionaries is one."""

    def __len__(self) -> int:
        """Number of samples."""

    def __iter__(self) -> Iterator[Feeds]:
        """Go through the samples, each time the same ones in the same order."""
