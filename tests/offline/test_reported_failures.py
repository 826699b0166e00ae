"""What users of MNN's quantization tool run into, and the test that keeps it away.

Each entry of `COVERED` is a failure that was reported publicly or reproduced with MNN 3.6.1, with the tests against it; those without
a home elsewhere are in this file. Defects of conversion and of weight-only quantization are in `tests/cli/test_mnn_flags.py`.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

import mnnq
from mnnq import _native
from mnnq.ir.model import Model
from mnnq.quantization.offline import calibrate
from mnnq.quantization.stored import float_weights
from mnnq.writer.to_mnn import to_bytes
from tests import builders
from tests.offline.test_offline import MIDDLES, load, network, run, samples, sqnr
from tests.ops.harness import needs_mnn
from tests.peers.mnn_runtime import MnnRuntime

_OFFLINE, _JSON = "offline/test_offline.py", "quant/test_quant_json.py"
_HERE = "offline/test_reported_failures.py"

#: A failure, and the tests against it.
COVERED: dict[str, tuple[str, ...]] = {
    # -- reproduced with the tool
    "mnnquant aborts on every valid call": ("e2e/test_offline_job.py::test_mnnquant_works",),
    "quant_bits below 8 without a clamp value destroys the weights": (
        "e2e/test_offline_job.py::test_few_bits_need_no_clamp_value",
        f"{_OFFLINE}::test_fewer_bits_and_clamps_are_honoured",
    ),
    "a 4-bit static model runs to garbage": (f"{_HERE}::test_four_bits_run_as_written",),
    "ADMM corrupts the heap on planar inputs": (f"{_HERE}::test_every_method_describes_every_layer",),
    "ADMM writes no scales": (f"{_HERE}::test_every_method_describes_every_layer",),
    "ADMM leaves the first layer rounded but float": (f"{_HERE}::test_layers_left_float_keep_their_weights",),
    "ADMM of weights is worse than MAX_ABS at few bits": (
        f"{_HERE}::test_alternating_weights_pay_at_few_bits",
    ),
    "EMA ignores the skip list": (f"{_HERE}::test_skips_hold_for_every_method",),
    "EMA collapses": (f"{_HERE}::test_every_method_describes_every_layer",),
    "missing width or height crashes": (f"{_JSON}::test_wrong_values_name_key_value_and_what_is_allowed",),
    "missing, empty or wrong path crashes": (f"{_JSON}::test_missing_empty_and_wrong_paths_are_errors",),
    "unknown formats, options and names are ignored": (
        f"{_JSON}::test_unknown_keys_are_errors",
        f"{_JSON}::test_wrong_values_name_key_value_and_what_is_allowed",
        "e2e/test_offline_job.py::test_names_that_match_nothing_are_an_error",
    ),
    "unreadable images count as used": (
        f"{_JSON}::test_unreadable_images_are_named_and_not_counted",
        "data/test_images.py::test_unreadable_files_are_named_counted_and_not_used",
    ),
    "KL with channel-packed input gives an infinite output": (
        f"{_HERE}::test_exponential_heads_stay_finite",
    ),
    "KL clips the image input": (f"{_HERE}::test_no_method_clips_the_input",),
    # -- reported by users
    "a file of parameters changes nothing": (
        "quant/test_params_file.py::test_a_file_that_matches_nothing_is_an_error",
        "cli/test_mnn_flags.py::test_an_entry_that_matches_nothing_is_an_error",
    ),
    "scales move at every later run, or never": (f"{_HERE}::test_scales_are_final",),
    "bits asked for have no effect": (
        f"{_OFFLINE}::test_fewer_bits_and_clamps_are_honoured",
        "cli/test_mnn_flags.py::test_bits_are_honoured",
    ),
    "layers stay float without a word": (
        f"{_OFFLINE}::test_report",
        f"{_HERE}::test_every_float_layer_has_a_reason",
    ),
    "models of several inputs crash, give NaN or nonsense": (
        "e2e/test_offline_job.py::test_models_of_several_inputs",
        f"{_OFFLINE}::test_several_inputs_and_integer_inputs",
        f"{_JSON}::test_sequences",
        "data/test_arrays.py::test_samples_that_do_not_fit_name_sample_and_input",
    ),
    "many images crash the tool": (f"{_OFFLINE}::test_memory_does_not_grow_with_the_samples",),
    "a detector is wrong after quantization and nothing says where": (
        f"{_OFFLINE}::test_a_bad_model_is_refused_with_advice_and_repaired",
        f"{_OFFLINE}::test_layers_that_cause_most_of_the_noise_stay_float",
    ),
    "a collapsed model is written": (f"{_OFFLINE}::test_a_bad_model_is_refused_with_advice_and_repaired",),
    "scales before and behind an operator do not fit": (f"{_HERE}::test_copies_share_their_codes",),
    "accuracy falls although preprocessing is right": (f"{_OFFLINE}::test_networks_stay_close_to_float",),
    "nobody knows what the network saw": (
        "data/test_preview.py::test_the_sheet_shows_the_pictures_again",
        "data/test_preview.py::test_raw_pixels_for_a_network_of_scaled_ones",
        "data/test_resample.py::test_equals_what_the_quantization_tool_feeds",
    ),
    "inputs that are no images cannot be given": ("data/test_arrays.py::test_a_list_of_mappings",),
    "sums are slow between int8 convolutions": (f"{_HERE}::test_residual_sums_compute_on_codes",),
    "only convolutions shrink": (
        "quant/test_layer_kinds.py::test_quantized_layers_compute_what_the_float_ones_do",
        f"{_HERE}::test_linear_layers_compute_on_codes",
    ),
    "models of quantization-aware training lose their scales": (
        "e2e/test_pytorch_qat.py::test_scales_are_kept",
        "passes/test_import_quantized.py::test_onnxruntime_static",
    ),
    "half-float models cannot be quantized": (f"{_HERE}::test_half_float_models_can_be_quantized",),
    "layers are missed because names do not match": (
        f"{_HERE}::test_names_of_the_source_reach_converted_layers",
    ),
    "no tool compares float and int8": ("quant/test_compare.py::test_numbers_are_those_of_the_formulas",),
    "results differ between processors": (
        "runtime/test_int8.py::test_every_instruction_set_gives_the_same_bits",
    ),
}


def test_the_list_names_tests_that_exist() -> None:
    root = Path(__file__).parents[1]
    known: dict[str, set[str]] = {}
    for name in {name for names in COVERED.values() for name in names}:
        file, function = name.split("::")
        if file not in known:
            tree = ast.parse((root / file).read_text(encoding="utf-8"))
            known[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert function in known[file], name


METHODS = ("mse", "minmax", "percentile", "kl", "admm", "ema")


def quantized(model: Model, **options: Any) -> mnnq.quantization.offline.OfflineResult:
    return mnnq.quantize(model, samples(30), force=True, **options)


@needs_mnn
@pytest.mark.peer
def test_four_bits_run_as_written(mnn_runtime: MnnRuntime) -> None:
    model = load(network(*MIDDLES["sum and relu"]))
    result = quantized(model, bits=4, float_share=0.0)
    feeds = samples(1, seed=9)[0]
    ours = run(result.model, feeds)
    theirs = mnn_runtime.run(to_bytes(result.model), feeds, ["result"])["result"].reshape(ours.shape)
    assert sqnr(run(model, feeds), ours) > 8
    assert sqnr(ours, theirs) > 25
    for op in result.model.ops:
        if op.type == "Convolution":
            assert np.abs(_native.decode_weights(op.params)["codes"]).max() == 7


@pytest.mark.parametrize(
    ("method", "compat"),
    [*((method, False) for method in METHODS), ("kl", True), ("admm", True), ("ema", True)],
)
def test_every_method_describes_every_layer(method: str, compat: bool) -> None:
    model = load(network(*MIDDLES["maximum pooling"]))
    result = quantized(model, feature_method=method, compat=compat)
    convolutions = [layer for layer in result.report.layers if layer.op_type == "Convolution"]
    assert all(layer.integer for layer in convolutions)
    for op in result.model.ops:
        if op.type == "Convolution":
            for name in (op.inputs[0], op.outputs[0]):
                assert result.model.tensor_quant[name]["type"] == "DT_INT8"
    feeds = samples(1, seed=9)[0]
    assert sqnr(run(model, feeds), run(result.model, feeds)) > 18


@pytest.mark.parametrize("method", METHODS)
def test_layers_left_float_keep_their_weights(method: str) -> None:
    model = load(network(*MIDDLES["sum"]))
    first = next(op.name for op in model.ops if op.outputs[0] == "p")
    result = quantized(model, feature_method=method, skip=(first,), equalization=False)
    before, after = ({op.name: op for op in m.ops} for m in (model, result.model))
    np.testing.assert_array_equal(float_weights(before[first]), float_weights(after[first]))
    assert after[first].params.get("quanParameter") is None


@pytest.mark.parametrize("method", METHODS)
def test_skips_hold_for_every_method(method: str) -> None:
    model = load(network(*MIDDLES["sum"]))
    names = [op.name for op in model.ops if op.type == "Convolution"]
    result = quantized(model, feature_method=method, skip=(names[0][:-1] + "?",))
    assert not result.report.layer(names[0]).integer


def test_alternating_weights_pay_at_few_bits() -> None:
    weights = np.random.default_rng(0).standard_normal((16, 1024)).astype(np.float32)
    for limit in (7, 3):
        error = {
            method: _native.quantize_rows(weights, method=method, limit=limit)["error"]
            for method in ("max_abs", "admm", "search")
        }
        assert error["admm"] < 0.75 * error["max_abs"]
    # With 8 bits it ends in a local optimum that clips; the search is never worse than either.
    plain, found = (
        _native.quantize_rows(weights, method=method, limit=127)["error"] for method in ("max_abs", "search")
    )
    assert found <= plain


@pytest.mark.parametrize("compat", [False, True])
def test_exponential_heads_stay_finite(compat: bool) -> None:
    proto = network(*MIDDLES["sum"])
    for node in proto.graph.node:
        if node.op_type == "Sin":
            node.op_type = "Exp"
    model = load(proto)
    data = [{"x": 4 * sample["x"]} for sample in samples(30)]
    result = mnnq.quantize(model, data, feature_method="kl", compat=compat, force=True)
    for feeds in data[:4]:
        got, want = run(result.model, feeds), run(model, feeds)
        assert np.isfinite(got).all()
        assert sqnr(np.log(want), np.log(got)) > 15


@pytest.mark.parametrize("method", METHODS)
def test_no_method_clips_the_input(method: str) -> None:
    """Pictures are combs of whole numbers; divergences reward cutting them."""
    rng = np.random.default_rng(1)
    data = [{"x": rng.integers(0, 128, (1, 8, 16, 16)).astype(np.float32) / 127} for _ in range(8)]
    result = mnnq.quantize(load(network(*MIDDLES["sum"])), data, feature_method=method, force=True)
    codes = next(tensor for tensor in result.report.tensors if tensor.name == "x")
    assert (codes.max - codes.zero) * codes.scale >= 1.0 - codes.scale / 2


def test_scales_are_final() -> None:
    result = quantized(load(network(*MIDDLES["sum"])))
    before = to_bytes(result.model)
    session = mnnq.InferenceSession(before)
    first = session.run(None, samples(1, seed=9)[0])[0]
    session.run(None, {"x": 100 * samples(1)[0]["x"]})
    np.testing.assert_array_equal(session.run(None, samples(1, seed=9)[0])[0], first)
    assert to_bytes(result.model) == before


def test_every_float_layer_has_a_reason() -> None:
    for name in MIDDLES:
        report = quantized(load(network(*MIDDLES[name]))).report
        assert all(layer.reason for layer in report.left_float), name
        assert all(layer.reason is None for layer in report.integer), name


def test_copies_share_their_codes() -> None:
    result = quantized(load(network(*MIDDLES["shuffle"])))
    quant = result.model.tensor_quant
    for op in result.model.ops:
        if op.type in ("Concat", "Permute", "Reshape", "ConvertTensor"):
            codes = [quant[name] for name in (*op.inputs[:1], *op.outputs) if name in quant]
            codes = [info for info in codes if info["type"] == "DT_INT8"]
            assert all(
                (info["scale"], info["zero"]) == (codes[0]["scale"], codes[0]["zero"]) for info in codes
            )


def test_residual_sums_compute_on_codes() -> None:
    result = quantized(load(network(*MIDDLES["sum and relu"])))
    assert [layer.integer for layer in result.report.layers if layer.op_type == "BinaryOp"] == [True]
    session = mnnq.InferenceSession(to_bytes(result.model))
    session.run(None, samples(1)[0])
    steps = [step.op_type for step in session.profile()]
    # The sum is part of a convolution, and values are converted once at each end.
    assert steps.count("BinaryOp") == 0
    assert (steps.count("quantize"), steps.count("dequantize")) == (1, 1)


def test_linear_layers_compute_on_codes() -> None:
    rng = np.random.default_rng(3)
    weights = {
        "w1": rng.normal(size=(24, 32)).astype(np.float32),
        "w2": rng.normal(size=(32, 6)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h0"]),
        helper.make_node("Relu", ["h0"], ["h"]),
        helper.make_node("Gemm", ["h", "w2"], ["y0"]),
        helper.make_node("Sin", ["y0"], ["y"]),
    ]
    proto = builders.model(nodes, {"x": np.zeros((5, 24), np.float32)}, ["y"], weights)
    data = [{"x": rng.normal(size=(5, 24)).astype(np.float32)} for _ in range(12)]
    result = mnnq.quantize(load(proto), data, force=True)
    layers = [layer for layer in result.report.layers if layer.op_type == "Convolution"]
    assert len(layers) == 2
    assert layers[0].integer
    assert result.report.bytes_after < 0.4 * result.report.bytes_before


def test_half_float_models_can_be_quantized(tmp_path: Path) -> None:
    model = load(network(*MIDDLES["sum"]))
    mnnq.quantize_weights(model, bits=16).save(tmp_path / "half.mnn")
    result = quantized(mnnq.load(tmp_path / "half.mnn"))
    feeds = samples(1, seed=9)[0]
    assert sqnr(run(model, feeds), run(result.model, feeds)) > 25
    assert all(layer.integer for layer in result.report.layers if layer.op_type == "Convolution")


def test_names_of_the_source_reach_converted_layers() -> None:
    """MatMul becomes a convolution of another name; that of the source still names it."""
    weights = {"w": np.random.default_rng(3).normal(size=(24, 6)).astype(np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y0"], name="head"),
        helper.make_node("Sin", ["y0"], ["y"]),
    ]
    model = load(builders.model(nodes, {"x": np.zeros((5, 24), np.float32)}, ["y"], weights))
    converted = [op.name for op in model.ops if op.type == "Convolution"]
    assert converted == ["y0__matmul_converted"]
    data = [{"x": np.ones((5, 24), np.float32)}]
    result = mnnq.quantize(model, data, skip=("y0",), force=True)
    assert result.report.layer(converted[0]).reason == "skipped as asked"


def test_statistics_say_which_tensors_saw_data() -> None:
    found = calibrate(load(network(*MIDDLES["sum"])), samples())
    assert {"x", "p", "r", "y"} <= set(found.tensors)
    assert all(found.statistics.summary(name)["count"] for name in found.tensors)
