"""Loops of commands (`While` with a `LoopParam`), built by hand: each field of a command, and what must be refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mnnq.errors import MnnqError
from tests.runtime.single_op import run_op, session_of

RNG = np.random.default_rng(5)


def _floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def _ints(values: Any) -> np.ndarray:
    return np.asarray(values, np.int32)


def _operator(kind: str | None, **main: Any) -> dict[str, Any]:
    """An operator of a command; a copy without `kind`."""
    if kind is None:
        return {"type": "UnaryOp"}
    return {"type": kind, "main_type": kind, "main": main}


def _command(
    operator: dict[str, Any] | None,
    indexes: list[int],
    size: tuple[int, int, int],
    views: list[tuple[int, tuple[int, ...]]],
    steps: list[int] | None = None,
    iterations: list[int] | None = None,
    fuse: int = -1,
) -> dict[str, Any]:
    command = {
        "indexes": _ints(indexes),
        "size": _ints(size),
        "view": [{"offset": offset, "stride": _ints(stride)} for offset, stride in views],
        "steps": _ints(steps or [0] * len(indexes)),
        "iterIndexes": _ints(iterations or [-1] * len(indexes)),
        "fuse": fuse,
    }
    return command if operator is None else {**command, "op": operator}


def _loop(
    inputs: list[np.ndarray],
    outputs: list[tuple[int, ...]],
    commands: list[dict[str, Any]],
    loops: int = 1,
    initial: list[dict[str, Any]] | None = None,
    dtype: str = "DT_FLOAT",
    **changes: Any,
) -> dict[str, Any]:
    """Fields of a loop whose slots are its inputs, then its outputs."""
    described = [{"blob": {"dims": _ints(shape), "dataType": dtype}} for shape in outputs]
    fields = {
        "tensorNumber": len(inputs) + len(outputs),
        "inputIndexes": _ints(range(len(inputs))),
        "outputIndexes": _ints(range(len(inputs), len(inputs) + len(outputs))),
        "extraTensorInfos": described,
        "loopNumber": loops,
        "commands": commands,
    }
    if initial is not None:
        fields["initCommand"] = initial
    return fields | changes


def _run(
    inputs: list[np.ndarray], outputs: list[tuple[int, ...]], *args: Any, **more: Any
) -> list[np.ndarray]:
    fields = _loop(inputs, outputs, *args, **more)
    return run_op("While", inputs, "LoopParam", outputs=len(outputs), **fields)


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("step_b", [0, 35])
def test_products_of_matrices(transpose_a: bool, transpose_b: bool, step_b: int) -> None:
    a, b = _floats(3, 4, 5), _floats(3 if step_b else 1, 5, 7)
    given = [a.swapaxes(1, 2) if transpose_a else a, b.swapaxes(1, 2) if transpose_b else b]
    given = [np.ascontiguousarray(array) for array in given]
    operator = _operator("MatMul", transposeA=transpose_a, transposeB=transpose_b)
    views = [(0, (7, 0, 1)), (0, (5, 1, 0)), (0, (0, 7, 1))]
    command = _command(operator, [2, 0, 1], (4, 5, 7), views, [28, 20, step_b])
    (got,) = _run(given, [(3, 4, 7)], [command], 3)
    np.testing.assert_allclose(got, a @ b, rtol=1e-5, atol=1e-5)


def test_a_product_per_pair_of_indices_with_bias() -> None:
    a, b, bias = _floats(2, 4, 5), _floats(3, 5, 7), _floats(7)
    first, second = _ints([0, 1, 1, 0]), _ints([2, 0, 1, 2])
    operator = _operator("MatMul", transposeA=False, transposeB=False)
    views = [(0, (7, 0, 1)), (0, (5, 1, 0)), (0, (0, 7, 1)), (0, (0, 0, 1))]
    command = _command(operator, [5, 0, 1, 4], (4, 5, 7), views, [28, 20, 35, 0], [-1, 2, 3, -1])
    (got,) = _run([a, b, first, second, bias], [(4, 4, 7)], [command], 4)
    np.testing.assert_allclose(got, a[first] @ b[second] + bias, rtol=1e-5, atol=1e-5)


def test_a_product_stored_by_columns_and_added() -> None:
    a, b = _floats(2, 4, 5), _floats(2, 5, 7)
    operator = _operator("MatMul", transposeA=False, transposeB=False)
    views = [(3, (1, 0, 4)), (0, (5, 1, 0)), (0, (0, 7, 1))]
    command = _command(operator, [2, 0, 1], (4, 5, 7), views, [0, 20, 35], fuse=0)
    (got,) = _run([a, b], [(31,)], [command], 2)
    want = np.zeros(31, np.float32)
    want[3:] = (a @ b).sum(0).T.ravel()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_gather_of_rows_gives_zeros_outside() -> None:
    data, at = _floats(5, 3), _ints([4, 0, -1, 5, 2])
    command = _command(_operator(None), [2, 0], (1, 1, 3), [(0, (3, 3, 1)), (0, (3, 3, 1))], [3, 3], [-1, 1])
    (got,) = _run([data, at], [(5, 3)], [command], 5)
    want = np.where(((at >= 0) & (at < 5))[:, None], data[at.clip(0, 4)], 0)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("fuse", "function"), [(-1, None), (0, np.add), (1, np.subtract), (2, np.multiply)])
def test_a_scatter_starts_from_its_data(fuse: int, function: np.ufunc | None) -> None:
    updates, at, data = _floats(4, 3), _ints([6, 0, 6, 12]), _floats(5, 3)
    dense = (0, (15, 15, 1))
    start = {"op": _operator(None), "indexes": _ints([3, 2]), "size": _ints([1, 1, 15])}
    start["view"] = [{"offset": 0, "stride": _ints(stride)} for _, stride in (dense, dense)]
    command = _command(
        _operator(None), [3, 0], (1, 1, 3), [(0, (3, 3, 1)), (0, (3, 3, 1))], [1, 3], [1, -1], fuse
    )
    (got,) = _run([updates, at, data], [(5, 3)], [command], 4, [start], parallel=False)
    want = data.copy()
    for row, update in zip(at // 3, updates, strict=True):
        want[row] = update if function is None else function(want[row], update)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_functions_broadcasts_and_strides() -> None:
    a, b = _floats(2, 3, 4), _floats(3)
    multiply = _command(
        _operator("BinaryOp", opType="MUL"),
        [2, 0, 1],
        (2, 3, 4),
        [(0, (12, 4, 1)), (0, (12, 4, 1)), (0, (0, 1, 0))],
    )
    # Every other row of the product, backwards, through a function.
    function = _command(
        _operator("UnaryOp", opType="ABS"), [3, 2], (1, 3, 4), [(1, (0, 8, 2)), (20, (0, -8, 1))]
    )
    product, strided = _run([a, b], [(2, 3, 4), (3, 4, 2)], [multiply, function])
    want = a * b[:, None]
    np.testing.assert_allclose(product, want, rtol=1e-6)
    np.testing.assert_allclose(strided[..., 1], np.abs(want.reshape(6, 4)[[5, 3, 1]]), rtol=1e-6)
    np.testing.assert_array_equal(strided[..., 0], 0)


def test_a_command_reads_what_earlier_iterations_wrote() -> None:
    # x[i + 1] = x[i] + a[i], from 0: a cumulated sum.
    a = _floats(6, 2)
    row = (0, (0, 0, 1))
    command = _command(
        _operator("BinaryOp", opType="ADD"), [1, 1, 0], (1, 1, 2), [(2, row[1]), row, row], [2, 2, 2]
    )
    (got,) = _run([a], [(7, 2)], [command], 6, parallel=False)
    np.testing.assert_allclose(got[1:], np.cumsum(a, 0), rtol=1e-5, atol=1e-6)


def test_columns_are_summed_by_fuse() -> None:
    a = _floats(3, 5)
    command = _command(_operator(None), [1, 0], (1, 3, 5), [(0, (0, 1, 0)), (0, (0, 5, 1))], fuse=0)
    (got,) = _run([a], [(3,)], [command])
    np.testing.assert_allclose(got, a.sum(1), rtol=1e-5, atol=1e-6)


def test_integers_and_comparisons() -> None:
    a, b = _ints([[1, 5, -3], [7, 0, 2]]), _ints([2, 0, 2])
    views = [(0, (0, 3, 1)), (0, (0, 3, 1)), (0, (0, 0, 1))]
    for name, want in (("SUB", a - b), ("LESS", (a < b).astype(np.int32))):
        command = _command(_operator("BinaryOp", opType=name), [2, 0, 1], (1, 2, 3), views)
        (got,) = _run([a, b], [(2, 3)], [command], dtype="DT_INT32")
        np.testing.assert_array_equal(got, want)


def test_outputs_do_not_depend_on_threads() -> None:
    a, b = _floats(12, 33, 40), _floats(12, 40, 29)
    operator = _operator("MatMul", transposeA=False, transposeB=False)
    views = [(0, (29, 0, 1)), (0, (40, 1, 0)), (0, (0, 29, 1))]
    command = _command(operator, [2, 0, 1], (33, 40, 29), views, [33 * 29, 33 * 40, 40 * 29])
    fields = _loop([a, b], [(12, 33, 29)], [command], 12)
    results = [run_op("While", [a, b], "LoopParam", threads=threads, **fields)[0] for threads in (1, 3)]
    np.testing.assert_array_equal(*results)


COPY = (_operator(None), [1, 0], (1, 1, 6), [(0, (6, 6, 1)), (0, (6, 6, 1))])


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("loopNumber", {"loopNumber": -1}),
        ("max_loop_iterations", {"loopNumber": 2**31 - 1}),
        ("tensorNumber", {"tensorNumber": -5}),
        ("outputIndexes", {"outputIndexes": _ints([0])}),
        ("inputIndexes", {"inputIndexes": _ints([7])}),
        ("inputIndexes", {"inputIndexes": _ints([0, 1])}),
        ("data", {"extraTensorInfos": [{"blob": {"dims": _ints([6]), "dataType": "DT_STRING"}}]}),
        ("described", {"extraTensorInfos": []}),
        ("int32", {"extraTensorInfos": [{"blob": {"dims": _ints([6]), "dataType": "DT_INT32"}}]}),
        ("produced twice", {"commands": [_command(_operator(None), [0, 1], *COPY[2:])]}),
        ("indexes", {"commands": [_command(*COPY) | {"indexes": _ints([1])}]}),
        ("indexes", {"commands": [_command(_operator(None), [1, 2], *COPY[2:])]}),
        ("op", {"commands": [_command(None, *COPY[1:])]}),
        ("Softmax", {"commands": [_command({"type": "Softmax"}, *COPY[1:])]}),
        ("steps", {"commands": [_command(*COPY, steps=[1])]}),
        ("iterIndexes", {"commands": [_command(*COPY, iterations=[-1, 9])]}),
        ("iterIndexes", {"commands": [_command(*COPY, iterations=[-1])]}),
        ("fuse", {"commands": [_command(*COPY, fuse=7)]}),
        ("size", {"commands": [_command(*COPY[:2], (1, 1, -6), COPY[3])]}),
        ("size", {"commands": [_command(*COPY[:2], (9, 9, 9), [(0, (0, 0, 0))] * 2)]}),
        ("size", {"commands": [_command(*COPY[:2], (1, 1, 7), COPY[3])]}),
        ("shape", {"commands": [_command(*COPY[:2], (2**31 - 1,) * 3, [(0, (0, 0, 0))] * 2)]}),
        ("view", {"commands": [_command(*COPY, steps=[0, 2**31 - 1])], "loopNumber": 2}),
        ("view", {"commands": [_command(*COPY[:3], [(0, (6, 6, 1)), (-1, (6, 6, 1))])]}),
        ("view", {"commands": [_command(*COPY[:3], [(0, (6, 6, 1)), (0, (6, 6, -(2**31)))])]}),
        ("view", {"commands": [_command(*COPY[:3], COPY[3][:1])]}),
        ("stride", {"commands": [_command(*COPY[:3], [(0, (6, 6)), (0, (6, 6, 1))])]}),
    ],
)
def test_nonsense_is_refused(message: str, changes: dict[str, Any]) -> None:
    data = _floats(6)
    fields = _loop([data], [(6,)], [_command(*COPY)], 2) | changes
    with pytest.raises(MnnqError, match=message):
        session_of("While", [data], "LoopParam", fields, 1).run(None, {"x0": data})


def test_indices_that_cut_a_tensor_are_an_error() -> None:
    data, at = _floats(7), _ints([0, 5])
    command = _command(_operator(None), [2, 0], (1, 1, 3), [(0, (3, 3, 1))] * 2, [3, 1], [-1, 1])
    with pytest.raises(MnnqError, match="below 7"):
        _run([data, at], [(2, 3)], [command], 2)
