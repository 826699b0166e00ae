"""The node tests of the onnx package for the arithmetic, convolution, pooling, normalisation and resize families.

Each test runs as it is (every input at run time) and with all inputs but the first as constants. What is
refused is listed with its reason; nothing may come out wrong.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mnnq.convert import convert_onnx
from mnnq.errors import UnsupportedError
from tests.ops.harness import check
from tests.peers.mnn_runtime import MnnRuntime

pytestmark = [pytest.mark.peer, pytest.mark.slow]

_NAMES = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh AveragePool BatchNormalization BitShift BitwiseAnd
    BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip Conv ConvInteger ConvTranspose Cos Cosh
    DepthToSpace DequantizeLinear Div DynamicQuantizeLinear Einsum Elu Equal Erf Exp Floor Gelu Gemm
    GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid
    HardSwish Hardmax InstanceNormalization IsInf IsNaN LRN LayerNormalization LeakyRelu Less
    LessOrEqual Log LogSoftmax LpNormalization LpPool MatMul MatMulInteger Max MaxPool Mean
    MeanVarianceNormalization Min Mish Mod Mul Neg NegativeLogLikelihoodLoss Not Or PRelu Pow
    QLinearConv QLinearMatMul QuantizeLinear RMSNormalization Reciprocal Relu Resize RoiAlign Round Selu
    Shrink Sigmoid Sign Sin Sinh Softmax SoftmaxCrossEntropyLoss Softplus Softsign SpaceToDepth Sqrt Sub
    Sum Swish Tan Tanh ThresholdedRelu Upsample Where Xor
"""
_OPERATORS = frozenset(_NAMES.split())

#: Pattern of "test name:variant" and why it is refused.
_REFUSED = {
    r"_training_mode|training_dropout": "training",
    r"test_not_[234]d:": "states opset 1",
    r"convtranspose_3d:as-is": "a 3-D transposed convolution with a run-time weight",
    r"roialign_mode_max": "the runtime's maximum mode is wrong",
    r"test_resize_.*:as-is": "a mode that needs sizes or scales at conversion",
}

_NO_TENSORS = ("float8", "float4", "bfloat16", "int4", "int2", "uint4", "uint2", "float6")


def _arrays(values: Any) -> list[np.ndarray] | None:
    """Arrays of tensors the harness can feed and compare, else None."""
    result = []
    for value in values:
        if not isinstance(value, (onnx.TensorProto, np.ndarray, np.generic)):
            return None
        array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
        if array.dtype.kind in "OUS" or array.dtype.name.startswith(_NO_TENSORS):
            return None
        result.append(array)
    return result


def _suite() -> list[Any]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        cases = load_model_tests(kind="node")
    found = []
    for case in cases:
        if case.model is None or len(case.model.graph.node) != 1:
            continue
        if case.model.graph.node[0].op_type not in _OPERATORS or not case.data_sets:
            continue
        inputs, outputs = (_arrays(values) for values in case.data_sets[0])
        if inputs is None or outputs is None:
            continue
        for variant in ("as-is", "constants"):
            if variant == "as-is" or len(inputs) > 1:
                label = f"{case.name}:{variant}"
                found.append(pytest.param(case.model, inputs, outputs, label, id=label))
    return found


def _freeze(model: onnx.ModelProto, inputs: list[np.ndarray]) -> onnx.ModelProto:
    """Make constants of all inputs but the first."""
    frozen = onnx.ModelProto()
    frozen.CopyFrom(model)
    for info, array in zip(model.graph.input[1:], inputs[1:], strict=True):
        frozen.graph.initializer.append(numpy_helper.from_array(array, info.name))
    del frozen.graph.input[1:]
    return frozen


@pytest.mark.parametrize(("model", "inputs", "outputs", "label"), _suite())
def test_node(
    model: onnx.ModelProto,
    inputs: list[np.ndarray],
    outputs: list[np.ndarray],
    label: str,
    mnn_runtime: MnnRuntime,
) -> None:
    if label.endswith(":constants"):
        model = _freeze(model, inputs)
    feeds = {info.name: array for info, array in zip(model.graph.input, inputs, strict=False)}
    expected = {info.name: array for info, array in zip(model.graph.output, outputs, strict=True)}
    reason = next((why for pattern, why in _REFUSED.items() if re.search(pattern, label)), None)
    try:
        convert_onnx(model)
    except UnsupportedError as error:
        if reason is None:
            raise
        pytest.skip(f"refused: {reason}: {error.problems[0]}")
    half = any(array.dtype == np.float16 for array in outputs)
    check(
        model, feeds, mnn_runtime, expected=expected, rtol=1e-2 if half else 1e-3, atol=1e-3 if half else 1e-5
    )
