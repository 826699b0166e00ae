"""Weights of language models chosen on random tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mnnq
from mnnq.cli.main import run
from mnnq.ir.model import Model
from mnnq.quantization import generated_run
from mnnq.quantization.bias_correction import output_sqnr
from mnnq.quantization.tokens import token_input
from mnnq.writer.to_mnn import to_bytes

VOCABULARY, WIDTH = 96, 48


def _encoder(path: Path, *, kind: int = TensorProto.INT64, companion: str = "attention_mask") -> Path:
    """Embeddings of a few directions, layer normalization, and two linear layers; a further input is added as a float."""
    rng = np.random.default_rng(7)
    table = rng.standard_normal((VOCABULARY, 6)) @ rng.standard_normal((6, WIDTH))
    table += 0.2 * rng.standard_normal((VOCABULARY, WIDTH))
    values = {
        "table": table,
        "gamma": 0.3 + rng.random(WIDTH) * np.where(np.arange(WIDTH) % 6 == 0, 6, 1),
        "beta": 0.3 * rng.standard_normal(WIDTH),
        "w1": rng.standard_normal((WIDTH, 2 * WIDTH)) / 7,
        "w2": rng.standard_normal((2 * WIDTH, WIDTH)) / 10,
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("LayerNormalization", ["e", "gamma", "beta"], ["n"], axis=-1),
        helper.make_node("MatMul", ["n", "w1"], ["m"]),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["z"]),
        helper.make_node("Cast", [companion], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f"], ["s"], axes=[1], keepdims=0),
        helper.make_node("Add", ["z", "s"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [
            helper.make_tensor_value_info("ids", kind, [1, "length"]),
            helper.make_tensor_value_info(companion, kind, [1, "length"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


@pytest.fixture
def encoder(tmp_path: Path) -> Model:
    return mnnq.load(_encoder(tmp_path / "encoder.onnx"))


def test_the_input_is_found(encoder: Model, tmp_path: Path) -> None:
    found = token_input(encoder)
    assert found is not None
    assert (found.name, found.shape, found.vocabulary) == ("ids", (1, -1), VOCABULARY)
    assert found.companions == {"attention_mask": 1}
    sequences = found.sequences(40, 0)
    ids = np.concatenate([feeds["ids"].reshape(-1) for feeds in sequences])
    assert ids.min() == 0
    assert ids.max() == VOCABULARY - 1
    assert all((feeds["attention_mask"] == 1).all() for feeds in sequences)
    repeating = [feeds["ids"].reshape(-1) for feeds in found.sequences(40, 0, repeating=True)]
    assert np.bincount(np.concatenate(repeating)).max() > 3 * np.bincount(ids).max()
    assert token_input(mnnq.load(_encoder(tmp_path / "other.onnx", companion="speaker"))) is None


def test_weights_are_fitted_to_random_tokens(encoder: Model) -> None:
    fitted = mnnq.quantize_weights(encoder, bits=3, method="auto")
    plain = mnnq.quantize_weights(encoder, bits=3, method="auto", generated_inputs=False)
    found = token_input(encoder)
    assert found is not None
    other = found.sequences(16, 99)
    assert output_sqnr(fitted, encoder, other) > output_sqnr(plain, encoder, other) + 1
    (note,) = [note for note in fitted.report.notes if "random token" in note]
    assert note.startswith("weights and biases were fitted")
    assert fitted.report.samples is None
    assert not any("random token" in note for note in plain.report.notes)
    assert any(layer.method.startswith("gptq") for layer in fitted.report.layers if layer.method)
    assert to_bytes(mnnq.quantize_weights(encoder, bits=3, method="auto", threads=1)) == to_bytes(fitted)


def test_what_does_not_help_is_not_kept(encoder: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated_run, "MIN_GAIN_DB", 100.0)
    kept = mnnq.quantize_weights(encoder, bits=4, method="auto")
    plain = mnnq.quantize_weights(encoder, bits=4, method="auto", generated_inputs=False)
    assert to_bytes(kept) == to_bytes(plain)
    (note,) = [note for note in kept.report.notes if "random token" in note]
    assert "do not help" in note


def test_other_methods_need_no_inputs(encoder: Model) -> None:
    small = mnnq.quantize_weights(encoder, bits=4, method="search")
    assert not any("random token" in note for note in small.report.notes)


def test_the_command_line_turns_it_off(encoder: Model, tmp_path: Path) -> None:
    source = _encoder(tmp_path / "net.onnx")
    target = tmp_path / "net.mnn"
    command = ["quant", str(source), "-o", str(target), "--bits", "4", "--method", "auto"]
    assert run([*command, "--no-generated-inputs"]) == 0
    plain = target.read_bytes()
    assert run(command) == 0
    assert target.read_bytes() != plain
