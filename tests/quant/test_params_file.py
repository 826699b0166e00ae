"""Compression parameter files: reading, writing, applying."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mnnq
from mnnq.errors import ConfigError
from mnnq.quantization.params_file import (
    ConvInfo,
    LayerParams,
    ParamsFile,
    TensorParams,
    WeightParams,
    decode,
    encode,
    read_params,
)
from mnnq.quantization.params_from_report import params_from_report
from mnnq.quantization.stored import Storage, describe, float_weights
from tests import mnn_models
from tests.ops.harness import needs_mnn
from tests.peers.mnn_runtime import MnnRuntime

FIXTURES = Path(__file__).parents[2].parent / "shared" / "fixtures" / "mnn"
needs_fixtures = pytest.mark.skipif(not FIXTURES.exists(), reason="no fixtures")


def strategy(*layers: dict[str, Any], **top: Any) -> bytes:
    entry = {"type": "QUANTIZE", "quantParams": {"layer": list(layers)}}
    return json.dumps({"version": "3.6.1", "algo": [entry], "forGuide": True, **top}).encode()


def layer(name: str, **weight: Any) -> dict[str, Any]:
    return {"opName": name, "weight": [{"name": name, **weight}]}


EVERYTHING = ParamsFile(
    layers=(
        LayerParams("a", "body", WeightParams("a", 4, True, 32, True), conv=ConvInfo(3, 8, (3, 3))),
        LayerParams("b", weight=WeightParams("b", 0, False, None, True)),
        LayerParams("c", weight=WeightParams("c")),
        LayerParams(
            weight=WeightParams("w", 8, scales=(0.1, 0.2), clamp_min=-127),
            inputs=(TensorParams("x", (0.025,), zero_point=3),),
            outputs=(TensorParams("y", (0.02,), zero_point=-128, clamp_max=100),),
            method="OverflowAware",
        ),
    ),
    uuid="1-2-3",
)


@pytest.mark.parametrize("text", [True, False], ids=["json", "binary"])
def test_everything_survives_a_round_trip(text: bool) -> None:
    again = decode(encode(EVERYTHING, text=text), text=text)
    assert again.layers[:3] == EVERYTHING.layers[:3]
    assert again.layers[3].weight is not None
    assert again.layers[3].weight.scales == tuple(np.float32([0.1, 0.2]).tolist())
    assert again.layers[3].outputs[0].clamp_max == 100
    assert (again.uuid, again.for_guide, again.layers[3].method) == ("1-2-3", False, "OverflowAware")


@pytest.mark.parametrize("suffix", [".json", ".bin"])
def test_files_are_json_by_their_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"params{suffix}"
    EVERYTHING.save(path)
    assert (path.read_bytes()[:1] == b"{") == (suffix == ".json")
    assert len(read_params(path).layers) == 4
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_json_has_the_keys_of_the_real_converter() -> None:
    written = json.loads(encode(EVERYTHING, text=True))
    first = written["algo"][0]["quantParams"]["layer"][0]
    assert written["algo"][0]["type"] == "QUANTIZE"
    assert first["weight"] == [{"name": "a", "bits": 4, "asymmetric": True, "blockSize": 32}]
    assert first["conv"] == {"inputChannel": 3, "outputChannel": 8, "kernelSize": [3, 3]}
    assert (first["opName"], first["subgraphName"]) == ("a", "body")


def test_snake_case_is_read_too() -> None:
    data = b'{"version":"1","algo":[{"quant_params":{"layer":[{"op_name":"a","weight":[{"name":"a","block_size":64}]}]}}]}'
    assert decode(data, text=True).layers[0].weight == WeightParams("a", block=64, has_block=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (strategy(layer("a", bit=4)), "bit"),
        (strategy(layer("a", bits=4), extra=1), "extra"),
        (strategy(layer("a", bits=1)), "1 bits are not possible"),
        (strategy(layer("a", bits=9)), "9 bits are not possible"),
        (strategy(layer("a", bits="x")), "bits"),
        (strategy(layer("a", blockSize=8)), "block of 8"),
        (strategy(layer("a", blockSize=24)), "block of 24"),
        (strategy({"opName": "a", "weight": [{"name": "a"}, {"name": "b"}]}), "2 weight entries"),
        (strategy(layer("a", scales=[0.1, -1])), "positive finite"),
        (b"{", "not a JSON"),
        (b"\xff\xfe", "not a JSON"),
        (b"{}", "no quantization entry"),
        (b'{"algo":[{"type":"PRUNE"}]}', "pruning"),
    ],
)
def test_wrong_json_is_one_clear_error(data: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        decode(data, text=True)
    assert "\n" not in str(caught.value)


def test_wrong_binary_is_an_error_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "params.bin"
    path.write_bytes(b"\x12\xff\xff")
    with pytest.raises(ConfigError, match=r"params.bin.*not a binary"):
        read_params(path)


def test_a_strategy_decides_layer_by_layer() -> None:
    data = strategy(
        layer("stem", bits=4, asymmetric=False, blockSize=32), layer("mid", bits=0), layer("head", bits=16)
    )
    model = mnn_models.chain()
    report = mnnq.quantize_weights(model, bits=8, block=16, params_file=decode(data, text=True)).report
    stem, mid, head = report.layers
    assert (stem.bits, stem.scheme, stem.block_used) == (4, "symmetric", 32)
    assert (mid.bits, head.bits) == (32, 16)


def test_an_absent_key_leaves_the_option() -> None:
    params = decode(strategy(layer("stem", asymmetric=False)), text=True)
    stem = mnnq.quantize_weights(mnn_models.chain(), bits=5, block=16, params_file=params).report.layers[0]
    assert (stem.bits, stem.scheme, stem.block_used) == (5, "symmetric", 16)


def test_a_file_that_matches_nothing_is_an_error() -> None:
    params = decode(strategy(layer("stem", bits=4), layer("gone", bits=4)), text=True)
    with pytest.raises(ConfigError, match="'gone'"):
        mnnq.quantize_weights(mnn_models.chain(), params_file=params)
    report = mnnq.quantize_weights(mnn_models.chain(), params_file=params, allow_unmatched=True).report
    assert report.layers[0].bits == 4
    assert "gone" in report.notes[0]


def test_a_report_becomes_a_strategy_that_repeats_it(tmp_path: Path) -> None:
    model = mnn_models.chain()
    first = mnnq.quantize_weights(model, bits=4, block=64, overrides={"mid": 0, "head": 16})
    path = tmp_path / "strategy.json"
    params_from_report(first.report).save(path)
    again = mnnq.quantize_weights(model, bits=8, params_file=path)
    kept = [(entry.bits, entry.scheme, entry.block_used, entry.bytes_after) for entry in again.report.layers]
    assert kept == [(e.bits, e.scheme, e.block_used, e.bytes_after) for e in first.report.layers]


def int8_file(scales: tuple[float, ...], output: str = "conv", **top: Any) -> ParamsFile:
    entry = LayerParams(
        weight=WeightParams("w", 8, scales=scales, clamp_min=-127),
        inputs=(TensorParams("x", (0.025,), zero_point=3),),
        outputs=(TensorParams(output, (0.02,), zero_point=-5),),
    )
    return ParamsFile((entry,), **top)


def test_full_int8_uses_the_scales_given() -> None:
    weight = np.float32([[0.25, -0.35, 0.05, 20], [0.3, -0.3, 0.1, -40]]).reshape(2, 4, 1, 1)
    model = mnn_models.single_conv(weight)
    result = mnnq.quantize_weights(model, bits=0, params_file=int8_file((0.1, 0.2), uuid="u"))
    op = next(op for _, op in result.weight_ops())
    codes = np.round(float_weights(op) / np.float32([[0.1], [0.2]])).astype(int)
    assert codes.tolist() == [[3, -4, 1, 127], [2, -2, 1, -127]]  # halves away from zero; clamped
    assert op.params["symmetricQuan"]["zeroPoint"] == 3
    assert op.params["quanParameter"]["scaleOut"] == pytest.approx(0.02)
    assert result.tensor_quant["xc"] == {
        "scale": pytest.approx(0.025),
        "zero": 3.0,
        "min": -128.0,
        "max": 127.0,
        "type": "DT_INT8",
    }
    assert result.tensor_quant["conv"]["zero"] == -5.0
    assert result.net["mnn_uuid"] == "u"
    assert result.report.layers[0].method == "int8"
    assert describe(next(op for _, op in model.weight_ops())).storage is Storage.FLOAT


def test_a_guide_does_not_make_layers_int8() -> None:
    result = mnnq.quantize_weights(
        mnn_models.single_conv(np.ones((2, 4, 1, 1), np.float32)),
        bits=0,
        params_file=int8_file((0.1,), for_guide=True),
    )
    assert not result.tensor_quant


def test_full_int8_mismatches_are_errors() -> None:
    model = mnn_models.single_conv(np.ones((2, 4, 1, 1), np.float32))
    with pytest.raises(ConfigError, match="3 weight scales for 2 output channels"):
        mnnq.quantize_weights(model, params_file=int8_file((0.1, 0.1, 0.1)))
    with pytest.raises(ConfigError, match="no layer matches 'other'"):
        mnnq.quantize_weights(model, params_file=int8_file((0.1, 0.1), output="other"))


@needs_fixtures
def test_full_int8_stores_what_the_real_converter_stores() -> None:
    ours = mnnq.quantize_weights(
        mnnq.load(FIXTURES / "tinycnn_f32.mnn"), bits=0, params_file=FIXTURES / "tinycnn_fullquant.bin"
    )
    theirs = mnnq.load(FIXTURES / "tinycnn_fullquant.mnn")
    assert ours.tensor_quant == theirs.tensor_quant
    for (_, op), (_, other) in zip(ours.weight_ops(), theirs.weight_ops(), strict=True):
        assert ("quanParameter" in op.params) == ("quanParameter" in other.params)
        if "quanParameter" in op.params:
            a, b = op.params["quanParameter"], other.params["quanParameter"]
            np.testing.assert_array_equal(a["buffer"], b["buffer"])
            np.testing.assert_array_equal(a["alpha"], b["alpha"])
            assert (a["scaleIn"], a["scaleOut"]) == (
                pytest.approx(b["scaleIn"]),
                pytest.approx(b["scaleOut"]),
            )
            same = {"nbits", "zeroPoint", "outputZeroPoint", "clampMin", "clampMax", "method"}
            assert all(op.params["symmetricQuan"][k] == other.params["symmetricQuan"][k] for k in same)


@needs_fixtures
@needs_mnn
@pytest.mark.peer
def test_full_int8_runs_as_the_real_converters_file_does(mnn_runtime: MnnRuntime) -> None:
    arrays = np.load(FIXTURES / "tinycnn_fullquant.npz")
    ours = mnnq.quantize_weights(
        mnnq.load(FIXTURES / "tinycnn_f32.mnn"), bits=0, params_file=FIXTURES / "tinycnn_fullquant.bin"
    )
    np.testing.assert_allclose(mnn_models.run(ours, mnn_runtime, {"x": arrays["x"]}), arrays["y"], atol=1e-6)
