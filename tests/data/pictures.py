"""Pictures made in the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Random pixels ``[height, width, channels]``."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Slow waves of color, as JPEG likes them."""
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / (9 + i) + y / (7 + 2 * i) + phase[i]) for i in range(3)], -1)
    return np.rint(127.5 + 120 * waves).astype(np.uint8)


def save(folder: Path, names: Sequence[str], height: int = 20, width: int = 24) -> Path:
    """Save a picture under each name (``sub/a.png`` works) and return the folder."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth(height, width, i)).save(path)
    return folder
