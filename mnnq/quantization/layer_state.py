"""Finished layers of a long run, kept in a folder so that an interrupted run continues."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mnnq.errors import ConfigError
from mnnq.quantization.calibrated import Chosen

_FIGURES = ("method", "error_before", "error_after", "sqnr_db", "relative_rms")


class LayerState:
    """A folder of layers by key: a digest of everything that the layer's codes follow from.

    Parameters
    ----------
    folder
        Made if it does not exist. Files that are damaged or belong to other runs are left alone.

    Raises
    ------
    ConfigError
        The folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = f"the folder for unfinished runs cannot be made: {error.strerror}"
            raise ConfigError(msg, file=str(folder)) from None

    def _path(self, key: str) -> Path:
        return self.folder / f"layer-{key[:32]}.npz"

    def load(self, key: str, shape: tuple[int, ...]) -> Chosen | None:
        """Return the codes of a layer with weights of that shape, or None when they are not there."""
        try:
            content = io.BytesIO(self._path(key).read_bytes())
            with np.load(content, allow_pickle=False) as arrays:
                figures = json.loads(str(arrays["figures"]))
                codes, scale = arrays["codes"], arrays["scale"]
                minimum = arrays["minimum"] if "minimum" in arrays.files else None
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return None
        fits = codes.shape == shape and codes.dtype == np.int8 and scale.ndim == 2 and len(scale) == shape[0]
        if not fits or set(figures) != set(_FIGURES):
            return None
        return Chosen(codes, scale, minimum, **figures)

    def save(self, key: str, chosen: Chosen) -> None:
        """Keep the codes of a layer; the file appears when it is complete."""
        figures = json.dumps({name: getattr(chosen, name) for name in _FIGURES})
        arrays: dict[str, Any] = {
            "codes": chosen.codes,
            "scale": chosen.scale,
            "figures": np.asarray(figures),
        }
        if chosen.minimum is not None:
            arrays["minimum"] = chosen.minimum
        target = self._path(key)
        partial = target.with_suffix(f".{os.getpid()}.part")
        with partial.open("wb") as file:
            np.savez(file, **arrays)
        partial.replace(target)
