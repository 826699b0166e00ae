"""The signature of the source survives in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import mnnq
from mnnq.ir.signature import KEY, Signature, TensorSpec
from tests import builders


def test_types_symbols_and_metadata_survive_writing_and_quantizing(tmp_path: Path) -> None:
    weight = np.ones((64, 64), np.float32)
    nodes = [
        helper.make_node("Cast", ["ids"], ["f"], to=onnx.TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["m"]),
        helper.make_node("Greater", ["m", "zero"], ["y"]),
    ]
    ids = np.zeros((2, 64), np.int64)
    constants = {"w": weight, "zero": np.float32(0)}
    proto = builders.model(nodes, {"ids": ids}, ["y"], constants, shapes={"ids": ["batch", 64]})
    helper.set_model_props(proto, {"author": "nobody"})
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)

    mnnq.load(path).save(tmp_path / "float.mnn")
    mnnq.quantize_weights(mnnq.load(tmp_path / "float.mnn")).save(tmp_path / "int8.mnn")
    for name in ("float.mnn", "int8.mnn"):
        signature = mnnq.load(tmp_path / name).signature
        assert signature is not None
        assert signature.inputs == (TensorSpec("ids", "int64", ("batch", 64)),)
        assert signature.outputs == (TensorSpec("y", "bool", ("batch", 64)),)
        assert signature.metadata == {"author": "nobody"}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"inputs":[]}', '{"inputs":[{"name":"x","dtype":"no_type","shape":[1]}],"outputs":[]}',
     '{"inputs":[{"name":"x","dtype":"int8","shape":[1.5]}],"outputs":[]}'],
)  # fmt: skip
def test_a_damaged_signature_counts_as_absent(text: str) -> None:
    assert Signature.from_extra({"attr": [{"key": KEY, "s": text}]}) is None


def test_files_of_other_tools_have_none() -> None:
    assert Signature.from_extra({"type": "Meta"}) is None
