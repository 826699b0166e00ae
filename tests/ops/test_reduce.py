"""Reductions in the real runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.builders import single
from tests.ops.harness import check, needs_mnn
from tests.ops.test_data import ints
from tests.peers.mnn_runtime import MnnRuntime

pytestmark = [pytest.mark.peer, needs_mnn]

OPS = [
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ReduceLogSum", "ReduceLogSumExp",
]  # fmt: skip
X = np.random.default_rng(0).uniform(0.5, 2, (2, 3, 4)).astype(np.float32)
SIGNED = [op for op in OPS if op != "ReduceLogSum"]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("axes", [None, (1,), (-1, 0), (0, 1, 2), ()], ids=str)
@pytest.mark.parametrize("keepdims", [None, 0, 1])
@pytest.mark.parametrize("shape", [None, ["n", "c", "w"]])
def test_constant_axes(
    mnn_runtime: MnnRuntime,
    op: str,
    axes: tuple[int, ...] | None,
    keepdims: int | None,
    shape: Sequence[Any] | None,
) -> None:
    attrs = {} if keepdims is None else {"keepdims": keepdims}
    constants = {} if axes is None else {"a": ints(*axes)}
    proto = single(op, {"x": X}, constants, opset=18, shapes={"x": shape} if shape else None, **attrs)
    check(proto, {"x": X}, mnn_runtime)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("axes", [(1,), (-1, 0)], ids=str)
@pytest.mark.parametrize("keepdims", [0, 1])
def test_computed_axes(mnn_runtime: MnnRuntime, op: str, axes: tuple[int, ...], keepdims: int) -> None:
    feeds = {"x": X, "a": ints(*axes)}
    check(single(op, feeds, opset=18, keepdims=keepdims), feeds, mnn_runtime)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("axes", [None, ()])
def test_without_axes_only_the_outer_functions_remain(
    mnn_runtime: MnnRuntime, op: str, axes: tuple[int, ...] | None
) -> None:
    constants = {} if axes is None else {"a": ints()}
    check(single(op, {"x": X}, constants, opset=18, noop_with_empty_axes=1), {"x": X}, mnn_runtime)


@pytest.mark.parametrize("op", SIGNED)
def test_negative_numbers(mnn_runtime: MnnRuntime, op: str) -> None:
    x = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32)
    check(single(op, {"x": x}, {"a": ints(1)}, opset=18), {"x": x}, mnn_runtime)


@pytest.mark.parametrize(
    "op", ["ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceSumSquare"]
)
def test_integers(mnn_runtime: MnnRuntime, op: str) -> None:
    x = np.array([[1, -2, 3], [-4, 5, 6]], np.int64)
    check(single(op, {"x": x}, {"a": ints(1)}, opset=18), {"x": x}, mnn_runtime)


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
def test_booleans(mnn_runtime: MnnRuntime, op: str) -> None:
    x = np.array([[True, False], [True, True], [False, False]])
    check(single(op, {"x": x}, {"a": ints(1)}, opset=20), {"x": x}, mnn_runtime)


@pytest.mark.parametrize("values", [[88.0, 1e4, 1.0], [-1e4, -1e4, -1e5], [-np.inf, 0.0, 1.0]], ids=str)
def test_log_sum_exp_does_not_overflow(mnn_runtime: MnnRuntime, values: list[float]) -> None:
    x = np.array([values], np.float32)
    top = x.max()
    want = {"y": (np.log(np.exp(x - top).sum(1, keepdims=True)) + top).astype(np.float32)}
    check(single("ReduceLogSumExp", {"x": x}, {"a": ints(1)}, opset=18), {"x": x}, mnn_runtime, expected=want)
