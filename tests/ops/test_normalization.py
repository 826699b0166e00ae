"""Normalisations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.builders import single
from tests.ops.cases import Case, case, parametrize, run, symbols
from tests.ops.harness import check
from tests.peers.mnn_runtime import MnnRuntime

pytestmark = pytest.mark.peer
_RNG = np.random.default_rng(4)
_SHAPES = [(2, 4), (2, 4, 5), (2, 4, 5, 6), (2, 4, 3, 5, 6)]


def _f(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape).astype(np.float32)


def _channel_cases() -> Iterator[Case]:
    for shape in _SHAPES:
        x = _f(*shape)
        both = {"s": _f(4), "b": _f(4)}
        moments = {"m": _f(4), "v": np.abs(_f(4)) + np.float32(0.1)}
        kinds: list[tuple[str, dict[str, np.ndarray], dict[str, Any]]] = [
            ("BatchNormalization", {**both, **moments}, {"epsilon": 1e-2})
        ]
        if len(shape) > 2:
            kinds.append(("InstanceNormalization", both, {}))
            kinds += [("GroupNormalization", both, {"num_groups": g, "opset": 21}) for g in (1, 2, 4)]
        for op, parameters, options in kinds:
            label = f"{shape}-{options.get('num_groups', '')}"
            yield case(label, op, {"x": x}, parameters, rtol=1e-3, **options)
            yield case(f"{label}-run-time", op, {"x": x, **parameters}, rtol=1e-3, **options)
            named = {"x": symbols(x, keep=[1])}
            yield case(f"{label}-symbolic", op, {"x": x}, parameters, rtol=1e-3, shapes=named, **options)


@parametrize(_channel_cases())
def test_per_channel(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


def _axis_cases() -> Iterator[Case]:
    for shape in _SHAPES:
        x = _f(*shape)
        for axis in range(-len(shape), len(shape)):
            inner = shape[axis:]
            both = {"s": _f(*inner), "b": _f(*inner)}
            one = {"s": both["s"]}
            row = {"s": _f(shape[-1]), "b": _f(shape[-1])}
            label, common = f"{shape}-{axis}", {"axis": axis, "rtol": 1e-3}
            yield case(label, "LayerNormalization", {"x": x}, both, **common)
            yield case(f"{label}-no-bias", "LayerNormalization", {"x": x}, one, **common)
            yield case(f"{label}-run-time", "LayerNormalization", {"x": x, **both}, **common)
            yield case(f"{label}-row", "LayerNormalization", {"x": x}, row, **common)
            yield case(f"{label}-statistics", "LayerNormalization", {"x": x}, both, n_outputs=3, **common)
            named = {"x": symbols(x)}
            yield case(f"{label}-symbolic", "LayerNormalization", {"x": x}, both, shapes=named, **common)
            yield case(label, "RMSNormalization", {"x": x}, one, opset=23, **common)
            yield case(f"{label}-run-time", "RMSNormalization", {"x": x, **one}, opset=23, **common)
            for p in (1, 2):
                yield case(f"{label}-{p}", "LpNormalization", {"x": x}, axis=axis, p=p, oracle="onnxruntime")
    yield case("zero", "LpNormalization", {"x": np.zeros((2, 3), np.float32)}, axis=1, p=2)
    yield case("default", "MeanVarianceNormalization", {"x": _f(2, 3, 4, 5)}, rtol=1e-3)
    yield case("axes", "MeanVarianceNormalization", {"x": _f(2, 3, 4, 5)}, axes=[1, -1], rtol=1e-3)


@parametrize(_axis_cases())
def test_along_axes(case: Case, mnn_runtime: MnnRuntime) -> None:
    run(case, mnn_runtime)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("shape", [(2, 7, 4), (2, 7, 4, 5), (2, 7, 4, 3, 2)])
def test_lrn(size: int, shape: tuple[int, ...], mnn_runtime: MnnRuntime) -> None:
    x = _f(*shape)
    alpha, beta, bias = 0.1, 0.6, 1.5
    total = np.zeros_like(x)
    for c in range(shape[1]):
        low, high = max(0, c - (size - 1) // 2), min(shape[1], c + size // 2 + 1)
        total[:, c] = (x[:, low:high] ** 2).sum(axis=1)
    want = x / (bias + alpha / size * total) ** beta
    proto = single("LRN", {"x": x}, size=size, alpha=alpha, beta=beta, bias=bias)
    check(proto, {"x": x}, mnn_runtime, expected={"y": want})


def test_training_mode_computes_the_statistics_of_the_batch(mnn_runtime: MnnRuntime) -> None:
    parameters = {name: np.abs(_f(4)) + 0.5 for name in "sbmv"}
    x = _f(2, 4, 5, 5)
    proto = single("BatchNormalization", {"x": x}, parameters, training_mode=1, n_outputs=3)
    check(proto, {"x": x}, mnn_runtime)
