"""EfficientNet-Lite with an exit after every stage, as its users deploy it: no squeeze-excite,
ReLU6, batch norm folded into the convolutions.

(Liu, "Higher accuracy on vision models with EfficientNet-Lite", 2020: EfficientNet for integer
hardware. The padding is TensorFlow's, one more below and to the right where the stride asks for
it.)

The exit of a stage sees `u`, as in RevCol: the layer norm without affine of the pooled last map.
It is here to be timed, and there is no recipe that trains it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revcol import EPS


@dataclass(frozen=True)
class Spec:
    """Shape of a network. A group of blocks is (kernel, stride, expansion, channels, blocks)."""

    height: int
    width: int
    channels: int
    classes: int
    stem: int
    stages: tuple[tuple[tuple[int, ...], ...], ...]  # groups of each stage
    top: int  # channels of the convolution behind the last block

    @property
    def widths(self) -> list[tuple[int]]:
        """Channels that the exits see."""
        return [(stage[-1][3],) for stage in self.stages[:-1]] + [(self.top,)]


class Convolution(nn.Conv2d):
    """A convolution that keeps the side, or divides it by the stride."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(c_in, c_out, kernel, stride=stride, groups=groups)
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        nn.init.zeros_(self.bias)

    def pads(self, side: int) -> tuple[int, int]:
        """Zeros before and behind a map of this side."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        return total // 2, total - total // 2

    def forward(self, x: Tensor) -> Tensor:
        (top, bottom), (left, right) = self.pads(x.shape[2]), self.pads(x.shape[3])
        return super().forward(F.pad(x, (left, right, top, bottom)))


class Block(nn.Module):
    """1x1 to more channels, depthwise, 1x1 back; ReLU6 behind the first two, and a residual where
    shapes agree."""

    def __init__(self, kernel: int, stride: int, expansion: int, c_in: int, c_out: int) -> None:
        super().__init__()
        c = expansion * c_in
        self.expand = Convolution(c_in, c, 1) if expansion > 1 else None
        self.depthwise = Convolution(c, c, kernel, stride, groups=c)
        self.project = Convolution(c, c_out, 1)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class EfficientNet(nn.Module):
    """Images [N,H,W,Cin], normalised, to the exits' logits [E,N,K]."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.stem = Convolution(spec.channels, spec.stem, 3, 2)
        self.stages = nn.ModuleList()
        c_in = spec.stem
        for groups in spec.stages:
            blocks = []
            for kernel, stride, expansion, c, count in groups:
                for n in range(count):
                    blocks.append(Block(kernel, 1 if n else stride, expansion, c_in, c))
                    c_in = c
            self.stages.append(nn.Sequential(*blocks))
        self.top = Convolution(c_in, spec.top, 1)
        self.heads = nn.ModuleList(nn.Linear(c, spec.classes) for (c,) in spec.widths)

    def features(self, images: Tensor) -> list[Tensor]:
        """u of every exit: tensors [N, C_e] with |u|^2 = C_e."""
        x = F.relu6(self.stem(images.permute(0, 3, 1, 2)))
        features = []
        for stage in self.stages:
            x = stage(x)
            y = F.relu6(self.top(x)) if stage is self.stages[-1] else x
            pooled = y.mean(dim=(2, 3))
            features.append(F.layer_norm(pooled, pooled.shape[-1:], eps=EPS))
        return features

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([h(u) for h, u in zip(self.heads, self.features(images), strict=True)])

    def backbone_parameters(self) -> int:
        heads = sum(p.numel() for p in self.heads.parameters())
        return sum(p.numel() for p in self.parameters()) - heads


def macs(spec: Spec) -> list[int]:
    """Multiply-adds of each stage alone, its convolutions; the stem belongs to the first."""
    h, w, c_in = -(-spec.height // 2), -(-spec.width // 2), spec.stem
    counts = []
    for stage, groups in enumerate(spec.stages):
        n = 0 if stage else h * w * 9 * spec.channels * spec.stem
        for kernel, stride, expansion, c, blocks in groups:
            for block in range(blocks):
                wide = expansion * c_in
                n += h * w * c_in * wide if expansion > 1 else 0
                if block == 0:
                    h, w = -(-h // stride), -(-w // stride)
                n += h * w * wide * (kernel * kernel + c)
                c_in = c
        counts.append(n)
    counts[-1] += h * w * c_in * spec.top
    return counts
