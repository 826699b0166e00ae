"""Networks that benchmarks build by themselves: layers and shapes of well-known ones, random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[np.float32]


class Builder:
    """Collects nodes and initializers of a graph."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def constant(self, array: npt.NDArray[np.generic]) -> str:
        """Add an initializer."""
        name = f"w{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def weights(self, *shape: int, fan_in: int) -> str:
        """Add Gaussian weights that keep the variance of their input."""
        values = self.rng.standard_normal(shape, np.float32) / np.float32(fan_in) ** 0.5
        return self.constant(values.astype(np.float32))

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        """Add a node with one output."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"{kind}_{name}", **attributes))
        return name

    def save(self, path: Path, inputs: dict[str, list[int | str]], output: str) -> None:
        """Write the model; weights beside it if they are large."""
        infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, path.stem, infos, [result], self.tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        large = sum(len(tensor.raw_data) for tensor in self.tensors) > 1 << 30
        onnx.save(model, path, save_as_external_data=large, location=path.name + ".data")


def resnet50(path: Path) -> None:
    """Write ResNet-50 with its batch normalizations folded: 224 x 224, 1000 classes."""
    b = Builder()

    def conv(x: str, cin: int, cout: int, kernel: int, stride: int = 1, gain: float = 1.0) -> str:
        w = b.rng.standard_normal((cout, cin, kernel, kernel), np.float32)
        w *= np.float32(gain * (2 / (cin * kernel**2)) ** 0.5)
        bias = b.constant(b.rng.standard_normal(cout, np.float32) * np.float32(0.1))
        pad = kernel // 2
        return b.op("Conv", x, b.constant(w), bias, strides=[stride] * 2, pads=[pad] * 4)

    x = b.op("Relu", conv("x", 3, 64, 7, 2))
    x = b.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    cin = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = b.op("Relu", conv(x, cin, width, 1))
            y = b.op("Relu", conv(y, width, width, 3, stride))
            y = conv(y, width, 4 * width, 1, gain=0.5)
            skip = conv(x, cin, 4 * width, 1, stride, gain=0.7) if not block else x
            x, cin = b.op("Relu", b.op("Add", y, skip)), 4 * width
    x = b.op("Flatten", b.op("GlobalAveragePool", x))
    w, bias = b.weights(1000, 2048, fan_in=2048), b.constant(np.zeros(1000, np.float32))
    b.save(path, {"x": [1, 3, 224, 224]}, b.op("Gemm", x, w, bias, transB=1))


def decoder_stack(path: Path, layers: int = 4, hidden: int = 2048, ffn: int = 5632, head: int = 128) -> None:
    """Write a stack of Llama-like decoder layers without cache, ``x [rows, hidden]`` to ``[rows, hidden]``.

    Each has RMS normalization, attention over the rows, and a gated feed-forward part.
    """
    b = Builder()
    heads = hidden // head
    split = b.constant(np.array([-1, heads, head], np.int64))
    merge = b.constant(np.array([-1, hidden], np.int64))
    root, tiny = b.constant(np.float32(head**-0.5)), b.constant(np.float32(1e-5))
    two = b.constant(np.float32(2))

    def linear(x: str, cin: int, cout: int) -> str:
        return b.op("MatMul", x, b.weights(cin, cout, fan_in=cin))

    def normalize(x: str) -> str:
        mean = b.op("ReduceMean", b.op("Pow", x, two), axes=[-1], keepdims=1)
        y = b.op("Div", x, b.op("Sqrt", b.op("Add", mean, tiny)))
        return b.op("Mul", y, b.constant(np.ones(hidden, np.float32)))

    x = "x"
    for _ in range(layers):
        y = normalize(x)
        q, k, v = (b.op("Reshape", linear(y, hidden, hidden), split) for _ in range(3))
        q, v = (b.op("Transpose", t, perm=[1, 0, 2]) for t in (q, v))
        k = b.op("Transpose", k, perm=[1, 2, 0])
        scores = b.op("Softmax", b.op("Mul", b.op("MatMul", q, k), root), axis=-1)
        y = b.op("Transpose", b.op("MatMul", scores, v), perm=[1, 0, 2])
        x = b.op("Add", x, linear(b.op("Reshape", y, merge), hidden, hidden))
        y = normalize(x)
        gate, up = linear(y, hidden, ffn), linear(y, hidden, ffn)
        gate = b.op("Mul", gate, b.op("Sigmoid", gate))
        x = b.op("Add", x, linear(b.op("Mul", gate, up), ffn, hidden))
    b.save(path, {"x": ["rows", hidden]}, x)
