"""Control flow in the real runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mnnq.convert import convert_onnx
from mnnq.errors import UnsupportedError
from mnnq.ir import Model
from tests.builders import model
from tests.ops.harness import check as check_against
from tests.ops.harness import needs_mnn
from tests.peers.mnn_runtime import MnnRuntime

ort = pytest.importorskip("onnxruntime")
pytestmark = [pytest.mark.peer, needs_mnn]

X = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
make = helper.make_node


def check(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray], runtime: MnnRuntime) -> Model:
    """`harness.check` against ONNX Runtime: the reference evaluator runs loops and scans only in part."""
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in proto.graph.output]
    expected = dict(zip(names, session.run(names, dict(feeds)), strict=True))
    return check_against(proto, feeds, runtime, expected=expected)


def graph(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    **constants: np.ndarray,
) -> onnx.GraphProto:
    return helper.make_graph(
        list(nodes),
        name,
        list(inputs),
        list(outputs),
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )


def value(name: str, *shape: Any, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def branches() -> dict[str, onnx.GraphProto]:
    """Two branches that read the outer value x; the second also gives it back as it is."""
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    return {
        "then_branch": graph(
            "yes", [make("Concat", ["x", "k"], ["a"], axis=0), make("Transpose", ["x"], ["b"])], [],
            [value("a", 4, 3), value("b", 3, 2)], k=weights,
        ),
        "else_branch": graph("no", [make("Transpose", ["x"], ["d"])], [], [value("x", 2, 3), value("d", 3, 2)]),
    }  # fmt: skip


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("constant", [True, False])
def test_if(mnn_runtime: MnnRuntime, condition: bool, constant: bool) -> None:
    feeds = {"x": X}
    flag = {"c": np.array(condition)}
    node = make("If", ["c"], ["y", "z"], **branches())
    proto = model([node], feeds if constant else {**feeds, **flag}, ["y", "z"], flag if constant else None)
    made = check_against(proto, feeds if constant else {**feeds, **flag}, mnn_runtime)
    assert any(op.type == "If" for op in made.ops) != constant


def test_an_unsupported_operator_in_a_branch_is_named() -> None:
    bad = graph("no", [make("Det", ["x"], ["d"])], [], [value("d", 2, 3)])
    good = graph("yes", [make("Identity", ["x"], ["a"])], [], [value("a", 2, 3)])
    node = make("If", ["c"], ["y"], then_branch=good, else_branch=bad)
    with pytest.raises(UnsupportedError, match="Det"):
        convert_onnx(model([node], {"c": np.array(True), "x": X}, ["y"]))


def loop_body(*, stop: bool = False) -> onnx.GraphProto:
    """Swap two states, stack the transposed first one and a captured value; optionally stop by a condition."""
    nodes = [
        make("Identity", ["keep" if stop else "c"], ["c_out"]),
        make("Identity", ["q"], ["p_out"]),
        make("Identity", ["p"], ["q_out"]),
        make("Transpose", ["p"], ["s"]),
        make("Gather", ["table", "i"], ["row"], axis=0),
    ]
    boolean, number = TensorProto.BOOL, TensorProto.INT64
    return graph(
        "body",
        nodes,
        [value("i", kind=number), value("c", kind=boolean), value("p", 2, 3), value("q", 2, 3)],
        [
            value("c_out", kind=boolean),
            value("p_out", 2, 3),
            value("q_out", 2, 3),
            value("s", 3, 2),
            value("row", 4),
        ],
        keep=np.array(False),
    )


@pytest.mark.parametrize("trips", [1, 2, 3])
@pytest.mark.parametrize("condition", [None, True])
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("stop", [False, True])
def test_loop(
    mnn_runtime: MnnRuntime, trips: int, condition: bool | None, constant: bool, stop: bool
) -> None:
    feeds = {"x": X, "w": X + 1, "table": np.arange(16, dtype=np.float32).reshape(4, 4)}
    count = {"m": np.array(trips)}
    flag = {} if condition is None else {"c0": np.array(condition)}
    node = make(
        "Loop", ["m", "c0" if flag else "", "x", "w"], ["y", "z", "s_all", "rows"], body=loop_body(stop=stop)
    )
    inputs = feeds if constant else {**feeds, **count, **flag}
    constants = {**count, **flag} if constant else None
    check(model([node], inputs, ["y", "z", "s_all", "rows"], constants), inputs, mnn_runtime)


def scan_body() -> onnx.GraphProto:
    nodes = [
        make("Concat", ["state", "a"], ["wide"], axis=0),
        make("Slice", ["wide", "from", "to"], ["state_out"]),
        make("Concat", ["b", "state"], ["joined"], axis=0),
    ]
    return graph(
        "body",
        nodes,
        [value("state", 3), value("a", 3), value("b", 2)],
        [value("state_out", 3), value("joined", 5)],
        **{"from": np.array([1]), "to": np.array([4])},
    )


@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"scan_input_directions": [1, 0]},
        {"scan_input_axes": [0, 1]},
        {"scan_output_axes": [1]},
        {"scan_output_axes": [-1], "scan_output_directions": [1], "scan_input_directions": [0, 1]},
    ],
    ids=str,
)
@pytest.mark.parametrize("symbolic", [False, True])
def test_scan(mnn_runtime: MnnRuntime, attrs: dict[str, Any], symbolic: bool) -> None:
    rng = np.random.default_rng(1)
    turned = attrs.get("scan_input_axes", [0, 0])[1]
    feeds = {
        "s0": rng.standard_normal(3).astype(np.float32),
        "xa": rng.standard_normal((4, 3)).astype(np.float32),
        "xb": rng.standard_normal((2, 4) if turned else (4, 2)).astype(np.float32),
    }
    node = make("Scan", ["s0", "xa", "xb"], ["y", "z"], body=scan_body(), num_scan_inputs=2, **attrs)
    shapes = {"xa": ["t", 3], "xb": [2, "t"] if turned else ["t", 2]} if symbolic else None
    check(model([node], feeds, ["y", "z"], shapes=shapes), feeds, mnn_runtime)


def test_a_loop_in_a_loop(mnn_runtime: MnnRuntime) -> None:
    """The inner body reads a value of the outermost graph."""
    boolean, number = TensorProto.BOOL, TensorProto.INT64
    inner = graph(
        "inner",
        [
            make("Identity", ["ci"], ["ci_out"]),
            make("Concat", ["v", "x"], ["both"], axis=0),
            make("Slice", ["both", "one", "three"], ["v_out"]),
        ],
        [value("ii", kind=number), value("ci", kind=boolean), value("v", 2, 3)],
        [value("ci_out", kind=boolean), value("v_out", 2, 3)],
        one=np.array([1]),
        three=np.array([3]),
    )
    outer = graph(
        "outer",
        [make("Identity", ["co"], ["co_out"]), make("Loop", ["two", "", "u"], ["u_out"], body=inner)],
        [value("io", kind=number), value("co", kind=boolean), value("u", 2, 3)],
        [value("co_out", kind=boolean), value("u_out", 2, 3)],
        two=np.array(2),
    )
    feeds = {"x": X, "start": X * 0}
    node = make("Loop", ["m", "", "start"], ["y"], body=outer)
    check(model([node], feeds, ["y"], {"m": np.array(2)}), feeds, mnn_runtime)


@pytest.mark.parametrize("trips", [0, 1, 3])
def test_a_state_that_grows(mnn_runtime: MnnRuntime, trips: int) -> None:
    nodes = [make("Identity", ["c"], ["c_out"]), make("Concat", ["v", "x"], ["v_out"], axis=0)]
    boolean, number = TensorProto.BOOL, TensorProto.INT64
    body = graph(
        "body",
        nodes,
        [value("i", kind=number), value("c", kind=boolean), value("v", "k", 3)],
        [value("c_out", kind=boolean), value("v_out", "m", 3)],
    )
    feeds = {"x": X, "m": np.array(trips)}
    check(model([make("Loop", ["m", "", "x"], ["y"], body=body)], feeds, ["y"]), feeds, mnn_runtime)


@pytest.mark.parametrize("enter", [True, False])
def test_a_loop_without_a_trip_count(mnn_runtime: MnnRuntime, enter: bool) -> None:
    boolean, number = TensorProto.BOOL, TensorProto.INT64
    body = graph(
        "body",
        [make("Add", ["v", "one"], ["v_out"]), make("Less", ["v_out", "ten"], ["c_out"])],
        [value("i", kind=number), value("c", kind=boolean), value("v")],
        [value("c_out", kind=boolean), value("v_out")],
        one=np.array(1, np.float32),
        ten=np.array(10, np.float32),
    )
    feeds = {"x": np.array(2.5, np.float32), "c0": np.array(enter)}
    check(model([make("Loop", ["", "c0", "x"], ["y"], body=body)], feeds, ["y"]), feeds, mnn_runtime)
