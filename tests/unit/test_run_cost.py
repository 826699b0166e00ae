"""What a run of a model takes, found without running it."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from mnnq.convert import convert_onnx
from mnnq.errors import InputError
from mnnq.inspection import run_cost
from tests import builders
from tests.mnn_models import single_conv


def test_products_of_a_convolution() -> None:
    cost = run_cost(single_conv(np.ones((4, 3, 3, 3), np.float32), size=6))
    assert cost.multiply_adds == 4 * 4 * 9 * 3 * 4
    assert cost.flops == 2 * cost.multiply_adds
    assert [(port.name, port.shape, port.dtype) for port in cost.outputs] == [("y", (1, 4, 4, 4), "float32")]
    assert cost.arena_bytes >= 4 * 4 * 4 * 4
    assert cost.complete
    depthwise = single_conv(
        np.ones((8, 1, 3, 3), np.float32), op_type="ConvolutionDepthwise", group=8, size=5
    )
    assert run_cost(depthwise).multiply_adds == 3 * 3 * 9 * 8


def test_lengths_that_vary_are_one_or_given() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    weight = np.ones((6, 5), np.float32)
    proto = builders.model(
        [node], {"x": np.zeros((2, 6), np.float32)}, ["y"], {"w": weight}, shapes={"x": ["n", 6]}
    )
    model = convert_onnx(proto)
    assert run_cost(model).multiply_adds == 30
    cost = run_cost(model, {"x": (7, 6)})
    assert (cost.multiply_adds, cost.inputs[0].shape, cost.outputs[0].shape) == (210, (7, 6), (7, 5))
    with pytest.raises(InputError, match='"z" is no input'):
        run_cost(model, {"z": (1,)})
    with pytest.raises(InputError, match=r'"x" has shape \[7, 5\]'):
        run_cost(model, {"x": (7, 5)})
