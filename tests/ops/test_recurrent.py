"""LSTM, GRU and RNN in the real runtime, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from mnnq.convert import convert_onnx
from mnnq.errors import UnsupportedError
from mnnq.frontends.onnx.ops import recurrent
from mnnq.ir import Model
from tests.builders import model, single
from tests.ops.harness import check, needs_mnn
from tests.peers.mnn_runtime import MnnRuntime

ort = pytest.importorskip("onnxruntime")
pytestmark = [pytest.mark.peer, needs_mnn]

STEPS, BATCH, INPUTS, HIDDEN = 5, 2, 3, 4
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STATES = ("h0", "c0")

CASES: list[dict[str, Any]] = [
    {},
    {"direction": "reverse"},
    {"direction": "bidirectional"},
    {"wanted": ["y"]},
    {"wanted": ["y1"]},
    {"bias": False},
    {"initial": "constant"},
    {"initial": "computed", "direction": "bidirectional"},
    {"lengths": [3, 5]},
    {"lengths": [5, 5]},
    {"lengths": [3, 5], "computed_lengths": True, "direction": "bidirectional"},
    {"lengths": [0, 5], "direction": "reverse"},
    {"layout": 1},
    {"layout": 1, "direction": "bidirectional", "initial": "constant"},
    {"layout": 1, "initial": "computed", "wanted": ["y1"]},
    {"clip": 0.3},
    {"steps": 1},
    {"shape": ["t", BATCH, INPUTS]},
    {"shape": ["t", "b", INPUTS], "direction": "bidirectional"},
    {"shape": ["t", "b", INPUTS], "direction": "reverse", "lengths": [2, 4], "computed_lengths": True},
    {"shape": [STEPS, "b", INPUTS]},
    {
        "shape": [STEPS, "b", INPUTS],
        "lengths": [0, 3],
        "computed_lengths": True,
        "direction": "bidirectional",
    },
]
LSTM_CASES: list[dict[str, Any]] = [
    {"wanted": ["y2"]},
    {"peepholes": True},
    {"peepholes": True, "direction": "bidirectional", "clip": 0.5},
    {"input_forget": 1},
    {"activations": ["HardSigmoid", "ScaledTanh", "LeakyRelu"], "activation_alpha": [0.3, 1.5, 0.2],
     "activation_beta": [0.4, 0.8]},
    {"activations": ["Softsign", "Softplus", "ThresholdedRelu"], "activation_alpha": [0.4]},
]  # fmt: skip
GRU_CASES: list[dict[str, Any]] = [
    {"linear_before_reset": 1},
    {"linear_before_reset": 1, "direction": "bidirectional"},
    {"linear_before_reset": 1, "bias": False, "direction": "reverse"},
    {"linear_before_reset": 1, "clip": 0.4},
    {"activations": ["HardSigmoid", "Elu"], "activation_alpha": [0.3, 0.7], "activation_beta": [0.4]},
]
RNN_CASES: list[dict[str, Any]] = [
    {"activations": ["Relu"]},
    {
        "activations": ["Affine", "Tanh"],
        "activation_alpha": [0.5],
        "activation_beta": [0.1],
        "direction": "bidirectional",
    },
]
ALL = [
    *(("LSTM", case) for case in CASES + LSTM_CASES),
    *(("GRU", case) for case in CASES + GRU_CASES),
    *(("RNN", case) for case in CASES + RNN_CASES),
]


def build(
    op: str, case: Mapping[str, Any]
) -> tuple[onnx.ModelProto, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A model, its inputs and what ONNX Runtime computes (which lacks layout 1: transposed by hand)."""
    attrs = dict(case)
    layout = attrs.pop("layout", 0)
    steps, bias, peepholes = attrs.pop("steps", STEPS), attrs.pop("bias", True), attrs.pop("peepholes", False)
    initial, lengths = attrs.pop("initial", ""), attrs.pop("lengths", None)
    computed_lengths, shape = attrs.pop("computed_lengths", False), attrs.pop("shape", None)
    names = ["y", "y1", "y2"][: 3 if op == "LSTM" else 2]
    wanted = attrs.pop("wanted", names)
    names = [name if name in wanted else "" for name in names]
    directions, gates = (2 if attrs.get("direction") == "bidirectional" else 1), GATES[op]
    rng = np.random.default_rng(7)

    def random(*size: int) -> np.ndarray:
        return rng.standard_normal(size).astype(np.float32)

    inputs = {"x": random(BATCH, steps, INPUTS) if layout else random(steps, BATCH, INPUTS)}
    constants = {
        "w": random(directions, gates * HIDDEN, INPUTS),
        "r": random(directions, gates * HIDDEN, HIDDEN),
    }
    order = ["x", "w", "r", "", "", "", "", ""]
    if bias:
        constants["b"], order[3] = random(directions, 2 * gates * HIDDEN), "b"
    if lengths is not None:
        (inputs if computed_lengths else constants)["l"] = np.array(lengths, np.int32)
        order[4] = "l"
    if initial:
        for i, name in enumerate(STATES[: 2 if op == "LSTM" else 1]):
            size = (BATCH, directions, HIDDEN) if layout else (directions, BATCH, HIDDEN)
            (inputs if initial == "computed" else constants)[name] = random(*size)
            order[5 + i] = name
    if peepholes:
        constants["p"], order[7] = random(directions, 3 * HIDDEN), "p"
    while not order[-1]:
        order.pop()
    shapes = {"x": shape} if shape else None
    outputs = [name for name in names if name]
    make = onnx.helper.make_node
    node = make(op, order, names, hidden_size=HIDDEN, **attrs, **({"layout": 1} if layout else {}))
    proto = model([node], inputs, outputs, constants, opset=22, shapes=shapes)
    twin = proto
    if layout:
        turned = [name for name in ("x", *STATES) if name in order]
        nodes = [make("Transpose", [name], [f"{name}_t"], perm=[1, 0, 2]) for name in turned]
        inner = [f"{name}_t" if name in turned else name for name in order]
        nodes.append(make(op, inner, [name and f"{name}_t" for name in names], hidden_size=HIDDEN, **attrs))
        nodes += [
            make("Transpose", [f"{name}_t"], [name], perm=[2, 0, 1, 3] if name == "y" else [1, 0, 2])
            for name in outputs
        ]
        twin = model(nodes, inputs, outputs, constants, opset=22)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(twin.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return proto, inputs, dict(zip(outputs, session.run(outputs, inputs), strict=True))


@pytest.mark.parametrize(("op", "case"), ALL, ids=str)
@pytest.mark.parametrize("unrolled", [True, False], ids=["unrolled", "loop"])
def test_recurrent(
    mnn_runtime: MnnRuntime, monkeypatch: pytest.MonkeyPatch, op: str, case: dict[str, Any], unrolled: bool
) -> None:
    if not unrolled:
        monkeypatch.setattr(recurrent, "MAX_UNROLLED_STEPS", 1)
    proto, inputs, want = build(op, case)
    made = check(proto, inputs, mnn_runtime, expected=want)
    known = not isinstance(case.get("shape", [0])[0], str)
    loops = sum(one.type == "While" for one in made.ops)
    single_step = case.get("steps") == 1
    assert (loops == 0) == ((known and unrolled) or single_step)


def weights(made: Model) -> Sequence[str]:
    return [op.name for _, op in made.weight_ops()]


def test_a_long_sequence_keeps_one_copy_of_the_weights() -> None:
    x = np.zeros((100, 1, 8), np.float32)
    rng = np.random.default_rng(0)
    w, r = rng.standard_normal((1, 64, 8)), rng.standard_normal((1, 64, 16))
    constants = {"w": w.astype(np.float32), "r": r.astype(np.float32)}
    made = convert_onnx(single("LSTM", {"x": x}, constants, n_outputs=3, hidden_size=16))
    assert weights(made) == ["y__input_projection", "y__recurrent"]
    assert len(made.subgraphs) == 1


def test_an_unknown_activation_is_named() -> None:
    x, w, r = (np.zeros(s, np.float32) for s in ((2, 1, 3), (1, 4, 3), (1, 4, 4)))
    proto = single("RNN", {"x": x}, {"w": w, "r": r}, hidden_size=4, activations=["Cube"])
    with pytest.raises(UnsupportedError, match="Cube"):
        convert_onnx(proto)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_weights_computed_at_run_time(mnn_runtime: MnnRuntime, op: str) -> None:
    rng = np.random.default_rng(3)
    rows = GATES[op] * HIDDEN
    sizes = {"x": (3, 2, 5), "w": (2, rows, 5), "r": (2, rows, HIDDEN), "b": (2, 2 * rows)}
    feeds = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    proto = single(op, feeds, hidden_size=HIDDEN, direction="bidirectional", n_outputs=2, opset=22)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    want = dict(zip(["y", "y1"], session.run(["y", "y1"], feeds), strict=True))
    check(proto, feeds, mnn_runtime, expected=want)
