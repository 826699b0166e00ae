"""The digit classifier in static int8: quantize it with the calibration pictures, compare the accuracy in mnnq's runtime.

Run with ``python examples/digits/int8.py``; writes ``digits-int8.mnn`` to the current folder.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import mnnq

HERE = Path(__file__).resolve().parent


def samples() -> list[dict[str, np.ndarray]]:
    """The calibration pictures, one per sample."""
    with np.load(HERE / "digits_calib.npz") as data:
        return [{"image": picture[None]} for picture in data["image"]]


def accuracy(path: Path) -> float:
    """Share of the test pictures that are recognized."""
    with np.load(HERE / "digits_test.npz") as data:
        (logits,) = mnnq.InferenceSession(path).run(None, {"image": data["image"]})
        return float((logits.argmax(axis=1) == data["labels"]).mean())


def main(target: Path = Path("digits-int8.mnn")) -> tuple[float, float]:
    """Quantize, print and return the accuracy before and after."""
    source = HERE / "digits.onnx"
    result = mnnq.quantize(mnnq.load(source), samples())
    size = result.model.save(target)
    before, after = accuracy(source), accuracy(target)
    print(
        f"float {100 * before:.2f} %, {source.stat().st_size} bytes; int8 {100 * after:.2f} %, {size} bytes"
    )
    print(
        f"{len(result.report.integer)} operators compute on codes; output SQNR {result.report.sqnr_db:.1f} dB"
    )
    return before, after


if __name__ == "__main__":
    main()
