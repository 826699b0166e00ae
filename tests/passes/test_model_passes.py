"""Passes over MNN operators: fused activations, layouts, reshapes, dead and duplicate operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mnnq.ir.model import Model, Op, SubGraph
from mnnq.passes.dead_ops import merge_duplicate_ops, remove_dead_ops
from mnnq.passes.fuse_activation import fuse_activation
from mnnq.passes.insert_layout import insert_layout
from mnnq.passes.merge_reshapes import merge_reshapes


def _input(name: str = "x") -> Op:
    return Op("Input", name, [], [name], "Input", {"dformat": "NCHW"})


def _const(name: str, values: list[int]) -> Op:
    return Op("Const", name, [], [name], "Blob", {"int32s": np.array(values, np.int32)})


def _conv(source: str, out: str, columns: int = 4, **common: Any) -> Op:
    fields = {"outputCount": columns, "kernelX": 1, "kernelY": 1, "strideX": 1, "strideY": 1, **common}
    return Op("Convolution", out, [source], [out], "Convolution2D", {"common": fields})


def _op(kind: str, sources: str, out: str, **params: Any) -> Op:
    return Op(kind, out, sources.split(), out.split(), kind, params)


def _types(model: Model) -> list[str]:
    return [op.type for op in model.ops]


def _clean(model: Model) -> None:
    """Every tensor is produced once, before it is read, and the outputs exist."""
    made: set[str] = set()
    for op in model.ops:
        assert set(op.inputs) - {""} <= made, op
        assert not made & set(op.outputs), op
        made.update(op.outputs)
    assert set(model.outputs) <= made


@pytest.mark.parametrize(
    ("activation", "flag"),
    [
        (_op("ReLU", "c", "y", slope=0.0), "relu"),
        (_op("ReLU6", "c", "y", minValue=0.0, maxValue=6.0), "relu6"),
        (_op("ReLU", "c", "y", slope=0.1), None),
        (_op("ReLU6", "c", "y", minValue=0.0, maxValue=1.0), None),
        (_op("UnaryOp", "c", "y", opType="SIGMOID"), None),
    ],
)
def test_activation_behind_a_convolution(activation, flag):
    model = Model([_input(), _conv("x", "c"), activation], ["y"])
    assert fuse_activation(model) == (flag is not None)
    if flag:
        conv = model.ops[1]
        assert (conv.name, conv.outputs, conv.params["common"][flag]) == ("c", ["y"], True)
    _clean(model)


@pytest.mark.parametrize("reason", ["output", "second reader", "already fused", "quantized"])
def test_activation_that_must_stay(reason):
    conv = _conv("x", "c", **({"relu6": True} if reason == "already fused" else {}))
    model = Model([_input(), conv, _op("ReLU", "c", "y", slope=0.0)], ["y"])
    if reason == "output":
        model.outputs.append("c")
    if reason == "second reader":
        model.ops.append(_op("UnaryOp", "c", "z"))
    if reason == "quantized":
        model.tensor_quant["c"] = {"scale": 1.0}
    assert fuse_activation(model) == 0


@pytest.mark.parametrize(
    ("kind", "T", "slope", "fused"),
    [
        ("ADD", "DT_FLOAT", 0.0, 1),
        ("ADD", "DT_INT32", 0.0, 0),
        ("LESS", "DT_FLOAT", 0.0, 0),
        ("MUL", "DT_FLOAT", 0.2, 0),
    ],
)
def test_relu_behind_a_binary_operator(kind, T, slope, fused):
    model = Model(
        [_input(), _op("BinaryOp", "x x", "a", opType=kind, T=T), _op("ReLU", "a", "y", slope=slope)], ["y"]
    )
    assert fuse_activation(model) == fused
    assert model.ops[1].params.get("activationType", 0) == fused


def test_layout_of_a_chain_is_converted_once_on_each_side():
    model = Model(
        [
            _input(),
            _conv("x", "a"),
            _op("UnaryOp", "a", "b"),
            _conv("x", "d"),
            _op("BinaryOp", "b d", "e"),
            _op("Pooling", "e", "y"),
        ],
        ["y"],
    )
    assert insert_layout(model) == 2
    _clean(model)
    converts = [op for op in model.ops if op.type == "ConvertTensor"]
    assert [(op.params["source"], op.params["dest"]) for op in converts] == [
        ("NCHW", "NC4HW4"),
        ("NC4HW4", "NCHW"),
    ]
    assert converts[0].outputs == ["x___tr4a"]
    assert (converts[1].inputs, converts[1].outputs) == (["y__before_tr"], ["y"])


def test_a_shuffle_between_convolutions_stays_blocked():
    model = Model(
        [
            _input(),
            _const("s", [0, 2, 2, 4, 4]),
            _const("t", [0, 4, 4, 4]),
            _conv("x", "a"),
            _op("Reshape", "a s", "b"),
            _op("Permute", "b", "c"),
            _op("Reshape", "c t", "d"),
            _conv("d", "y"),
        ],
        ["y"],
    )
    assert insert_layout(model) == 2
    _clean(model)


def test_elements_move_in_the_layout_of_the_reader():
    """Convolution, Reshape, Softmax: the conversion comes before the Reshape."""
    model = Model(
        [
            _input(),
            _const("s", [0, -1]),
            _conv("x", "a"),
            _op("Reshape", "a s", "b"),
            _op("Softmax", "b", "y"),
        ],
        ["y"],
    )
    insert_layout(model)
    assert _types(model)[-3:] == ["ConvertTensor", "Reshape", "Softmax"]


def test_an_output_read_inside_keeps_both_forms():
    model = Model([_input(), _conv("x", "y"), _conv("y", "z"), _op("Softmax", "y", "w")], ["y", "z", "w"])
    insert_layout(model)
    _clean(model)
    assert model.outputs == ["y", "z", "w"]


def test_constant_operands_are_not_converted_and_do_not_vote():
    model = Model(
        [_input(), _const("k", [1]), _conv("x", "a"), _op("BinaryOp", "a k", "b"), _conv("b", "y")], ["y"]
    )
    assert insert_layout(model) == 2
    assert next(op for op in model.ops if op.type == "BinaryOp").inputs == ["a", "k"]


def test_layouts_inside_subgraphs():
    body = SubGraph("body", [_input("i"), _conv("i", "o")], ["i"], ["o"])
    model = Model([_input(), _op("While", "x", "y")], ["y"], {"body": body})
    assert insert_layout(model) == 2
    assert [op.type for op in body.ops] == ["Input", "ConvertTensor", "Convolution", "ConvertTensor"]
    assert body.outputs == ["o"]


def _rows(source: str, out: str, columns: int, ops: list[Op]) -> None:
    """A matrix product as the lowering writes it: rows, 1x1 convolution, shape again."""
    ops += [
        _const(f"{out}_rows", [-1, columns, 1, 1]),
        Op("Reshape", f"{out}_r", [source, f"{out}_rows"], [f"{out}_r"], "Reshape", {"dimType": "NCHW"}),
        _conv(f"{out}_r", f"{out}_c", columns),
        _const(f"{out}_shape", [2, 5, columns]),
        Op("Reshape", out, [f"{out}_c", f"{out}_shape"], [out], "Reshape", {"dimType": "NCHW"}),
    ]


def test_reshapes_between_two_products_cancel():
    ops = [_input()]
    _rows("x", "a", 8, ops)
    ops.append(_op("UnaryOp", "a", "g", opType="GELU"))
    _rows("g", "y", 8, ops)
    model = Model(ops, ["y"])
    assert merge_reshapes(model) > 0
    remove_dead_ops(model)
    assert "a" not in {name for op in model.ops for name in op.outputs}  # the name would say something else
    assert [t for t in _types(model) if t != "Const"] == [
        "Input",
        "Reshape",
        "Convolution",
        "UnaryOp",
        "Convolution",
        "Reshape",
    ]
    _clean(model)
    insert_layout(model)
    assert _types(model).count("ConvertTensor") == 2


@pytest.mark.parametrize("columns", [8, 16])
def test_rows_of_another_width_are_not_dropped(columns):
    ops = [_input()]
    _rows("x", "a", 8, ops)
    _rows("a", "y", columns, ops)
    model = Model(ops, ["y"])
    merge_reshapes(model)
    remove_dead_ops(model)
    assert _types(model).count("Reshape") == (2 if columns == 8 else 3)
    _clean(model)


def test_a_reshape_that_copies_sizes_is_not_merged():
    model = Model(
        [
            _input(),
            _const("s", [6, 4]),
            _const("t", [0, 2, 2]),
            _op("Reshape", "x s", "a"),
            _op("Reshape", "a t", "y"),
        ],
        ["y"],
    )
    assert merge_reshapes(model) == 0


def test_a_reshape_that_is_read_twice_keeps_its_reader():
    model = Model(
        [
            _input(),
            _const("s", [6, 4]),
            _op("Reshape", "x s", "a"),
            _op("UnaryOp", "a", "y"),
            _op("Softmax", "a", "z"),
        ],
        ["y", "z"],
    )
    assert merge_reshapes(model) == 0


def test_dead_and_duplicate_operators():
    model = Model(
        [
            _input(),
            _input("unused"),
            _const("s", [1, 2]),
            _const("t", [1, 2]),
            _const("other", [1, 3]),
            _op("Reshape", "x s", "a"),
            _op("Reshape", "x t", "b"),
            _op("Reshape", "x other", "d"),
            _op("BinaryOp", "a b", "e", opType="ADD"),
            _op("BinaryOp", "e d", "y", opType="ADD"),
            _op("UnaryOp", "a", "dead"),
        ],
        ["y"],
    )
    assert merge_duplicate_ops(model) == 2
    assert remove_dead_ops(model) == 1
    assert _types(model) == ["Input", "Input", "Const", "Const", "Reshape", "Reshape", "BinaryOp", "BinaryOp"]
    assert model.ops[6].inputs == ["a", "a"]
    _clean(model)


def test_a_duplicate_that_is_an_output_stays():
    model = Model([_input(), _op("UnaryOp", "x", "y"), _op("UnaryOp", "x", "z")], ["y", "z"])
    assert merge_duplicate_ops(model) == 0
