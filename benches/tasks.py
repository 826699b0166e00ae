"""Trained models with real data and the metric that matters for each; shared by the accuracy benchmarks.

The models and pictures are not part of the project; pass their folder (``models/``, ``images/``, ``text/``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Feeds = dict[str, np.ndarray]
Outputs = list[list[np.ndarray]]
Metric = Callable[[Outputs, Outputs], dict[str, float]]


@dataclass(frozen=True)
class Task:
    """A model, its inputs, and how to judge its outputs.

    Attributes
    ----------
    calib, evaluate
        Samples as feeds.
    metric
        ``metric(outputs, float_outputs)``; outputs are a list of arrays per sample.
    """

    name: str
    model: Path
    calib: list[Feeds]
    evaluate: list[Feeds]
    metric: Metric


def sqnr_db(outputs: Outputs, reference: Outputs) -> float:
    """Signal to quantization noise ratio over all samples and outputs, in dB."""
    signal = sum(float((r.astype(np.float64) ** 2).sum()) for rs in reference for r in rs)
    pairs = [(o, r) for os, rs in zip(outputs, reference, strict=True) for o, r in zip(os, rs, strict=True)]
    noise = sum(float(((o.astype(np.float64) - r) ** 2).sum()) for o, r in pairs)
    return float(10 * np.log10(signal / max(noise, 1e-30)))


def _crop(path: Path, size: int) -> np.ndarray:
    """Centre crop of `size` pixels (224 then bilinear for smaller sizes), uint8 RGB [H, W, 3]."""
    image = Image.open(path).convert("RGB")
    crop = max(size, 224)
    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    image = image.crop((left, top, left + crop, top + crop))
    if size != crop:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _whole(path: Path, size: int) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def _planar(picture: np.ndarray, mean: Sequence[float], scale: Sequence[float], *, bgr: bool) -> np.ndarray:
    values = picture[..., ::-1] if bgr else picture
    values = (values.astype(np.float32) - np.asarray(mean, np.float32)) * np.asarray(scale, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


def _labels(data: Path) -> dict[str, int]:
    rows = [line.split("\t") for line in (data / "images/labels.txt").read_text().splitlines()]
    if len(rows[0]) == 1:
        rows = [row[0].split(maxsplit=3) for row in rows]
    return {Path(row[0]).name: int(row[1]) for row in rows if row[1].isdigit()}


def _images(
    data: Path, split: str, prepare: Callable[[Path], np.ndarray], name: str
) -> tuple[list[Feeds], list[str]]:
    files = sorted((data / "images" / split).glob("*.jpg"))
    return [{name: prepare(file)} for file in files], [file.name for file in files]


def _top1(labels: np.ndarray) -> Metric:
    def metric(outputs: Outputs, reference: Outputs) -> dict[str, float]:
        got = np.array([o[0].reshape(-1).argmax() for o in outputs])
        want = np.array([o[0].reshape(-1).argmax() for o in reference])
        return {
            "top1": 100 * float((got == labels).mean()),
            "agree": 100 * float((got == want).mean()),
            "sqnr_db": sqnr_db(outputs, reference),
        }

    return metric


def _decisions(outputs: Outputs, reference: Outputs) -> dict[str, float]:
    same = [o[0].argmax() == r[0].argmax() for o, r in zip(outputs, reference, strict=True)]
    return {"agree": 100 * float(np.mean(same)), "sqnr_db": sqnr_db(outputs, reference)}


def _detections(outputs: list[np.ndarray], threshold: float = 0.4) -> list[tuple[int, np.ndarray, float]]:
    """Decode NanoDet heads: class, box [4] in input pixels, score; after non-maximum suppression."""
    found = []
    for head, stride in zip(outputs, (8, 16, 32), strict=True):
        cells = (
            head.reshape(head.shape[1], head.shape[2] * head.shape[3])
            if head.ndim == 4
            else head.reshape(112, -1)
        )
        side = int(np.sqrt(cells.shape[1]))
        scores = 1 / (1 + np.exp(-cells[:80]))
        bins = cells[80:].reshape(4, 8, -1)
        bins = np.exp(bins - bins.max(1, keepdims=True))
        distance = (bins / bins.sum(1, keepdims=True) * np.arange(8)[None, :, None]).sum(1) * stride
        for cell in np.flatnonzero(scores.max(0) > threshold):
            kind = int(scores[:, cell].argmax())
            cx, cy = (cell % side + 0.5) * stride, (cell // side + 0.5) * stride
            left, top, right, bottom = distance[:, cell]
            found.append(
                (kind, np.array([cx - left, cy - top, cx + right, cy + bottom]), float(scores[kind, cell]))
            )
    found.sort(key=lambda item: -item[2])
    kept: list[tuple[int, np.ndarray, float]] = []
    for item in found:
        if all(k[0] != item[0] or _overlap(k[1], item[1]) < 0.6 for k in kept):
            kept.append(item)
    return kept


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    inner = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(inner / max((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inner, 1e-9))


def _detection_f1(outputs: Outputs, reference: Outputs) -> dict[str, float]:
    """F1 of the detections against the float model's (same class, overlap at least 0.5)."""
    hits = ours = theirs = 0
    for got, want in zip(outputs, reference, strict=True):
        a, b = _detections(got), _detections(want)
        free = list(b)
        for kind, box, _ in a:
            match = next((i for i, f in enumerate(free) if f[0] == kind and _overlap(f[1], box) >= 0.5), None)
            if match is not None:
                del free[match]
                hits += 1
        ours, theirs = ours + len(a), theirs + len(b)
    return {"f1": 200 * hits / max(ours + theirs, 1), "sqnr_db": sqnr_db(outputs, reference)}


def _embedding_metric(meaning: np.ndarray) -> Metric:
    def metric(outputs: Outputs, reference: Outputs) -> dict[str, float]:
        got, want = (np.concatenate([o[0].reshape(1, -1) for o in side]) for side in (outputs, reference))
        near, near_float = (_nearest(side) for side in (got, want))
        return {
            "meaning": 100 * float((meaning[near] == meaning).mean()),
            "neighbours": 100 * float((near == near_float).mean()),
            "sqnr_db": sqnr_db(outputs, reference),
        }

    return metric


def _nearest(vectors: np.ndarray) -> np.ndarray:
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    return similarity.argmax(1)


def _classifier(data: Path, name: str, file: str, input_name: str, size: int, **norm: Any) -> Task:
    def prepare(path: Path) -> np.ndarray:
        return _planar(_crop(path, size), **norm)

    calib, _ = _images(data, "calib", prepare, input_name)
    evaluate, names = _images(data, "eval", prepare, input_name)
    labels = _labels(data)
    metric = _top1(np.array([labels[n] for n in names])) if name != "vww" else _decisions
    return Task(name, data / "models" / file, calib, evaluate, metric)


def squeezenet(data: Path) -> Task:
    return _classifier(
        data, "squeezenet", "squeezenet1.1.onnx", "data", 227, mean=(104, 117, 123), scale=(1, 1, 1), bgr=True
    )


def mobilenetv2(data: Path) -> Task:
    norm: Mapping[str, object] = {"mean": (127.5,) * 3, "scale": (1 / 127.5,) * 3, "bgr": False}
    return _classifier(data, "mobilenetv2", "mobilenetv2_1.0_224.onnx", "input", 224, **norm)


def vww(data: Path) -> Task:
    norm: Mapping[str, object] = {"mean": (0, 0, 0), "scale": (1 / 255,) * 3, "bgr": False}
    return _classifier(data, "vww", "vww_mobilenetv1_0.25_96.onnx", "input", 96, **norm)


def nanodet(data: Path) -> Task:
    def prepare(path: Path) -> np.ndarray:
        mean, scale = (103.53, 116.28, 123.675), (0.017429, 0.017507, 0.017125)
        return _planar(_whole(path, 320), mean, scale, bgr=True)

    calib, _ = _images(data, "calib", prepare, "input.1")
    evaluate, _ = _images(data, "eval", prepare, "input.1")
    return Task("nanodet", data / "models/nanodet_m.onnx", calib, evaluate, _detection_f1)


def minilm(data: Path) -> Task:
    rows = [line.split("\t") for line in (data / "text/sentences.tsv").read_text().splitlines()]
    rows = [row for row in rows if row[0] in ("calib", "eval")]

    def feeds(row: list[str]) -> Feeds:
        return {"input_ids": np.array([[int(t) for t in row[3].split()]], np.int64)}

    evaluate = [row for row in rows if row[0] == "eval"]
    _, meaning = np.unique([row[1] for row in evaluate], return_inverse=True)
    return Task(
        "minilm",
        data / "models/minilm_l6_v1k_fp16.onnx",
        [feeds(row) for row in rows if row[0] == "calib"],
        [feeds(row) for row in evaluate],
        _embedding_metric(meaning),
    )


#: Every task by name.
TASKS: dict[str, Callable[[Path], Task]] = {
    "squeezenet": squeezenet,
    "mobilenetv2": mobilenetv2,
    "vww": vww,
    "nanodet": nanodet,
    "minilm": minilm,
}
