"""``memory="low"``: convolutions on quantized weights in integers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mnnq
from mnnq.convert import convert_onnx
from mnnq.runtime import InferenceSession
from mnnq.writer.to_mnn import to_bytes
from tests.ops.harness import needs_mnn
from tests.peers.mnn_runtime import MnnRuntime
from tests.runtime.test_fixtures import FIXTURES, NAMES

#: Files that the real tools wrote with quantized weights. The real runtime computes native groups wrongly.
QUANTIZED = [name for name in NAMES if "_w" in name and name != "group_w8_asym_native"]

#: Layers that the mode leaves alone.
FLOAT_LAYERS = ("dw3x3", "deconv")

MODES = ("auto", "always", "compat")

RNG = np.random.default_rng(7)

needs_fixtures = pytest.mark.skipif(not QUANTIZED, reason="the fixtures are not there")


def _snr(got: np.ndarray, want: np.ndarray) -> float:
    """Signal-to-noise ratio in dB, at most 200."""
    error = float(np.sum((got.astype(float) - want) ** 2))
    return min(200.0, 10 * np.log10(float(np.sum(want.astype(float) ** 2)) / max(error, 1e-300)))


def _run(source: Any, x: np.ndarray, **options: Any) -> np.ndarray:
    session = InferenceSession(source, {"threads": 1, **options})
    (output,) = session.run(None, {session.get_inputs()[0].name: x})
    return output


def _matmuls(k: int, n: int, outputs: int = 1, rows: int | str = "rows") -> onnx.ModelProto:
    """Several products of one input with constant matrices."""
    nodes, weights = [], []
    for i in range(outputs):
        values = RNG.standard_normal((k, n)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{i}"))
        nodes.append(helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]))
    graph = helper.make_graph(
        nodes,
        "matmuls",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, k])],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [rows, n]) for i in range(outputs)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _conv(cin: int, cout: int, kernel: int, group: int = 1, **attributes: Any) -> onnx.ModelProto:
    shape = (cout, cin // group, kernel, kernel)
    weights = numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), "w")
    bias = numpy_helper.from_array(RNG.standard_normal(cout).astype(np.float32), "b")
    node = helper.make_node("Conv", ["x", "w", "b"], ["c"], group=group, **attributes)
    graph = helper.make_graph(
        [node, helper.make_node("Relu", ["c"], ["y"])],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", cin, 9, 11])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weights, bias],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _quantized(model: onnx.ModelProto, **options: Any) -> bytes:
    return to_bytes(mnnq.quantize_weights(convert_onnx(model), **options))


@needs_fixtures
@needs_mnn
def test_compat_gives_what_the_real_runtime_gives() -> None:
    with MnnRuntime() as runtime:
        for name in QUANTIZED:
            arrays = dict(np.load(FIXTURES / f"{name}.npz"))
            session = InferenceSession(
                FIXTURES / f"{name}.mnn", {"threads": 1, "memory": "low", "dynamic": "compat"}
            )
            feed = {session.get_inputs()[0].name: arrays["x"]}
            (output,) = (port.name for port in session.get_outputs())
            real = runtime.run(FIXTURES / f"{name}.mnn", feed, [output], memory_low=True)[output]
            (got,) = session.run(None, feed)
            assert np.abs(got - real).max() <= 2e-5 * np.abs(real).max(), name


@needs_fixtures
def test_the_default_is_at_least_as_accurate_as_the_rules_of_the_real_runtime() -> None:
    gains = []
    for name in QUANTIZED:
        x = np.load(FIXTURES / f"{name}.npz")["x"]
        want = _run(FIXTURES / f"{name}.mnn", x)
        compat, ours = (
            _snr(_run(FIXTURES / f"{name}.mnn", x, memory="low", dynamic=mode), want)
            for mode in ("compat", "always")
        )
        if name.startswith(FLOAT_LAYERS):
            assert min(compat, ours) > 130, name
            continue
        assert ours > 40, name
        gains.append(ours - compat)
    assert min(gains) > -1.5
    assert np.mean(gains) > 0.3


@needs_fixtures
@pytest.mark.parametrize("name", [name for name in QUANTIZED if "ext" not in name])
def test_threads_and_repetition_change_no_bit(name: str) -> None:
    x = np.load(FIXTURES / f"{name}.npz")["x"]
    for mode in MODES:
        options = {"memory": "low", "dynamic": mode}
        one = _run(FIXTURES / f"{name}.mnn", x, **options)
        for threads in (2, 5):
            assert _run(FIXTURES / f"{name}.mnn", x, threads=threads, **options).tobytes() == one.tobytes()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_bit_width_and_window_is_right(bits: int, symmetric: bool) -> None:
    x = RNG.standard_normal((2, 32, 9, 11)).astype(np.float32)
    cases = [
        (_conv(32, 17, 1), {}),
        (_conv(32, 17, 1, strides=[2, 2]), {}),
        (_conv(32, 17, 3, pads=[1, 1, 1, 1]), {}),
        (_conv(32, 17, 3, pads=[1, 1, 1, 1]), {"block": 16}),
        (_conv(32, 16, 3, group=4, pads=[2, 0, 1, 1], strides=[2, 1]), {}),
        (_conv(32, 17, 3, pads=[2, 2, 2, 2], dilations=[2, 2]), {}),
        (_conv(32, 17, 5), {}),
        (_conv(32, 17, 1, pads=[1, 0, 0, 2]), {}),
    ]
    for model, options in cases:
        source = _quantized(model, bits=bits, symmetric=symmetric, **options)
        want = _run(source, x)
        for mode in ("always", "compat"):
            session = InferenceSession(source, {"threads": 2, "memory": "low", "dynamic": mode})
            (got,) = session.run(None, {"x": x})
            assert _snr(got, want) > 38, (mode, model.graph.node[0])
            kernels = " ".join(step.kernel for step in session.profile())
            assert "int8" in kernels
            assert f"{bits}-bit weights" in kernels


@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("block", [0, 16, 32])
def test_products_of_few_and_many_rows_are_right(rows: int, block: int) -> None:
    source = _quantized(_matmuls(96, 150), bits=4, block=block)
    x = RNG.standard_normal((rows, 96)).astype(np.float32) + 0.5
    want = _run(source, x)
    for mode in MODES:
        assert _snr(_run(source, x, memory="low", dynamic=mode), want) > 38


def test_consumers_of_one_tensor_share_its_codes() -> None:
    source = _quantized(_matmuls(256, 256, outputs=3), bits=8)
    session = InferenceSession(source, {"threads": 1, "memory": "low", "dynamic": "always"})
    session.run(None, {"x": np.ones((8, 256), np.float32)})
    kinds = [step.op_type for step in session.profile()]
    assert kinds.count("quantize") == 1
    assert kinds.count("Convolution") == 3


def test_layers_that_do_not_gain_stay_float_and_say_so() -> None:
    source = _quantized(_matmuls(32, 1), bits=8)
    x = RNG.standard_normal((4, 32)).astype(np.float32)
    auto = InferenceSession(source, {"threads": 1, "memory": "low"})
    auto.run(None, {"x": x})
    (kernel,) = (step.kernel for step in auto.profile() if step.op_type == "Convolution")
    assert " f32 " in kernel
    assert "int8 estimated at" in kernel
    always = InferenceSession(source, {"threads": 1, "memory": "low", "dynamic": "always"})
    always.run(None, {"x": x})
    assert any("gemm_i8" in step.kernel for step in always.profile())


def test_rows_of_zeros_and_of_one_value_are_exact_enough() -> None:
    source = _quantized(_matmuls(64, 48), bits=8)
    x = np.stack([np.zeros(64), np.full(64, 3.25), np.full(64, -1e-9)]).astype(np.float32)
    want = _run(source, x)
    for mode in ("always", "compat"):
        got = _run(source, x, memory="low", dynamic=mode)
        assert np.isfinite(got).all()
        assert np.abs(got - want).max() <= 1e-2 * np.abs(want).max()
        assert np.abs(got[0]).max() == np.abs(want[0]).max()


_MEMORY = """
import json, sys
import numpy as np
import mnnq
def resident():
    fields = open("/proc/self/status").read().split("VmRSS:")[1].split()
    return int(fields[0]) * 1024
small, path, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
session = mnnq.InferenceSession(small, {"threads": 1, **options})
session.run(None, {"x": np.ones((1, 1024), np.float32)})
before = resident()
session = mnnq.InferenceSession(path, {"threads": 1, **options})
session.run(None, {"x": np.ones((1, 1024), np.float32)})
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_model_of_few_bits_takes_little_more_memory_than_its_file(tmp_path: Path) -> None:
    small, path = tmp_path / "small.mnn", tmp_path / "model.mnn"
    small.write_bytes(_quantized(_matmuls(1024, 64), bits=4))
    path.write_bytes(_quantized(_matmuls(1024, 2048, outputs=32), bits=4))
    taken = {}
    for memory in ("low", "normal"):
        options = json.dumps({"memory": memory, "dynamic": "always"})
        command = [sys.executable, "-c", _MEMORY, str(small), str(path), options]
        taken[memory] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    size = path.stat().st_size
    # Besides the packed weights the codes of a layer or two, unpacked while they are loaded.
    assert taken["low"] < 1.4 * size
    assert taken["normal"] > 6 * size


def test_precision_low_multiplies_in_sixteen_bits_where_the_cpu_can() -> None:
    model = to_bytes(convert_onnx(_conv(24, 40, 3, pads=[1, 1, 1, 1], strides=[2, 2])))
    x = RNG.standard_normal((2, 24, 9, 11)).astype(np.float32)
    session = InferenceSession(model, {"threads": 1, "precision": "low"})
    (got,) = session.run(None, {"x": x})
    want = _run(model, x)
    (kernel,) = (step.kernel for step in session.profile() if step.op_type == "Convolution")
    if "no 16-bit float products" in kernel:
        assert got.tobytes() == want.tobytes()
        return
    assert "float16 gemm_half" in kernel
    cosine = np.vdot(got, want) / (np.linalg.norm(got) * np.linalg.norm(want))
    assert 0.9999 < cosine < 1
    assert _run(model, x, precision="low", threads=3).tobytes() == got.tobytes()


def test_precision_low_keeps_the_algorithm_with_a_quarter_of_the_products() -> None:
    model = to_bytes(convert_onnx(_conv(24, 40, 3, pads=[1, 1, 1, 1])))
    x = RNG.standard_normal((2, 24, 9, 11)).astype(np.float32)
    session = InferenceSession(model, {"threads": 1, "precision": "low"})
    (got,) = session.run(None, {"x": x})
    assert got.tobytes() == _run(model, x).tobytes()
    (kernel,) = (step.kernel for step in session.profile() if step.op_type == "Convolution")
    assert "winograd" in kernel
