"""Operators on shapes, in the real runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mnnq.convert import convert_onnx
from mnnq.errors import UnsupportedError
from tests.builders import single
from tests.ops.harness import check, needs_mnn
from tests.peers.mnn_runtime import MnnRuntime

pytestmark = [pytest.mark.peer, needs_mnn]

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
ONES = np.arange(6, dtype=np.float32).reshape(1, 2, 1, 3)
SYMBOLIC = [None, ["n", "c", "w"], ["n", 3, 4], [2, "c", 4]]


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize("shape", SYMBOLIC)
@pytest.mark.parametrize(
    ("start", "end"), [(None, None), (1, None), (None, -1), (-2, None), (0, 1), (-100, 100), (1, 3)]
)
def test_shape(mnn_runtime: MnnRuntime, shape: list[Any] | None, start: int | None, end: int | None) -> None:
    attrs = {k: v for k, v in (("start", start), ("end", end)) if v is not None}
    check(single("Shape", {"x": X}, shapes={"x": shape} if shape else None, **attrs), {"x": X}, mnn_runtime)


@pytest.mark.parametrize("shape", SYMBOLIC)
def test_size(mnn_runtime: MnnRuntime, shape: list[Any] | None) -> None:
    check(single("Size", {"x": X}, shapes={"x": shape} if shape else None), {"x": X}, mnn_runtime)


@pytest.mark.parametrize("shape", SYMBOLIC)
@pytest.mark.parametrize(
    "target",
    [(6, 4), (-1,), (0, -1), (0, 0, -1), (2, 0, 2, 2), (4, -1, 3), (0, 12), (1, 2, 1, 3, 4), (0, 0, 2, 2)],
)
@pytest.mark.parametrize("constant", [True, False])
def test_reshape(
    mnn_runtime: MnnRuntime, shape: list[Any] | None, target: tuple[int, ...], constant: bool
) -> None:
    shapes = {"x": shape} if shape else None
    if constant:
        check(single("Reshape", {"x": X}, {"s": ints(*target)}, shapes=shapes), {"x": X}, mnn_runtime)
    else:
        feeds = {"x": X, "s": ints(*target)}
        check(single("Reshape", feeds, shapes=shapes), feeds, mnn_runtime)


def test_static_reshape_has_a_target_without_zeros(mnn_runtime: MnnRuntime) -> None:
    model = check(single("Reshape", {"x": X}, {"s": ints(0, 0, 2, -1)}), {"x": X}, mnn_runtime)
    (target,) = [op for op in model.ops if op.type == "Const"]
    assert 0 not in target.params["int32s"]


def test_allowzero_without_zeros_is_an_ordinary_reshape(mnn_runtime: MnnRuntime) -> None:
    check(single("Reshape", {"x": X}, {"s": ints(4, -1)}, allowzero=1), {"x": X}, mnn_runtime)


def test_a_literal_zero_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="allowzero"):
        convert_onnx(single("Reshape", {"x": X}, {"s": ints(0, 12)}, allowzero=1))


@pytest.mark.parametrize("axis", [None, 0, 1, 2, 3, -1, -2, -3])
@pytest.mark.parametrize("shape", SYMBOLIC)
def test_flatten(mnn_runtime: MnnRuntime, axis: int | None, shape: list[Any] | None) -> None:
    attrs = {} if axis is None else {"axis": axis}
    check(single("Flatten", {"x": X}, shapes={"x": shape} if shape else None, **attrs), {"x": X}, mnn_runtime)


@pytest.mark.parametrize("axes", [None, (0,), (2,), (0, 2), (-2,), (-4, 2)])
@pytest.mark.parametrize("shape", [None, [1, "h", 1, "w"]])
@pytest.mark.parametrize("constant", [True, False])
def test_squeeze(
    mnn_runtime: MnnRuntime, axes: tuple[int, ...] | None, shape: list[Any] | None, constant: bool
) -> None:
    shapes = {"x": shape} if shape else None
    if axes is None:
        check(single("Squeeze", {"x": ONES}, shapes=shapes), {"x": ONES}, mnn_runtime)
    elif constant:
        check(single("Squeeze", {"x": ONES}, {"a": ints(*axes)}, shapes=shapes), {"x": ONES}, mnn_runtime)
    else:
        feeds = {"x": ONES, "a": ints(*axes)}
        check(single("Squeeze", feeds, shapes=shapes), feeds, mnn_runtime)


@pytest.mark.parametrize("axes", [(0,), (3,), (-1,), (0, 4), (2, 0), (-1, -3), (1, 2)])
@pytest.mark.parametrize("shape", SYMBOLIC)
@pytest.mark.parametrize("constant", [True, False])
def test_unsqueeze(
    mnn_runtime: MnnRuntime, axes: tuple[int, ...], shape: list[Any] | None, constant: bool
) -> None:
    shapes = {"x": shape} if shape else None
    if constant:
        check(single("Unsqueeze", {"x": X}, {"a": ints(*axes)}, shapes=shapes), {"x": X}, mnn_runtime)
    else:
        feeds = {"x": X, "a": ints(*axes)}
        check(single("Unsqueeze", feeds, shapes=shapes), feeds, mnn_runtime)


@pytest.mark.parametrize("target", [(2, 5, 3), (3,), (1, 1), (4, 2, 1, 3), (2, 1, 1)])
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("shape", [None, ["n", 1, "c"]])
def test_expand(
    mnn_runtime: MnnRuntime, target: tuple[int, ...], constant: bool, shape: list[Any] | None
) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 1, 3)
    shapes = {"x": shape} if shape else None
    if constant:
        check(single("Expand", {"x": x}, {"s": ints(*target)}, shapes=shapes), {"x": x}, mnn_runtime)
    else:
        feeds = {"x": x, "s": ints(*target)}
        check(single("Expand", feeds, shapes=shapes), feeds, mnn_runtime)


@pytest.mark.parametrize("repeats", [(1, 2, 1), (2, 1, 3), (1, 1, 1)])
@pytest.mark.parametrize("kind", [np.float32, np.int64])
@pytest.mark.parametrize("constant", [True, False])
def test_tile(mnn_runtime: MnnRuntime, repeats: tuple[int, ...], kind: Any, constant: bool) -> None:
    x = X.astype(kind)
    if constant:
        check(single("Tile", {"x": x}, {"r": ints(*repeats)}), {"x": x}, mnn_runtime)
    else:
        feeds = {"x": x, "r": ints(*repeats)}
        check(single("Tile", feeds), feeds, mnn_runtime)


@pytest.mark.parametrize("value", [None, np.float32(2.5), np.int64(-3), np.bool_(True)])
@pytest.mark.parametrize("target", [(2, 3), (1,), (4, 1, 2)])
def test_constant_of_shape(mnn_runtime: MnnRuntime, value: Any, target: tuple[int, ...]) -> None:
    from onnx import numpy_helper

    attrs = {} if value is None else {"value": numpy_helper.from_array(np.array([value]))}
    check(single("ConstantOfShape", {"s": ints(*target)}, **attrs), {"s": ints(*target)}, mnn_runtime)


@pytest.mark.parametrize(
    ("start", "limit", "delta"),
    [(0, 5, 1), (10, 0, -3), (2, 9, 4), (0.5, 3.0, 0.75), (1.0, -1.0, -0.5)],
)
def test_range(mnn_runtime: MnnRuntime, start: float, limit: float, delta: float) -> None:
    kind = np.int64 if isinstance(start, int) else np.float32
    feeds = {"a": np.array(start, kind), "b": np.array(limit, kind), "c": np.array(delta, kind)}
    check(single("Range", feeds), feeds, mnn_runtime)


@pytest.mark.parametrize("k", [None, 1, -2])
@pytest.mark.parametrize("shape", [None, ["n", "m"]])
@pytest.mark.parametrize("dtype", [None, 1, 7])
def test_eye_like(mnn_runtime: MnnRuntime, k: int | None, shape: list[Any] | None, dtype: int | None) -> None:
    x = np.zeros((3, 4), np.float32)
    attrs = {name: v for name, v in (("k", k), ("dtype", dtype)) if v is not None}
    check(single("EyeLike", {"x": x}, shapes={"x": shape} if shape else None, **attrs), {"x": x}, mnn_runtime)


@pytest.mark.parametrize("perm", [None, (0, 1, 2), (2, 0, 1), (0, 2, 1), (1, 0, 2)])
@pytest.mark.parametrize("shape", SYMBOLIC)
def test_transpose(mnn_runtime: MnnRuntime, perm: tuple[int, ...] | None, shape: list[Any] | None) -> None:
    attrs = {} if perm is None else {"perm": perm}
    check(
        single("Transpose", {"x": X}, shapes={"x": shape} if shape else None, **attrs), {"x": X}, mnn_runtime
    )


def test_identity(mnn_runtime: MnnRuntime) -> None:
    check(single("Identity", {"x": X}), {"x": X}, mnn_runtime)
