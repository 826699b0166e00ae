"""Train the small digit classifier that ships with mnnq and write it as ONNX.

The data are scikit-learn's 8x8 handwritten digits (1797 pictures, no download). The network is a MobileNet in
miniature: convolution + batch-norm + ReLU, depthwise convolution + batch-norm + ReLU6, pointwise convolution +
batch-norm + ReLU with a residual connection, max pooling, global average pooling, a linear layer. Training is plain
numpy (Adam, cross entropy) and takes about a minute; the result is the same on every run of the same machine.

Writes ``digits.onnx`` (batch-norm kept, symbolic batch axis) and ``digits_test.npz`` (``image`` float32
[360, 1, 8, 8] in 0..1, ``labels`` int64 [360]) beside this file. Needs scikit-learn, numpy and onnx.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
Array = np.ndarray
EPS = 1e-5


class Layer:
    """A layer with parameters, their gradients, a forward and a backward step."""

    params: dict[str, Array]
    grads: dict[str, Array]

    def __init__(self) -> None:
        self.params, self.grads = {}, {}


class Conv(Layer):
    """3x3 (padding 1) or 1x1 convolution without bias; `depthwise` has one filter per channel."""

    def __init__(
        self, rng: np.random.Generator, ic: int, oc: int, k: int, *, depthwise: bool = False
    ) -> None:
        super().__init__()
        self.k, self.depthwise = k, depthwise
        shape = (oc, 1 if depthwise else ic, k, k)
        self.params["w"] = rng.normal(0, np.sqrt(2 / (shape[1] * k * k)), shape)

    def forward(self, x: Array, train: bool) -> Array:
        n, c, h, w = x.shape
        p = self.k // 2
        padded = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (self.k, self.k), axis=(2, 3))
        self.windows, self.shape = windows, x.shape
        weight = self.params["w"]
        if self.depthwise:
            return np.einsum("nchwij,cij->nchw", windows, weight[:, 0], optimize=True)
        self.cols = windows.transpose(0, 2, 3, 1, 4, 5).reshape(n * h * w, -1)
        return (self.cols @ weight.reshape(len(weight), -1).T).reshape(n, h, w, -1).transpose(0, 3, 1, 2)

    def backward(self, g: Array) -> Array:
        weight = self.params["w"]
        n, c, h, w = self.shape
        p = self.k // 2
        out = np.zeros((n, c, h + 2 * p, w + 2 * p))
        if self.depthwise:
            self.grads["w"] = np.einsum("nchwij,nchw->cij", self.windows, g, optimize=True)[:, None]
            for i in range(self.k):
                for j in range(self.k):
                    out[:, :, i : i + h, j : j + w] += g * weight[None, :, 0, i, j, None, None]
        else:
            flat = g.transpose(0, 2, 3, 1).reshape(n * h * w, -1)
            self.grads["w"] = (flat.T @ self.cols).reshape(weight.shape)
            back = (flat @ weight.reshape(len(weight), -1)).reshape(n, h, w, c, self.k, self.k)
            for i in range(self.k):
                for j in range(self.k):
                    out[:, :, i : i + h, j : j + w] += back[..., i, j].transpose(0, 3, 1, 2)
        return out[:, :, p : p + h, p : p + w]


class BatchNorm(Layer):
    """Batch normalisation over N, H, W with running statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.params = {"g": np.ones(channels), "b": np.zeros(channels)}
        self.mean, self.var = np.zeros(channels), np.ones(channels)

    def forward(self, x: Array, train: bool) -> Array:
        mean, var = (x.mean((0, 2, 3)), x.var((0, 2, 3))) if train else (self.mean, self.var)
        if train:
            self.mean += 0.1 * (mean - self.mean)
            self.var += 0.1 * (var - self.var)
        self.std = np.sqrt(var + EPS)[None, :, None, None]
        self.hat = (x - mean[None, :, None, None]) / self.std
        return self.hat * self.params["g"][None, :, None, None] + self.params["b"][None, :, None, None]

    def backward(self, g: Array) -> Array:
        self.grads = {"g": (g * self.hat).sum((0, 2, 3)), "b": g.sum((0, 2, 3))}
        count = g.size / g.shape[1]
        g = g * self.params["g"][None, :, None, None]
        mean = g.sum((0, 2, 3), keepdims=True) / count
        corr = (g * self.hat).sum((0, 2, 3), keepdims=True) / count
        return (g - mean - self.hat * corr) / self.std


class Clip(Layer):
    """ReLU, or ReLU6 with `limit` 6."""

    def __init__(self, limit: float = np.inf) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Array, train: bool) -> Array:
        self.mask = (x > 0) & (x < self.limit)
        return np.clip(x, 0, self.limit)

    def backward(self, g: Array) -> Array:
        return g * self.mask


class MaxPool(Layer):
    """2x2 max pooling, stride 2."""

    def forward(self, x: Array, train: bool) -> Array:
        n, c, h, w = x.shape
        blocks = x.reshape(n, c, h // 2, 2, w // 2, 2)
        out = blocks.max((3, 5))
        self.mask = blocks == out[:, :, :, None, :, None]
        return out

    def backward(self, g: Array) -> Array:
        out = self.mask * g[:, :, :, None, :, None]
        n, c, h, _, w, _ = out.shape
        return out.reshape(n, c, 2 * h, 2 * w)


class Linear(Layer):
    """Global average pooling and a linear layer."""

    def __init__(self, rng: np.random.Generator, ic: int, oc: int) -> None:
        super().__init__()
        self.params = {"w": rng.normal(0, np.sqrt(1 / ic), (ic, oc)), "b": np.zeros(oc)}

    def forward(self, x: Array, train: bool) -> Array:
        self.shape, self.pooled = x.shape, x.mean((2, 3))
        return self.pooled @ self.params["w"] + self.params["b"]

    def backward(self, g: Array) -> Array:
        self.grads = {"w": self.pooled.T @ g, "b": g.sum(0)}
        n, c, h, w = self.shape
        return np.broadcast_to((g @ self.params["w"].T)[:, :, None, None] / (h * w), self.shape)


class Network:
    """The whole classifier; `residual` adds the input of the pointwise block to its output."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.stem = [Conv(rng, 1, 16, 3), BatchNorm(16), Clip()]
        self.block = [
            Conv(rng, 16, 16, 3, depthwise=True),
            BatchNorm(16),
            Clip(6.0),
            Conv(rng, 16, 16, 1),
            BatchNorm(16),
        ]
        self.tail = [Clip(), MaxPool(), Conv(rng, 16, 32, 3), BatchNorm(32), Clip(), Linear(rng, 32, 10)]

    @property
    def layers(self) -> list[Layer]:
        return [*self.stem, *self.block, *self.tail]

    def forward(self, x: Array, train: bool = False) -> Array:
        for layer in self.stem:
            x = layer.forward(x, train)
        skip = x
        for layer in self.block:
            x = layer.forward(x, train)
        x = x + skip
        for layer in self.tail:
            x = layer.forward(x, train)
        return x

    def backward(self, g: Array) -> None:
        for layer in reversed(self.tail):
            g = layer.backward(g)
        skip = g
        for layer in reversed(self.block):
            g = layer.backward(g)
        g = g + skip
        for layer in reversed(self.stem):
            g = layer.backward(g)


def train(images: Array, labels: Array, rng: np.random.Generator, epochs: int = 40) -> Network:
    """Adam with a cosine schedule; a little noise on the pictures as augmentation."""
    net = Network(rng)
    slots = [(layer, key) for layer in net.layers for key in layer.params]
    first = [np.zeros_like(layer.params[key]) for layer, key in slots]
    second = [np.zeros_like(layer.params[key]) for layer, key in slots]
    batch, step = 64, 0
    total = epochs * (len(images) // batch)
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for start in range(0, len(order) - batch + 1, batch):
            pick = order[start : start + batch]
            x = images[pick] + rng.normal(0, 0.05, images[pick].shape)
            logits = net.forward(x, train=True)
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            p[np.arange(batch), labels[pick]] -= 1
            net.backward(p / batch)
            step += 1
            rate = 3e-3 * 0.5 * (1 + np.cos(np.pi * step / total))
            for (layer, key), m, v in zip(slots, first, second, strict=True):
                grad = layer.grads[key]
                m += 0.1 * (grad - m)
                v += 0.001 * (grad * grad - v)
                layer.params[key] -= rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return net


def export(net: Network) -> onnx.ModelProto:
    """The network as ONNX (opset 17), batch-norm unfolded, symbolic batch axis."""
    nodes, constants, serial = [], [], _counter()

    def constant(array: Array) -> str:
        name = f"const{next(serial)}"
        constants.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def node(op: str, inputs: list[str], name: str, **attrs: object) -> str:
        nodes.append(helper.make_node(op, inputs, [name], name=f"/{name}", **attrs))
        return name

    def conv(layer: Conv, x: str, name: str) -> str:
        weight = constant(layer.params["w"])
        p = layer.k // 2
        group = len(layer.params["w"]) if layer.depthwise else 1
        return node(
            "Conv", [x, weight], name, kernel_shape=[layer.k] * 2, pads=[p] * 4, strides=[1, 1], group=group
        )

    def norm(layer: BatchNorm, x: str, name: str) -> str:
        arrays = [layer.params["g"], layer.params["b"], layer.mean, layer.var]
        return node("BatchNormalization", [x, *map(constant, arrays)], name, epsilon=EPS)

    x = norm(net.stem[1], conv(net.stem[0], "image", "stem_conv"), "stem_norm")
    skip = node("Relu", [x], "stem")
    x = norm(net.block[1], conv(net.block[0], skip, "depthwise_conv"), "depthwise_norm")
    x = node("Clip", [x, constant(np.array(0.0)), constant(np.array(6.0))], "depthwise")
    x = norm(net.block[4], conv(net.block[3], x, "pointwise_conv"), "pointwise_norm")
    x = node("Relu", [node("Add", [x, skip], "residual")], "block")
    x = node("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    x = norm(net.tail[3], conv(net.tail[2], x, "head_conv"), "head_norm")
    x = node("Flatten", [node("GlobalAveragePool", [node("Relu", [x], "head")], "average")], "features")
    last = net.tail[5]
    node("Gemm", [x, constant(last.params["w"].T), constant(last.params["b"])], "logits", transB=1)
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def _counter() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


def main(log: Callable[[str], None] = print) -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images[:, None] / 16.0).astype(np.float32)
    rng = np.random.default_rng(2026)
    order = rng.permutation(len(images))
    test, fit = order[:360], order[360:]
    net = train(images[fit].astype(np.float64), data.target[fit], rng)
    accuracy = (net.forward(images[test]).argmax(1) == data.target[test]).mean()
    log(f"accuracy on {len(test)} held-out digits: {accuracy:.2%}")
    onnx.save(export(net), HERE / "digits.onnx")
    np.savez_compressed(
        HERE / "digits_test.npz", image=images[test], labels=data.target[test].astype(np.int64)
    )
    np.savez_compressed(HERE / "digits_calib.npz", image=images[fit[:128]])


if __name__ == "__main__":
    main()
