"""Top-1 accuracy of the digit classifier, as ``.onnx`` or ``.mnn``, on the test pictures.

Run with ``python examples/digits/accuracy.py digits-w4.mnn``; needs the engines of ``pip install mnnq[verify]``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from mnnq.engines import run_engine

HERE = Path(__file__).resolve().parent


def accuracy(model: Path) -> float:
    """Share of the test pictures that are recognized."""
    with np.load(HERE / "digits_test.npz") as data:
        images, labels = data["image"], data["labels"]
    engine = "mnn" if model.suffix == ".mnn" else "onnxruntime"
    logits = run_engine(engine, model, {"image": images}, ["logits"])["logits"]
    return float((logits.argmax(axis=1) == labels).mean())


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{name}: {100 * accuracy(Path(name)):.2f} %")
