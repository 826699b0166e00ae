"""Small `Model` values built in code, for tests that need no conversion."""

from __future__ import annotations

from typing import Any

import numpy as np

from mnnq.ir.model import Model, Op


def conv_params(
    weight: np.ndarray, *, op_type: str = "Convolution", group: int = 1, **common: Any
) -> dict[str, Any]:
    """Parameters of a convolution with the ONNX weight `[oc, ic / group, kh, kw]` (`[ic, oc, kh, kw]` transposed)."""
    oc = weight.shape[1] if op_type == "Deconvolution" else weight.shape[0]
    ic = weight.shape[0] if op_type == "Deconvolution" else weight.shape[1] * group
    kh, kw = weight.shape[2:]
    return {
        "common": {
            "kernelX": kw,
            "kernelY": kh,
            "group": group,
            "outputCount": oc,
            "inputCount": ic,
            "pads": np.zeros(4, np.int32),
            **common,
        },
        "weight": np.ascontiguousarray(weight, np.float32).reshape(-1),
        "bias": np.linspace(-1, 1, oc, dtype=np.float32),
    }


def single_conv(weight: np.ndarray, *, op_type: str = "Convolution", group: int = 1, size: int = 6) -> Model:
    """x -> convolution `conv` -> y."""
    params = conv_params(weight, op_type=op_type, group=group)
    dims = np.asarray([1, params["common"]["inputCount"], size, size], np.int32)
    layout = {"source": "NCHW", "dest": "NC4HW4"}
    back = {"source": "NC4HW4", "dest": "NCHW"}
    ops = [
        Op("Input", "x", [], ["x"], "Input", {"dims": dims, "dtype": "DT_FLOAT", "dformat": "NCHW"}),
        Op("ConvertTensor", "xc", ["x"], ["xc"], "TensorConvertInfo", layout),
        Op(op_type, "conv", ["xc"], ["conv"], "Convolution2D", params),
        Op("ConvertTensor", "y", ["conv"], ["y"], "TensorConvertInfo", back),
    ]
    return Model(ops=ops, outputs=["y"], net={"sourceType": "ONNX"})


def chain(channels: int = 96, *, hidden: int = 40, seed: int = 0) -> Model:
    """x -> conv `stem` (3x3) -> depthwise `mid` -> 1x1 `head__matmul_converted` -> y."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.1).astype(np.float32)

    dims = np.asarray([1, channels, 8, 8], np.int32)
    ops = [
        Op("Input", "x", [], ["x"], "Input", {"dims": dims, "dtype": "DT_FLOAT", "dformat": "NCHW"}),
        Op("ConvertTensor", "xc", ["x"], ["xc"], "TensorConvertInfo", {"source": "NCHW", "dest": "NC4HW4"}),
        Op("Convolution", "stem", ["xc"], ["stem"], "Convolution2D", conv_params(normal(hidden, channels, 3, 3))),
        Op("ConvolutionDepthwise", "mid", ["stem"], ["mid"], "Convolution2D",
           conv_params(normal(hidden, 1, 3, 3), group=hidden)),
        Op("Convolution", "head__matmul_converted", ["mid"], ["head"], "Convolution2D",
           conv_params(normal(12, hidden, 1, 1))),
        Op("ConvertTensor", "y", ["head"], ["y"], "TensorConvertInfo", {"source": "NC4HW4", "dest": "NCHW"}),
    ]  # fmt: skip
    return Model(ops=ops, outputs=["y"], net={"sourceType": "ONNX"})


def embedding(table: np.ndarray, *, extra_reader: bool = False, ids: tuple[int, ...] = (2, 7)) -> Model:
    """ids -> rows of `table` -> y."""
    blob = {
        "dims": np.asarray(table.shape, np.int32),
        "dataType": "DT_FLOAT",
        "dataFormat": "NCHW",
        "float32s": np.ascontiguousarray(table, np.float32).reshape(-1),
    }
    axis = {"dataType": "DT_INT32", "dataFormat": "NCHW", "int32s": np.zeros(1, np.int32)}
    dims = np.asarray(ids, np.int32)
    ops = [
        Op("Input", "ids", [], ["ids"], "Input", {"dims": dims, "dtype": "DT_INT32", "dformat": "NCHW"}),
        Op("Const", "table", [], ["table"], "Blob", blob),
        Op("Const", "axis", [], ["axis"], "Blob", axis),
        Op("GatherV2", "y", ["table", "ids", "axis"], ["y"], "GatherV2", {}),
    ]
    outputs = ["y"]
    if extra_reader:
        ops.append(Op("UnaryOp", "z", ["table"], ["z"], "UnaryOp", {"opType": "ABS", "T": "DT_FLOAT"}))
        outputs.append("z")
    return Model(ops=ops, outputs=outputs, net={"sourceType": "ONNX"})


def run(model: Model, runtime: Any, feeds: dict[str, np.ndarray], **options: Any) -> np.ndarray:
    """Output ``y`` of a model in the real runtime."""
    from mnnq.writer.to_mnn import to_bytes

    result: np.ndarray = runtime.run(to_bytes(model), feeds, ["y"], **options)["y"]
    return result
