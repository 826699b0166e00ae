"""Operators that compute or use positions, in the real runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.builders import single
from tests.ops.harness import check, needs_mnn
from tests.ops.test_data import both, ints
from tests.peers.mnn_runtime import MnnRuntime

pytestmark = [pytest.mark.peer, needs_mnn]

X = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
TIES = np.random.default_rng(1).integers(-3, 3, (4, 9))
SHAPES = [None, ["n", "m"], ["n", 9]]
REDUCTIONS = ["none", "add", "mul", "max", "min"]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", [np.float32, np.int64])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("constant", [True, False])
def test_scatter_nd(mnn_runtime: MnnRuntime, reduction: str, kind: Any, depth: int, constant: bool) -> None:
    data = (X * 5).astype(kind)
    tuples = {1: [[0], [-1], [0]], 2: [[0, 1], [-1, 3], [0, 1]], 3: [[0, 1, 2], [-1, -1, -1], [0, 1, 2]]}[
        depth
    ]
    if reduction == "none":
        tuples = tuples[:2]
    updates = (np.random.default_rng(2).standard_normal((len(tuples), *data.shape[depth:])) * 4).astype(kind)
    both(
        "ScatterND", data, {"i": np.array(tuples), "u": updates}, mnn_runtime, constant, reduction=reduction, opset=18
    )  # fmt: skip


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", [np.float32, np.int64])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("constant", [True, False])
def test_scatter_elements(
    mnn_runtime: MnnRuntime, reduction: str, kind: Any, axis: int, constant: bool
) -> None:
    data, rng, size = (X * 5).astype(kind), np.random.default_rng(3), X.shape[axis]
    # Positions differ along the axis, where the last of two writes would win otherwise.
    indices = (
        np.argsort(rng.standard_normal(X.shape), axis).take(range(3), axis).take(range(2), (axis + 1) % 3)
    )
    if reduction != "none":
        indices[indices == size - 1] = 0
    indices = np.where(indices % 2 == 1, indices - size, indices)
    updates = (rng.standard_normal(indices.shape) * 4).astype(kind)
    both(
        "ScatterElements", data, {"i": indices, "u": updates}, mnn_runtime, constant, axis=axis, reduction=reduction, opset=18
    )  # fmt: skip


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("kind", [np.float32, np.int64])
@pytest.mark.parametrize("k", [1, 3, 4])
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_top_k(
    mnn_runtime: MnnRuntime,
    axis: int,
    largest: int,
    kind: Any,
    k: int,
    constant: bool,
    shape: Sequence[Any] | None,
) -> None:
    # Where the shape is open, the order of equal floats is too.
    ties = kind is np.int64 or (constant and shape is None)
    x = TIES.astype(kind) if ties else np.random.default_rng(6).permutation(36).reshape(4, 9).astype(kind)
    both("TopK", x, {"k": ints(k)}, mnn_runtime, constant, shape, axis=axis, largest=largest, n_outputs=2)


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("kind", [np.float32, np.int64])
@pytest.mark.parametrize("shape", SHAPES)
def test_arg_extremum(
    mnn_runtime: MnnRuntime,
    op: str,
    axis: int,
    keepdims: int,
    last: int,
    kind: Any,
    shape: Sequence[Any] | None,
) -> None:
    x = TIES.astype(kind)
    proto = single(
        op,
        {"x": x},
        axis=axis,
        keepdims=keepdims,
        select_last_index=last,
        shapes={"x": shape} if shape else None,
    )
    check(proto, {"x": x}, mnn_runtime)


@pytest.mark.parametrize("ordered", [0, 1])
@pytest.mark.parametrize("kind", [np.float32, np.int64])
@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("x", [TIES, TIES[0]], ids=["matrix", "vector"])
def test_unique(mnn_runtime: MnnRuntime, ordered: int, kind: Any, outputs: int, x: np.ndarray) -> None:
    x = x.astype(kind)
    values, first, inverse, counts = np.unique(x, return_index=True, return_inverse=True, return_counts=True)
    order = np.arange(len(values)) if ordered else np.argsort(first)
    wanted = [values[order], first[order], np.argsort(order)[inverse.reshape(-1)], counts[order]]
    expected = dict(zip(["y", "y1", "y2", "y3"][:outputs], wanted, strict=False))
    proto = single("Unique", {"x": x}, sorted=ordered, n_outputs=outputs)
    check(proto, {"x": x}, mnn_runtime, expected=expected)


@pytest.mark.parametrize("center", [0, 1])
@pytest.mark.parametrize(("batches", "classes"), [(1, 1), (2, 3)])
@pytest.mark.parametrize("constant", [True, False])
def test_non_max_suppression(
    mnn_runtime: MnnRuntime, center: int, batches: int, classes: int, constant: bool
) -> None:
    rng = np.random.default_rng(4)
    boxes = rng.uniform(0, 1, (batches, 12, 4)).astype(np.float32)
    if not center:
        boxes[..., 2:] += boxes[..., :2]
    scores = rng.uniform(0.1, 1, (batches, classes, 12)).astype(np.float32)
    limits = {"m": ints(3), "i": np.array([0.3], np.float32), "t": np.array([0.2], np.float32)}
    feeds = {"b": boxes, "s": scores}
    if constant:
        check(single("NonMaxSuppression", feeds, limits, center_point_box=center), feeds, mnn_runtime)
    else:
        check(
            single("NonMaxSuppression", {**feeds, **limits}, center_point_box=center),
            {**feeds, **limits},
            mnn_runtime,
        )


@pytest.mark.parametrize(
    ("axes", "target"), [(None, (2, 6, 5)), ((1,), (9,)), ((-1, 0), (2, 5)), (None, (3, 4, 5)), ((2,), (8,))]
)
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("shape", [None, ["n", "c", "w"]])
def test_center_crop_pad(
    mnn_runtime: MnnRuntime, axes: tuple[int, ...] | None, target: tuple[int, ...], constant: bool, shape: Any
) -> None:
    attrs = {} if axes is None else {"axes": axes}
    both("CenterCropPad", X, {"s": ints(*target)}, mnn_runtime, constant, shape, opset=18, **attrs)


@pytest.mark.parametrize("mode", ["linear", "circular"])
@pytest.mark.parametrize("axis", [-2, 1, 3])
@pytest.mark.parametrize("positions", [None, (0, 2), (1, 3)])
def test_tensor_scatter(
    mnn_runtime: MnnRuntime, mode: str, axis: int, positions: tuple[int, ...] | None
) -> None:
    cache = np.zeros((2, 5, 5, 5), np.float32)
    shape = [2, 5, 5, 5]
    shape[axis] = 3 if mode == "circular" else 2
    update = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    feeds = {"c": cache, "u": update, **({} if positions is None else {"p": ints(*positions)})}
    check(single("TensorScatter", feeds, mode=mode, axis=axis, opset=24), feeds, mnn_runtime)
