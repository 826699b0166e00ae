"""Weight quantization of models: what is stored, what the real runtime computes, what is reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mnnq
from mnnq.errors import ConfigError, QuantizationError
from mnnq.ir.model import Model, Op, SubGraph
from mnnq.quantization.choices import choose_block
from mnnq.quantization.config import BITS, LayerConfig, Override, WeightConfig
from mnnq.quantization.embedding import pack_rows, per_byte
from mnnq.quantization.stored import Storage, describe, float_weights
from tests import mnn_models
from tests.ops.harness import needs_mnn
from tests.peers.mnn_runtime import MnnRuntime

FIXTURES = Path(__file__).parents[2].parent / "shared" / "fixtures" / "mnn"

#: Relative RMS error of normal weights, per output channel, round to nearest: generous bounds by bits.
BUDGET = {2: 0.7, 3: 0.3, 4: 0.14, 5: 0.07, 6: 0.035, 7: 0.018, 8: 0.009}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.1).astype(np.float32)


def conv(model: Model, name: str = "conv") -> Op:
    return next(op for _, op in model.weight_ops() if op.name == name)


def with_weights_of(model: Model, quantized: Model) -> Model:
    """The float model, its weights replaced by the decoded ones."""
    result = model.copy()
    for (_, op), (_, other) in zip(result.weight_ops(), quantized.weight_ops(), strict=True):
        op.params["weight"] = float_weights(other).reshape(-1).copy()
        op.params.pop("quanParameter", None)
    return result


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [False, True], ids=["asym", "sym"])
@pytest.mark.parametrize("block", [None, 32], ids=["channel", "block32"])
def test_stores_what_is_asked_and_reports_the_error(bits: int, symmetric: bool, block: int | None) -> None:
    weight = normal(8, 64, 3, 3)
    model = mnn_models.single_conv(weight)
    result = mnnq.quantize_weights(model, bits=bits, symmetric=symmetric, block=block)
    stored = describe(conv(result))
    assert (stored.bits, stored.symmetric, stored.block) == (bits, symmetric, block)
    report = result.report.layer("conv")
    assert (report.bits, report.block_used, report.quantized) == (bits, block, True)
    error = float_weights(conv(result)) - weight.reshape(8, -1)
    relative = np.linalg.norm(error) / np.linalg.norm(weight)
    assert report.relative_rms == pytest.approx(relative, rel=1e-4)
    assert report.sqnr_db == pytest.approx(-20 * np.log10(relative), abs=1e-3)
    assert relative < BUDGET[bits] * (2 if symmetric and bits == 2 else 1.3)
    assert report.bytes_before == 4 * weight.size
    assert report.bytes_after == stored.size


def test_the_model_given_is_not_changed() -> None:
    model = mnn_models.chain()
    before = {op.name: op.params["weight"].copy() for _, op in model.weight_ops()}
    mnnq.quantize_weights(model, bits=4, fp16_constants=True)
    for _, op in model.weight_ops():
        assert "quanParameter" not in op.params
        np.testing.assert_array_equal(op.params["weight"], before[op.name])


@pytest.mark.parametrize(
    ("asked", "channels", "used"),
    [
        (None, 64, None), (64, 64, None), (128, 64, None), (64, 128, 64), (64, 96, 48), (48, 64, 32),
        (64, 100, None), (32, 1, None), (32, 80, 16), (256, 320, 160),
    ],
)  # fmt: skip
def test_a_block_that_does_not_divide_takes_the_largest_valid_divisor(
    asked: int | None, channels: int, used: int | None
) -> None:
    assert choose_block(asked, channels) == used


def test_a_smaller_block_is_reported() -> None:
    result = mnnq.quantize_weights(mnn_models.chain(96, hidden=100), bits=4, block=64)
    assert result.report.layer("stem").block_used == 48
    assert "does not divide its 96 input channels: blocks of 48" in (result.report.layer("stem").reason or "")
    head = result.report.layer("head__matmul_converted")
    assert head.block_used is None
    assert "one block per output channel" in (head.reason or "")
    assert result.report.layer("mid").reason is None


@needs_mnn
@pytest.mark.peer
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("block", [None, 16, 48], ids=str)
def test_the_real_runtime_computes_with_the_decoded_weights(
    bits: int, block: int | None, mnn_runtime: MnnRuntime
) -> None:
    model = mnn_models.chain()
    feeds = {"x": normal(1, 96, 8, 8, seed=3)}
    result = mnnq.quantize_weights(model, bits=bits, block=block)
    want = mnn_models.run(with_weights_of(model, result), mnn_runtime, feeds)
    got = mnn_models.run(result, mnn_runtime, feeds)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    low = mnn_models.run(result, mnn_runtime, feeds, memory_low=True)
    assert np.abs(low - want).max() < 0.05 * np.abs(want).max()


@needs_mnn
@pytest.mark.peer
@pytest.mark.parametrize(("oc", "ic"), [(6, 4), (4, 6), (16, 64)])
@pytest.mark.parametrize("block", [None, 16], ids=str)
def test_deconvolutions_are_computed_as_decoded(
    oc: int, ic: int, block: int | None, mnn_runtime: MnnRuntime
) -> None:
    model = mnn_models.single_conv(normal(ic, oc, 3, 3), op_type="Deconvolution", size=4)
    result = mnnq.quantize_weights(model, bits=4, block=block)
    assert result.report.layer("conv").quantized
    feeds = {"x": normal(1, ic, 4, 4, seed=5)}
    want = mnn_models.run(with_weights_of(model, result), mnn_runtime, feeds)
    for low in (False, True):
        got = mnn_models.run(result, mnn_runtime, feeds, memory_low=low)
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_layers_in_subgraphs_are_quantized() -> None:
    model = mnn_models.single_conv(normal(8, 16, 1, 1))
    inner = Op(
        "Convolution", "gates", ["a"], ["b"], "Convolution2D", mnn_models.conv_params(normal(8, 16, 1, 1))
    )
    model.subgraphs["body"] = SubGraph("body", [inner], ["a"], ["b"])
    result = mnnq.quantize_weights(model, bits=4, overrides={"gates": {"bits": 8}})
    assert result.report.layer("body/gates").bits == 8
    assert result.report.layer("conv").bits == 4
    assert describe(result.subgraphs["body"].ops[0]).storage is Storage.CODES
    assert describe(inner).storage is Storage.FLOAT


def test_overrides_by_pattern_the_last_one_wins() -> None:
    overrides = {"*": {"bits": 8}, "m?d": 0, "head": {"bits": 4, "symmetric": True}}
    report = mnnq.quantize_weights(mnn_models.chain(), bits=2, overrides=overrides).report
    assert [layer.bits for layer in report.layers] == [8, 32, 4]
    assert report.layer("head__matmul_converted").scheme == "symmetric"


def test_an_override_that_matches_nothing_is_an_error_unless_allowed() -> None:
    model = mnn_models.chain()
    with pytest.raises(ConfigError, match=r"no layer matches 'nope'.*stem"):
        mnnq.quantize_weights(model, overrides={"nope": 4})
    result = mnnq.quantize_weights(model, overrides={"nope": 4}, allow_unmatched=True)
    assert any("nope" in note for note in result.report.notes)


def test_sixteen_bits_are_half_floats() -> None:
    model = mnn_models.chain()
    result = mnnq.quantize_weights(model, bits=8, overrides={"stem": 16})
    stored = describe(conv(result, "stem"))
    assert (stored.storage, stored.size) == (Storage.HALF, 2 * 40 * 96 * 9)
    half = conv(model, "stem").params["weight"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(float_weights(conv(result, "stem")).reshape(-1), half)
    assert result.report.layer("stem").bits == 16


def test_quantized_models_can_be_quantized_again() -> None:
    model = mnn_models.chain()
    first = mnnq.quantize_weights(model, bits=8)
    same = mnnq.quantize_weights(first, bits=8)
    for (_, a), (_, b) in zip(first.weight_ops(), same.weight_ops(), strict=True):
        np.testing.assert_array_equal(
            a.params["quanParameter"]["buffer"], b.params["quanParameter"]["buffer"]
        )
    assert {layer.method for layer in same.report.layers} == {"kept"}
    assert not same.report.notes
    lower = mnnq.quantize_weights(first, bits=4)
    assert [layer.bits for layer in lower.report.layers] == [4, 4, 4]
    assert "rounded a second time" in lower.report.notes[0]
    half = mnnq.quantize_weights(model, bits=16)
    from_half = mnnq.quantize_weights(half, bits=4)
    assert [layer.bits for layer in from_half.report.layers] == [4, 4, 4]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_name_the_layer(value: float) -> None:
    weight = normal(4, 16, 1, 1)
    weight[1, 2] = value
    with pytest.raises(QuantizationError, match=r"conv.*finite"):
        mnnq.quantize_weights(mnn_models.single_conv(weight), bits=4)


def test_weights_that_are_inputs_are_left_and_said_so() -> None:
    model = mnn_models.single_conv(normal(4, 16, 1, 1))
    del conv(model).params["weight"]
    report = mnnq.quantize_weights(model, bits=4).report
    assert "computed at run time" in report.warnings()[0]


def test_grouped_convolutions_get_no_blocks() -> None:
    result = mnnq.quantize_weights(mnn_models.single_conv(normal(8, 64, 1, 1), group=2), bits=4, block=32)
    layer = result.report.layer("conv")
    assert layer.block_used is None
    assert "2 groups" in (layer.reason or "")


# -- embeddings


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("width", [5, 6, 8])
def test_packed_rows_hold_every_code(bits: int, width: int) -> None:
    index = np.random.default_rng(bits).integers(0, 1 << bits, (7, width)).astype(np.uint8)
    packed, n = pack_rows(index, bits), per_byte(bits, width)
    assert packed.shape == (7, width // n)
    digits = [packed >> (8 // n * (n - 1 - part)) & ((1 << 8 // n) - 1) for part in range(n)]
    np.testing.assert_array_equal(np.concatenate(digits, axis=1), index)


@needs_mnn
@pytest.mark.peer
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("symmetric", [False, True], ids=["asym", "sym"])
@pytest.mark.parametrize(
    ("width", "block"), [(64, None), (64, 32), (45, None)], ids=["rows", "blocks", "odd"]
)
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_embeddings_are_gathered_codes_that_the_real_runtime_computes(
    bits: int, symmetric: bool, width: int, block: int | None, half: bool, mnn_runtime: MnnRuntime
) -> None:
    table = normal(100, width)
    model = mnn_models.embedding(table)
    result = mnnq.quantize_weights(model, bits=bits, symmetric=symmetric, block=block, fp16_scales=half)
    layer = result.report.layer("table")
    assert (layer.op_type, layer.bits, layer.block_used) == ("Embedding", bits, block)
    matrix = mnn_models.single_conv(table.reshape(100, width, 1, 1))
    decoded = float_weights(
        conv(mnnq.quantize_weights(matrix, bits=bits, symmetric=symmetric, block=block, fp16_scales=half))
    )
    ids = np.random.default_rng(1).integers(0, 100, (2, 7)).astype(np.int32)
    for options in ({}, {"memory_low": True}, {"precision": "high"}, {"precision": "low"}):
        got = mnn_models.run(result, mnn_runtime, {"ids": ids}, **options)
        assert got.shape == (2, 7, width)
        np.testing.assert_allclose(got, decoded[ids], atol=1e-6 * np.abs(table).max())
    per_code = 8 // per_byte(bits, width) / 8
    blocks = width // block if block else 1
    scales = 100 * blocks * (1 if symmetric else 2) * (2 if half else 4)
    assert layer.bytes_after == 100 * width * per_code + scales


def test_a_table_that_is_read_otherwise_too_stays_float() -> None:
    model = mnn_models.embedding(normal(100, 64), extra_reader=True)
    layer = mnnq.quantize_weights(model, bits=8).report.layer("table")
    assert layer.bits == 32
    assert "also used by 'z'" in (layer.reason or "")


def test_small_tables_stay_as_they_are() -> None:
    result = mnnq.quantize_weights(mnn_models.embedding(normal(10, 8)), bits=8)
    assert not result.report.layers
    assert [op.type for op in result.ops] == ["Input", "Const", "Const", "GatherV2"]


def test_embeddings_can_be_left_float_or_made_half() -> None:
    model = mnn_models.embedding(normal(100, 64))
    assert mnnq.quantize_weights(model, bits=8, embeddings=False).report.layer("table").bits == 32
    half = mnnq.quantize_weights(model, bits=16)
    assert half.report.layer("table").bits == 16
    assert half.ops[1].params["dataType"] == "DT_HALF"
    again = mnnq.quantize_weights(half, bits=4)
    assert again.report.layer("table").bits == 4


# -- configuration


@pytest.mark.parametrize("bits", [-3, -1, 1, 9, 10, 15, 17, 32, 4.0, "4", True])
def test_impossible_bits_are_refused(bits: object) -> None:
    with pytest.raises(ConfigError, match="bits are not possible"):
        WeightConfig(bits=bits)  # type: ignore[arg-type]


@pytest.mark.parametrize("block", [8, 10, 15, 24, -2, 1, "64", 32.0, True])
def test_impossible_blocks_are_refused(block: object) -> None:
    with pytest.raises(ConfigError, match="not possible"):
        WeightConfig(block=block)  # type: ignore[arg-type]


@pytest.mark.parametrize("block", [None, 0, -1])
def test_no_block_means_one_per_output_channel(block: int | None) -> None:
    assert WeightConfig(block=block).block is None


def test_hqq_needs_asymmetric_weights_also_through_an_override() -> None:
    with pytest.raises(ConfigError, match="offset"):
        WeightConfig(method="hqq", symmetric=True)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"head.*offset"):
        WeightConfig(method="hqq", overrides={"head": {"symmetric": True}})  # type: ignore[arg-type]


def test_wrong_fields_are_named() -> None:
    with pytest.raises(ConfigError, match="bit: unknown option"):
        mnnq.quantize_weights(mnn_models.chain(), bit=4)
    with pytest.raises(ConfigError, match="unknown field"):
        Override("a", {"bit": 4})
    with pytest.raises(ConfigError, match="unknown method 'best'"):
        LayerConfig(method="best")  # type: ignore[arg-type]


def test_every_possible_number_of_bits_is_a_config() -> None:
    assert [WeightConfig(bits=bits).bits for bits in BITS] == list(BITS)


def test_exact_overrides_are_no_patterns() -> None:
    override = Override("a[0]*", {}, exact=True)
    assert override.matches("", "a[0]*")
    assert not override.matches("", "a0")
    assert Override("a[0]*", {}).matches("", "a0b")
    assert not Override("a", {}, subgraph="body").matches("", "a")


# -- files written by the real tools


@pytest.mark.skipif(not FIXTURES.exists(), reason="no fixtures")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("conv3x3_w8_asym", {"bits": 8}), ("conv3x3_w8_sym", {"bits": 8, "symmetric": True}),
        ("conv3x3_w4_sym", {"bits": 4, "symmetric": True}), ("conv3x3_w2_asym", {"bits": 2}),
        ("conv3x3_w3_asym", {"bits": 3}), ("conv3x3_w5_asym", {"bits": 5}), ("conv3x3_w7_asym", {"bits": 7}),
        ("conv3x3_w4_hqq", {"bits": 4, "method": "hqq"}),
        ("dw3x3_w4_asym", {"bits": 4}), ("deconv_w8_asym", {"bits": 8}),
        ("tinycnn_w8_asym", {"bits": 8}), ("tblock_w4_asym_b16", {"bits": 4, "block": 16}),
    ],
)  # fmt: skip
def test_codes_are_those_of_the_real_converter(name: str, options: dict[str, object]) -> None:
    source = FIXTURES / f"{name.rsplit('_w', 1)[0].removesuffix('_fp16')}_f32.mnn"
    ours = mnnq.quantize_weights(mnnq.load(source), **options)
    theirs = mnnq.load(FIXTURES / f"{name}.mnn")
    pairs = list(zip(ours.weight_ops(), theirs.weight_ops(), strict=True))
    assert pairs
    for (_, op), (_, other) in pairs:
        ours_q, theirs_q = op.params["quanParameter"], other.params["quanParameter"]
        np.testing.assert_array_equal(ours_q["buffer"], theirs_q["buffer"])
        np.testing.assert_allclose(float_weights(op), float_weights(other), atol=1e-6)


@pytest.mark.skipif(not FIXTURES.exists(), reason="no fixtures")
@needs_mnn
@pytest.mark.peer
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    "name", ["sparse_f32", "sparse_w8_asym", "sparse_w8_sym", "conv3x3_f32_ext", "conv3x3_w8_asym_ext", "conv3x3_fp16",
             "hand_type4_sym", "hand_type4_old_asym", "hand_type1_table5", "hand_type1_shape32"],
)  # fmt: skip
def test_every_stored_form_can_be_quantized_again(name: str, sparse: bool, mnn_runtime: MnnRuntime) -> None:
    arrays = np.load(FIXTURES / f"{name}.npz")
    model = mnnq.load(FIXTURES / f"{name}.mnn")
    result = mnnq.quantize_weights(model, bits=7, sparse=sparse)
    assert [layer.bits for layer in result.report.layers] == [7]
    got = mnn_models.run(result, mnn_runtime, {"x": arrays["x"]})
    assert np.abs(got - arrays["y"]).max() < 0.02 * np.abs(arrays["y"]).max()


@pytest.mark.skipif(not FIXTURES.exists(), reason="no fixtures")
@pytest.mark.parametrize("name", ["hand_old_convint8", "conv3x3_int8_kl", "tinycnn_fullquant"])
def test_int8_layers_are_kept_and_said_so(name: str) -> None:
    model = mnnq.load(FIXTURES / f"{name}.mnn")
    report = mnnq.quantize_weights(model, bits=4).report
    kept = [layer for layer in report.layers if layer.reason and "int8 layer" in layer.reason]
    assert len(kept) == (
        3 if name == "tinycnn_fullquant" else 1 if name != "hand_old_convint8" else len(report.layers)
    )


def test_weights_beyond_half_floats_stay_float() -> None:
    for value in (1e6, np.nan):
        model = mnn_models.chain()
        _, op = next(iter(model.weight_ops()))
        op.params["weight"] = np.array(op.params["weight"], np.float32)
        op.params["weight"].reshape(-1)[3] = value
        result = mnnq.quantize_weights(model, bits=16)
        first, *others = result.report.layers
        assert first.bits == 32
        assert "largest half float" in str(first.reason)
        assert [layer.bits for layer in others] == [16, 16]


def test_layers_that_lose_their_weights_are_named() -> None:
    model = mnn_models.chain()
    _, op = next(iter(model.weight_ops()))
    op.params["weight"] = np.asarray(op.params["weight"], np.float32) * np.float32(1e-8)
    notes = mnnq.quantize_weights(model, bits=8).report.notes
    assert len(notes) == 1
    assert "1 layer has weights worse than 10 dB" in notes[0]
    assert op.name in notes[0]
    assert mnnq.quantize_weights(model, bits=8, method="search").report.notes == ()


def test_auto_keeps_tables_at_eight_bits_unless_told_otherwise() -> None:
    model = mnn_models.embedding(normal(100, 64))
    layer = mnnq.quantize_weights(model, bits=4, method="auto").report.layer("table")
    assert layer.bits == 8
    assert "8 bits" in (layer.reason or "")
    told = mnnq.quantize_weights(model, bits=8, method="auto", overrides={"table": 4})
    assert told.report.layer("table").bits == 4
