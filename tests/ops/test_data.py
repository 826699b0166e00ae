"""Operators that move data, in the real runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from mnnq.convert import convert_onnx
from mnnq.errors import UnsupportedError
from mnnq.ir import Model
from mnnq.runtime import InferenceSession
from tests.builders import model, single
from tests.ops.harness import check, needs_mnn, reference
from tests.peers.mnn_runtime import MnnRuntime

pytestmark = [pytest.mark.peer, needs_mnn]

X = np.random.default_rng(0).standard_normal((2, 5, 6)).astype(np.float32)
I = np.arange(60, dtype=np.int64).reshape(2, 5, 6)  # noqa: E741
SHAPES = [None, ["n", "c", "w"], ["n", 5, 6]]
BIG = np.iinfo(np.int64).max


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def both(
    op: str,
    x: np.ndarray,
    others: Mapping[str, np.ndarray],
    runtime: MnnRuntime,
    constant: bool,
    shape: Sequence[Any] | None = None,
    expected: Mapping[str, np.ndarray] | None = None,
    **more: Any,
) -> Model:
    """Check with the inputs besides the first constant, or all of them computed."""
    shapes = {"x": shape} if shape else None
    feeds = {"x": x} if constant else {"x": x, **others}
    constants = others if constant else None
    return check(single(op, feeds, constants, shapes=shapes, **more), feeds, runtime, expected=expected)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("x", [X, I], ids=["float", "int"])
def test_concat(mnn_runtime: MnnRuntime, axis: int, count: int, x: np.ndarray) -> None:
    feeds = {f"x{i}": x + i for i in range(count)}
    check(single("Concat", feeds, axis=axis), feeds, mnn_runtime)


def test_concat_leaves_out_an_empty_part(mnn_runtime: MnnRuntime) -> None:
    empty = np.zeros((2, 0, 6), np.float32)
    check(single("Concat", {"x": X}, {"e": empty}, axis=1), {"x": X}, mnn_runtime)


@pytest.mark.parametrize(
    ("axis", "sizes"), [(0, (1, 1)), (1, (2, 3)), (-1, (1, 2, 3)), (2, (6,)), (1, (4, 1))]
)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("constant", [True, False])
def test_split(
    mnn_runtime: MnnRuntime, axis: int, sizes: tuple[int, ...], shape: list[Any] | None, constant: bool
) -> None:
    both("Split", X, {"s": ints(*sizes)}, mnn_runtime, constant, shape, axis=axis, n_outputs=len(sizes))


@pytest.mark.parametrize(("axis", "parts"), [(1, 2), (1, 3), (2, 3), (-1, 2), (2, 1)])
@pytest.mark.parametrize("shape", SHAPES)
def test_split_into_a_number_of_parts(
    mnn_runtime: MnnRuntime, axis: int, parts: int, shape: list[Any] | None
) -> None:
    proto = single(
        "Split",
        {"x": X},
        axis=axis,
        num_outputs=parts,
        n_outputs=parts,
        opset=18,
        shapes={"x": shape} if shape else None,
    )
    check(proto, {"x": X}, mnn_runtime)


@pytest.mark.parametrize("shape", SHAPES)
def test_split_into_equal_parts(mnn_runtime: MnnRuntime, shape: list[Any] | None) -> None:
    check(
        single("Split", {"x": X}, axis=2, n_outputs=3, shapes={"x": shape} if shape else None),
        {"x": X},
        mnn_runtime,
    )


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (0, 2, 0, 3)])
def test_empty_parts_are_constants(mnn_runtime: MnnRuntime, sizes: tuple[int, ...]) -> None:
    parts = [f"p{i}" for i in range(len(sizes))]
    nodes = [
        helper.make_node("Split", ["x", "s"], parts, axis=1),
        helper.make_node("Concat", parts[::-1], ["y"], axis=1),
    ]
    check(model(nodes, {"x": X}, ["y"], {"s": ints(*sizes)}), {"x": X}, mnn_runtime)
    whole = model(nodes[:1], {"x": X}, parts, {"s": ints(*sizes)})
    got = InferenceSession(whole).run(parts, {"x": X})
    for have, want in zip(got, np.split(X, np.cumsum(sizes)[:-1], axis=1), strict=True):
        np.testing.assert_array_equal(have, want)


def test_an_empty_part_of_unknown_shape_is_refused() -> None:
    proto = single("Split", {"x": X}, {"s": ints(0, 5)}, axis=1, n_outputs=2, shapes={"x": [2, "c", "h"]})
    with pytest.raises(UnsupportedError, match="size 0"):
        convert_onnx(proto)


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ((0, 1), (2, 4), None, None),
        ((1,), (BIG,), (1,), None),
        ((-3,), (-1,), (2,), None),
        ((0,), (100,), (-1,), (2,)),
        ((-1,), (-BIG,), (1,), (-1,)),
        ((4,), (0,), (1,), (-2,)),
        ((100,), (-100,), (2,), (-3,)),
        ((1, -4), (-1, BIG), (2, 1), (2, 1)),
        ((0,), (BIG,), (1,), None),
        ((-100,), (3,), (2,), None),
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("constant", [True, False])
def test_slice(
    mnn_runtime: MnnRuntime,
    starts: tuple[int, ...],
    ends: tuple[int, ...],
    axes: tuple[int, ...] | None,
    steps: tuple[int, ...] | None,
    shape: list[Any] | None,
    constant: bool,
) -> None:
    limit = 1 << 30  # inputs are INT32 in the runtime
    cut = [v if constant else int(np.clip(v, -limit, limit)) for v in (*starts, *ends)]
    others = {"s": ints(*cut[: len(starts)]), "e": ints(*cut[len(starts) :])}
    order = ["x", "s", "e"]
    if axes is not None:
        others["a"] = ints(*axes)
        order.append("a")
    if steps is not None:
        others["t"] = ints(*steps)
        order.append("t")
    both("Slice", X, others, mnn_runtime, constant, shape, order=order)


@pytest.mark.parametrize("shape", [None, ["a", "b", "c", "d"]])
@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("start", [-1, BIG, -3, 2])
@pytest.mark.parametrize("end", [-BIG, -5, 0])
@pytest.mark.parametrize("step", [-1, -2])
def test_reversed_slice_of_an_image(
    mnn_runtime: MnnRuntime, shape: list[Any] | None, axis: int, start: int, end: int, step: int
) -> None:
    # The runtime's StridedSlice corrupts its memory for negative steps on four axes.
    x = np.arange(6 * 5 * 7 * 6, dtype=np.float32).reshape(6, 5, 7, 6)
    if not x.shape[axis] or not len(range(*slice(start, end, step).indices(x.shape[axis]))):
        pytest.skip("nothing is left")
    others = {"s": ints(start), "e": ints(end), "a": ints(axis), "t": ints(step)}
    check(single("Slice", {"x": x}, others, shapes={"x": shape} if shape else None), {"x": x}, mnn_runtime)


def test_reversed_slice_with_other_axes(mnn_runtime: MnnRuntime) -> None:
    x = np.arange(2 * 3 * 7 * 6, dtype=np.float32).reshape(2, 3, 7, 6)
    others = {"s": ints(1, -1, -1), "e": ints(3, -BIG, 0), "a": ints(1, 3, 2), "t": ints(1, -1, -2)}
    check(single("Slice", {"x": x}, others), {"x": x}, mnn_runtime)


def test_reversed_slice_with_run_time_bounds_is_refused() -> None:
    x = np.zeros((2, 3, 4, 5), np.float32)
    inputs = {"x": x, "s": ints(-1), "e": ints(0)}
    with pytest.raises(UnsupportedError, match="rank above 3"):
        convert_onnx(single("Slice", inputs, {"a": ints(3), "t": ints(-1)}))


def test_a_slice_of_everything_moves_nothing(mnn_runtime: MnnRuntime) -> None:
    model_ = both("Slice", X, {"s": ints(0), "e": ints(BIG), "a": ints(1)}, mnn_runtime, True)
    assert not any(op.type == "StridedSlice" for op in model_.ops)


def test_an_empty_slice_is_a_constant() -> None:
    proto = single("Slice", {"x": X}, {"s": ints(3), "e": ints(3), "a": ints(1)})
    assert {op.type for op in convert_onnx(proto).ops} == {"Input", "Const"}
    (got,) = InferenceSession(proto).run(None, {"x": X})
    assert got.shape == X[:, 3:3].shape


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("indices", [0, -1, [1, 0], [-1, 0, -2], [[0, 1], [-1, -2]]], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("x", [X, I], ids=["float", "int"])
def test_gather(
    mnn_runtime: MnnRuntime, axis: int, indices: Any, shape: list[Any] | None, constant: bool, x: np.ndarray
) -> None:
    both("Gather", x, {"i": np.array(indices, np.int64)}, mnn_runtime, constant, shape, axis=axis)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("constant", [True, False])
def test_gather_elements(mnn_runtime: MnnRuntime, axis: int, shape: list[Any] | None, constant: bool) -> None:
    size = X.shape[axis]
    indices = np.random.default_rng(1).integers(-size, size, X.shape)
    both("GatherElements", X, {"i": indices}, mnn_runtime, constant, shape, axis=axis)


@pytest.mark.parametrize(
    ("batch", "indices"),
    [
        (0, [[0, 1], [-1, -2]]),
        (0, [[[0], [1]], [[-1], [-2]]]),
        (0, [[1, 2, 3]]),
        (1, [[1], [-1]]),
        (1, [[[1, 2], [0, -1]], [[3, 4], [-5, 0]]]),
        (2, [[[1], [2], [-1], [0], [5]], [[0], [0], [1], [-6], [2]]]),
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("constant", [True, False])
def test_gather_nd(
    mnn_runtime: MnnRuntime, batch: int, indices: Any, shape: list[Any] | None, constant: bool
) -> None:
    both("GatherND", X, {"i": np.array(indices)}, mnn_runtime, constant, shape, batch_dims=batch)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize(
    "pads",
    [
        (0, 1, 2, 0, 2, 1),
        (0, 0, 3, 0, 0, 0),
        (0, -1, 0, 0, 1, 0),
        (0, -1, -2, 0, 0, -1),
        (0, 4, 0, 0, 3, 5),
        (0,) * 6,
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("x", [X, I], ids=["float", "int"])
def test_pad(
    mnn_runtime: MnnRuntime, mode: str, pads: tuple[int, ...], shape: list[Any] | None, x: np.ndarray
) -> None:
    low, high = pads[:3], pads[3:]
    kept = x[tuple(slice(max(-lo, 0), hi if hi < 0 else None) for lo, hi in zip(low, high, strict=True))]
    widths = [(max(lo, 0), max(hi, 0)) for lo, hi in zip(low, high, strict=True)]
    want = {"y": np.pad(kept, widths, mode=mode)}  # type: ignore[call-overload]
    both("Pad", x, {"p": ints(*pads)}, mnn_runtime, True, shape, expected=want, mode=mode, opset=19)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pad_by_computed_amounts(mnn_runtime: MnnRuntime, mode: str) -> None:
    both("Pad", X, {"p": ints(0, 1, 2, 0, 2, 1)}, mnn_runtime, False, mode=mode, opset=19)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("axes", [(1,), (-1, 0), (2, 1)])
def test_pad_some_axes_with_a_value(mnn_runtime: MnnRuntime, constant: bool, axes: tuple[int, ...]) -> None:
    amounts = ints(*range(1, 2 * len(axes) + 1))
    others = {"p": amounts, "v": np.float32(1.5), "a": ints(*axes)}
    both("Pad", X, others, mnn_runtime, constant, opset=18)


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [None, 0, 2, -1, 9])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("x", [X, I], ids=["float", "int"])
def test_trilu(
    mnn_runtime: MnnRuntime, upper: int, k: int | None, shape: list[Any] | None, constant: bool, x: np.ndarray
) -> None:
    both("Trilu", x, {} if k is None else {"k": np.array(k)}, mnn_runtime, constant, shape, upper=upper)


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("depth", [np.int64(4), np.array([4.0], np.float32)], ids=["int", "float"])
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("values", [(0.0, 1.0), (2, 5)])
def test_one_hot(
    mnn_runtime: MnnRuntime, axis: int, depth: Any, constant: bool, values: tuple[float, float]
) -> None:
    indices = np.array([[0, 3, -1], [-4, 7, -9]])
    kind = np.float32 if isinstance(values[0], float) else np.int64
    others = {"d": np.asarray(depth), "v": np.array(values, kind)}
    # The reference does not take a float depth.
    whole = {"d": np.asarray(4), "v": others["v"]}
    expected = reference(single("OneHot", {"x": indices}, whole, axis=axis), {"x": indices})
    both("OneHot", indices, others, mnn_runtime, constant, expected=expected, axis=axis)


@pytest.mark.parametrize("kind", [np.float32, np.int64, np.bool_])
def test_non_zero(mnn_runtime: MnnRuntime, kind: Any) -> None:
    x = np.array([[0, -2, 3], [1, 0, 0]]).astype(kind)
    check(single("NonZero", {"x": x}), {"x": x}, mnn_runtime)


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("constant", [True, False])
def test_compress(mnn_runtime: MnnRuntime, axis: int | None, constant: bool) -> None:
    keep = np.array([False, True] if axis == 0 else [True, False, True, True, False])
    both("Compress", X, {"c": keep}, mnn_runtime, constant, **({} if axis is None else {"axis": axis}))


@pytest.mark.parametrize("op", ["CumSum", "CumProd"])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("x", [X, I[:, :3, :2] + 1], ids=["float", "int"])
def test_running_totals(
    mnn_runtime: MnnRuntime, op: str, axis: int, exclusive: int, reverse: int, x: np.ndarray
) -> None:
    opset = 14 if op == "CumSum" else 26
    proto = single(op, {"x": x}, {"a": np.array(axis)}, exclusive=exclusive, reverse=reverse, opset=opset)
    check(proto, {"x": x}, mnn_runtime)


@pytest.mark.parametrize(("batch", "time"), [(1, 0), (0, 1)])
@pytest.mark.parametrize("lengths", [(1, 2, 3), (0, 3, 1)])
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 4)])
def test_reverse_sequence(
    mnn_runtime: MnnRuntime,
    batch: int,
    time: int,
    lengths: tuple[int, ...],
    constant: bool,
    shape: tuple[int, ...],
) -> None:
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    both("ReverseSequence", x, {"l": ints(*lengths)}, mnn_runtime, constant, batch_axis=batch, time_axis=time)


def test_chunk_with_a_symbolic_axis(mnn_runtime: MnnRuntime) -> None:
    """What exporters write for ``chunk``: sizes computed from the shape."""
    make = onnx.helper.make_node
    nodes = [
        make("Shape", ["x"], ["s"]),
        make("Gather", ["s", "one"], ["c"], axis=0),
        make("Slice", ["x", "zero1", "c1", "axis"], ["y"]),
        make("Unsqueeze", ["c", "zero1"], ["c1"]),
    ]
    nodes[2], nodes[3] = nodes[3], nodes[2]
    constants = {"one": np.array(1), "zero1": ints(0), "axis": ints(2)}
    check(model(nodes, {"x": X}, ["y"], constants, shapes={"x": ["n", "c", "w"]}), {"x": X}, mnn_runtime)
