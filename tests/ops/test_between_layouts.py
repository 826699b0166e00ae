"""Data movement on the output of a convolution (a tensor in blocked layout), and the forms of old opsets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from tests.builders import model, single
from tests.ops.harness import check, needs_mnn
from tests.ops.test_data import ints
from tests.peers.mnn_runtime import MnnRuntime

pytestmark = [pytest.mark.peer, needs_mnn]

RNG = np.random.default_rng(0)
X = RNG.standard_normal((1, 4, 6, 6)).astype(np.float32)
WEIGHT = RNG.standard_normal((8, 4, 1, 1)).astype(np.float32)
FLAT = RNG.standard_normal((2, 5, 6)).astype(np.float32)
make = onnx.helper.make_node

AFTER_CONV: dict[str, tuple[list[onnx.NodeProto], Mapping[str, np.ndarray]]] = {
    "split": (
        [make("Split", ["c", "s"], ["a", "b"], axis=1), make("Concat", ["b", "a"], ["y"], axis=1)],
        {"s": ints(3, 5)},
    ),
    "shuffle": (
        [
            make("Reshape", ["c", "s"], ["r"]),
            make("Transpose", ["r"], ["q"], perm=[0, 2, 1, 3, 4]),
            make("Reshape", ["q", "t"], ["y"]),
        ],
        {"s": ints(0, 2, 4, 6, 6), "t": ints(0, 8, 6, 6)},
    ),
    "argmax": ([make("ArgMax", ["c"], ["y"], axis=1)], {}),
    "topk": ([make("TopK", ["c", "k"], ["y", "z"], axis=1)], {"k": ints(3)}),
    "gather": ([make("Gather", ["c", "k"], ["y"], axis=1)], {"k": ints(3, -1)}),
    "slice": (
        [make("Slice", ["c", "s", "e", "a", "t"], ["y"])],
        {"s": ints(-1), "e": ints(-1000), "a": ints(1), "t": ints(-2)},
    ),
    "reflect": ([make("Pad", ["c", "p"], ["y"], mode="reflect")], {"p": ints(0, 0, 1, 2, 0, 0, 2, 1)}),
    "zeros": ([make("Pad", ["c", "p"], ["y"])], {"p": ints(0, 1, 1, 2, 0, 0, 2, 1)}),
    "mean": ([make("ReduceMean", ["c", "a"], ["y"], keepdims=0)], {"a": ints(2, 3)}),
    "norm": ([make("ReduceL2", ["c", "a"], ["r"]), make("Squeeze", ["r", "a"], ["y"])], {"a": ints(3)}),
    "cumsum": ([make("CumSum", ["c", "a"], ["y"])], {"a": np.array(1)}),
    "expand": (
        [
            make("ReduceSum", ["c", "a"], ["r"]),
            make("Shape", ["c"], ["s"]),
            make("Expand", ["r", "s"], ["y"]),
        ],
        {"a": ints(1)},
    ),
    "tile": ([make("Tile", ["c", "a"], ["y"])], {"a": ints(2, 2, 1, 2)}),
    "flatten": ([make("Flatten", ["c"], ["y"], axis=2)], {}),
    "lstm": (
        [
            make("ReduceMean", ["c", "a"], ["r"], keepdims=0),
            make("Transpose", ["r"], ["q"], perm=[2, 0, 1]),
            make("LSTM", ["q", "w", "u"], ["", "h"], hidden_size=5),
            make("Squeeze", ["h", "z"], ["y"]),
        ],
        {
            "a": ints(2),
            "w": RNG.standard_normal((1, 20, 8)).astype(np.float32),
            "u": RNG.standard_normal((1, 20, 5)).astype(np.float32),
            "z": ints(0),
        },
    ),
}


@pytest.mark.parametrize("case", AFTER_CONV)
@pytest.mark.parametrize("shape", [None, ["n", 4, "h", "w"]])
def test_after_a_convolution(mnn_runtime: MnnRuntime, case: str, shape: Sequence[Any] | None) -> None:
    nodes, constants = AFTER_CONV[case]
    proto = model(
        [make("Conv", ["x", "weight"], ["c"]), *nodes],
        {"x": X},
        ["y"],
        {"weight": WEIGHT, **constants},
        opset=18,
        shapes={"x": shape} if shape else None,
    )
    check(proto, {"x": X}, mnn_runtime)


OLD_FORMS: list[tuple[str, int, dict[str, Any], int]] = [
    ("Slice", 9, {"axes": [1], "starts": [1], "ends": [-1]}, 1),
    ("TopK", 9, {"axis": 1, "k": 2}, 2),
    ("Split", 11, {"axis": 1, "split": [2, 3]}, 2),
    ("Pad", 8, {"pads": [0, 1, 0, 0, 0, 2], "value": 1.5}, 1),
    ("ReduceL2", 11, {"axes": [1], "keepdims": 0}, 1),
    ("ReduceSum", 11, {"axes": [-1]}, 1),
    ("Unsqueeze", 11, {"axes": [0, 4]}, 1),
]


@pytest.mark.parametrize(("op", "opset", "attrs", "outputs"), OLD_FORMS, ids=str)
def test_attributes_that_became_inputs(
    mnn_runtime: MnnRuntime, op: str, opset: int, attrs: dict[str, Any], outputs: int
) -> None:
    check(single(op, {"x": FLAT}, opset=opset, n_outputs=outputs, **attrs), {"x": FLAT}, mnn_runtime)
