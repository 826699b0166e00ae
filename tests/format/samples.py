"""The real files to test against, and small tools for trees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mnnq import _native

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT.parent / "shared" / "fixtures" / "mnn"


def fixtures() -> list[dict[str, Any]]:
    """Entries of the manifest; empty where the files are not installed."""
    manifest = FIXTURES / "manifest.json"
    return json.loads(manifest.read_text()) if manifest.exists() else []


def file_of(entry: dict[str, Any]) -> Path:
    return FIXTURES / f"{entry['name']}.mnn"


def arrays_of(entry: dict[str, Any]) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"{entry['name']}.npz") as data:
        return dict(data)


def convolutions(net: dict[str, Any]) -> list[dict[str, Any]]:
    """Ops with `Convolution2D` parameters, in order."""
    return [op for op in net["oplists"] if op.get("main_type") == "Convolution2D"]


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Paths at which two trees differ, types and dtypes included."""
    if type(a) is not type(b):
        return [f"{path}: {type(a).__name__} and {type(b).__name__}"]
    if isinstance(a, dict):
        found = [f"{path}.{key}: only in one" for key in a.keys() ^ b.keys()]
        return found + [
            d for key in a.keys() & b.keys() for d in differences(a[key], b[key], f"{path}.{key}")
        ]
    if isinstance(a, list):
        if len(a) != len(b):
            return [f"{path}: lengths {len(a)} and {len(b)}"]
        pairs = enumerate(zip(a, b, strict=True))
        return [d for i, (x, y) in pairs for d in differences(x, y, f"{path}[{i}]")]
    if isinstance(a, np.ndarray):
        same = a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        return [] if same else [f"{path}: arrays"]
    return [] if a == b or a != a else [f"{path}: {a!r} and {b!r}"]


def convolution(weight: dict[str, Any], out_channels: int = 2, in_channels: int = 4) -> dict[str, Any]:
    """Parameters of a 1x1 convolution with these weight fields."""
    common = {"outputCount": out_channels, "inputCount": in_channels}
    return {"common": common, "bias": np.zeros(out_channels, np.float32), **weight}


def model(main: dict[str, Any]) -> dict[str, Any]:
    """Input -> Convolution with parameters `main`."""
    count = int(main["common"]["inputCount"])
    return {
        "tensorName": ["x", "y"],
        "outputName": ["y"],
        "sourceType": "ONNX",
        "oplists": [
            {
                "type": "Input",
                "name": "x",
                "outputIndexes": [0],
                "main_type": "Input",
                "main": {"dims": [1, count, 2, 2], "dtype": "DT_FLOAT", "dformat": "NC4HW4"},
            },
            {
                "type": "Convolution",
                "name": "y",
                "inputIndexes": [0],
                "outputIndexes": [1],
                "main_type": "Convolution2D",
                "main": main,
            },
        ],
    }


def reread(net: dict[str, Any]) -> dict[str, Any]:
    return _native.read_model(_native.model_to_bytes(net))
