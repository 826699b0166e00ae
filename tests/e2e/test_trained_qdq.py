"""Trained models that onnxruntime's tool quantized decide as in onnxruntime, in both runtimes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mnnq
from mnnq.writer.to_mnn import to_bytes
from tests.peers.mnn_runtime import MnnRuntime

DATA = Path(__file__).parents[2].parent / "shared" / "data"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the trained models are not here")


def pictures(folder: str, size: int, count: int) -> Iterator[np.ndarray]:
    """Centre crops as RGB, spread over the folder."""
    image = pytest.importorskip("PIL.Image")
    paths = sorted((DATA / "images" / folder).glob("*.JP*G")) or sorted((DATA / "images" / folder).iterdir())
    for path in paths[:: len(paths) // count][:count]:
        with image.open(path) as opened:
            picture = opened.convert("RGB")
        left, top = ((side - size) // 2 for side in picture.size)
        yield np.asarray(picture.crop((left, top, left + size, top + size)), np.float32)


def squeezenet(picture: np.ndarray) -> dict[str, np.ndarray]:
    values = picture[:, :, ::-1] - np.asarray([104, 117, 123], np.float32)
    return {"data": np.ascontiguousarray(values.transpose(2, 0, 1)[None])}


def mobilenet(picture: np.ndarray) -> dict[str, np.ndarray]:
    values = (picture / 127.5 - 1).astype(np.float32)
    return {"input": np.ascontiguousarray(values.transpose(2, 0, 1)[None])}


@pytest.mark.parametrize(
    ("name", "size", "feed"),
    [("squeezenet1.1", 227, squeezenet), ("mobilenetv2_1.0_224", 224, mobilenet)],
    ids=["squeezenet", "mobilenet"],
)
def test_top1(tmp_path: Path, mnn_runtime: MnnRuntime, name: str, size: int, feed: Any) -> None:
    tool = pytest.importorskip("onnxruntime.quantization")
    runtime = pytest.importorskip("onnxruntime")

    from tests.peers.sample_reader import SampleReader

    path = tmp_path / "int8.onnx"
    tool.quantize_static(
        str(DATA / "models" / f"{name}.onnx"),
        str(path),
        SampleReader(feed(picture) for picture in pictures("calib", size, 16)),
        per_channel=True,
        weight_type=tool.QuantType.QInt8,
    )
    model = mnnq.load(path)
    assert model.imported is not None
    assert model.imported.integer
    assert not model.imported.left_float
    data = to_bytes(model)
    wanted, mine = runtime.InferenceSession(str(path)), mnnq.InferenceSession(data)
    agree = []
    for picture in pictures("eval", size, 20):
        inputs = feed(picture)
        want = wanted.run(None, inputs)[0].reshape(-1)
        theirs = mnn_runtime.run(data, inputs, model.outputs)[model.outputs[0]]
        best = want.max()
        # Classes may tie: codes are few.
        agree.append([want[got.argmax()] == best for got in (mine.run(None, inputs)[0], theirs)])
    assert np.mean(agree, axis=0).min() >= 0.95
