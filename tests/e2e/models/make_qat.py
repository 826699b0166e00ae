"""Train a small network for digits with PyTorch's quantization in mind and export it: ``qat_channel.onnx``, ``qat_tensor.onnx``.

    python make_qat.py channel|tensor

Convolutions with batch normalization, depthwise ones, residual sums, pooling and a linear layer, in eager mode (PyTorch 2.15, torchvision not
needed). ``channel``: uint8 activations, weights with a scale per channel; ``tensor``: int8 activations of zero point 0, one scale per weight.
The data are scikit-learn's digits, 1400 of them, over 16.
"""

from __future__ import annotations

import sys

import torch
import torch.ao.quantization as quant
from sklearn.datasets import load_digits
from torch import nn


class Block(nn.Module):
    """A depthwise and a pointwise convolution, and a residual sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.dw = nn.Sequential(depthwise, nn.BatchNorm2d(channels), nn.ReLU())
        self.pw = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.add = nn.quantized.FloatFunctional()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        return self.add.add(self.pw(self.dw(x)), x)


class Net(nn.Module):
    """Two blocks between a convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = quant.QuantStub(), quant.DeQuantStub()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.b1, self.b2 = Block(16), Block(16)
        self.pool, self.avg = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of pictures ``[n, 1, 8, 8]``."""
        x = self.pool(self.b1(self.stem(self.quant(x))))
        return self.dequant(self.fc(torch.flatten(self.avg(self.b2(x)), 1)))


def settings(kind: str) -> quant.QConfig:
    """Rounding of activations and weights."""
    fake, average = quant.FakeQuantize.with_args, quant.MovingAverageMinMaxObserver
    signed = {"quant_min": -128, "quant_max": 127, "dtype": torch.qint8}
    if kind == "channel":
        per_channel = quant.MovingAveragePerChannelMinMaxObserver
        return quant.QConfig(
            activation=fake(observer=average, quant_min=0, quant_max=255, dtype=torch.quint8),
            weight=fake(observer=per_channel, qscheme=torch.per_channel_symmetric, **signed),
        )
    plain = fake(observer=average, qscheme=torch.per_tensor_symmetric, **signed)
    return quant.QConfig(activation=plain, weight=plain)


def main() -> None:
    """Train, and write the file."""
    kind = sys.argv[1]
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    y = torch.tensor(digits.target)
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[:1400]
    net = Net().train()
    groups = [["stem.0", "stem.1", "stem.2"]]
    groups += [[f"b{i}.dw.{j}" for j in range(3)] for i in (1, 2)]
    groups += [[f"b{i}.pw.{j}" for j in range(2)] for i in (1, 2)]
    quant.fuse_modules_qat(net, groups, inplace=True)
    net.qconfig = settings(kind)
    quant.prepare_qat(net, inplace=True)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for epoch in range(8):
        if epoch == 6:
            net.apply(quant.disable_observer)
            net.apply(nn.intrinsic.qat.freeze_bn_stats)
        for batch in torch.randperm(len(chosen)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[chosen[batch]]), y[chosen[batch]]).backward()
            optimizer.step()
    net.eval()
    net.apply(quant.disable_observer)
    names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "n"}}}
    torch.onnx.export(net, x[:1], f"qat_{kind}.onnx", opset_version=13, dynamo=False, **names)


if __name__ == "__main__":
    main()
