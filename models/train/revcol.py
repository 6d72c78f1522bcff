"""RevCol with an exit after every column.

A column is a small ConvNeXt-like pyramid of four levels at strides 1, 2, 4
and 8 of the stem's output. Every further column reads the stem's output and
the four features of the column before it, and refines them:

    c0 <- a0 * c0 + L0(x + Up(c1))
    c1 <- a1 * c1 + L1(Down(c0 new) + Up(c2))
    c2 <- a2 * c2 + L2(Down(c1 new) + Up(c3))
    c3 <- a3 * c3 + L3(Down(c2 new))

(Cai et al., "Reversible Column Networks", ICLR 2023; on the right stand the
features of the column before, unless "new" is written.) The first column has
neither the lateral term `a * c` nor the way up. Columns may differ in width:
then a bias-free Linear takes the place of the per-channel factor `a`, and of
the identity on the stem's output.

The exit of a column sees `u`, the layer norm without affine of the global
average pool of c3, so that |u|^2 = C. Learning the head as `Linear(norm * u +
shift)` would add nothing to `Linear(u)`: the head is a plain Linear on u.

All activations are NHWC: the channels are last, so linear layers and layer
norms run over contiguous memory, and a convolution sees the same bytes as a
channels-last NCHW tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-6  # of every layer norm
MIN_ALPHA = 1e-3  # |alpha| stays above this, which keeps a column invertible


@dataclass(frozen=True)
class Spec:
    """Shape of a network. `widths[i][l]` and `blocks[i][l]` belong to column i, level l."""

    height: int
    width: int
    channels: int
    classes: int
    stem: int
    stem_kernel: int
    stem_stride: int
    stem_padding: int
    widths: tuple[tuple[int, ...], ...]
    blocks: tuple[tuple[int, ...], ...]

    @property
    def sides(self) -> list[tuple[int, int]]:
        """(height, width) of the four levels."""
        h, w = (
            (n + 2 * self.stem_padding - self.stem_kernel) // self.stem_stride + 1
            for n in (self.height, self.width)
        )
        assert h % 8 == 0 and w % 8 == 0, "the stem's output must halve three times"
        return [(h >> level, w >> level) for level in range(4)]


def convolve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A convolution from NHWC to NHWC."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Block(nn.Module):
    """Depthwise 3x3, layer norm, Linear C to 4C, exact GELU, Linear back, scale, residual."""

    def __init__(self, c: int, scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(c, c, 3, padding=1, groups=c)
        self.norm = nn.LayerNorm(c, eps=EPS)
        self.expand = nn.Linear(c, 4 * c)
        self.contract = nn.Linear(4 * c, c)
        self.gamma = nn.Parameter(torch.full((c,), scale))

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.expand(self.norm(convolve(x, self.depthwise))))
        # gamma on the weights: the same values as on the activations, with fewer passes over them
        weight, bias = self.gamma[:, None] * self.contract.weight, self.gamma * self.contract.bias
        return x + F.linear(y, weight, bias)


class Down(nn.Module):
    """Half the side: Conv 2x2 stride 2, layer norm."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 2, stride=2)
        self.norm = nn.LayerNorm(c_out, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(convolve(x, self.conv))


class Up(nn.Module):
    """Linear, layer norm; `add` repeats each position 2x2 onto a map of twice the side."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(c_in, c_out)
        self.norm = nn.LayerNorm(c_out, eps=EPS)

    def add(self, x: Tensor, coarse: Tensor) -> Tensor:
        n, h, w, c = x.shape
        up = self.norm(self.linear(coarse)).view(n, h // 2, 1, w // 2, 1, c)
        return (x.view(n, h // 2, 2, w // 2, 2, c) + up).view(n, h, w, c)


class Scale(nn.Module):
    """The lateral factor alpha per channel."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((c,), 0.5))

    def effective(self) -> Tensor:
        """alpha pushed away from zero; the gradient passes as if it had not been."""
        a = self.alpha
        away = torch.where(a < 0, a.clamp(max=-MIN_ALPHA), a.clamp(min=MIN_ALPHA))
        return a + (away - a).detach()

    def forward(self, x: Tensor) -> Tensor:
        return self.effective() * x


def lateral(c_in: int, c_out: int) -> nn.Module:
    return Scale(c_out) if c_in == c_out else nn.Linear(c_in, c_out, bias=False)


class Column(nn.Module):
    """One column: (x, c0..c3 of the column before or None) to the new c0..c3."""

    def __init__(
        self,
        stem: int,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        before: tuple[int, ...] | None,
        scale: float,
    ) -> None:
        super().__init__()
        self.entry = nn.Identity() if stem == widths[0] else nn.Linear(stem, widths[0], bias=False)
        self.down = nn.ModuleList(Down(widths[i], widths[i + 1]) for i in range(3))
        self.levels = nn.ModuleList(
            nn.Sequential(*(Block(c, scale) for _ in range(n)))
            for c, n in zip(widths, blocks, strict=True)
        )
        if before is None:
            self.up = self.lateral = None
        else:
            self.up = nn.ModuleList(Up(before[i + 1], widths[i]) for i in range(3))
            self.lateral = nn.ModuleList(map(lateral, before, widths))

    def forward(self, x: Tensor, before: list[Tensor] | None) -> list[Tensor]:
        out: list[Tensor] = []
        for level in range(4):
            y = self.down[level - 1](out[-1]) if level else self.entry(x)
            if before is not None and level < 3:
                y = self.up[level].add(y, before[level + 1])
            y = self.levels[level](y)
            if before is not None:
                y = y + self.lateral[level](before[level])
            out.append(y)
        return out


class RevCol(nn.Module):
    """Images [N,H,W,Cin], normalised, to the exits' logits [E,N,K]."""

    def __init__(self, spec: Spec, scale: float = 0.1) -> None:
        super().__init__()
        self.spec = spec
        self.stem = nn.Conv2d(
            spec.channels,
            spec.stem,
            spec.stem_kernel,
            stride=spec.stem_stride,
            padding=spec.stem_padding,
        )
        self.stem_norm = nn.LayerNorm(spec.stem, eps=EPS)
        befores = (None, *spec.widths[:-1])
        self.columns = nn.ModuleList(
            Column(spec.stem, widths, blocks, before, scale)
            for widths, blocks, before in zip(spec.widths, spec.blocks, befores, strict=True)
        )
        self.heads = nn.ModuleList(nn.Linear(w[-1], spec.classes) for w in spec.widths)

    def features(self, images: Tensor) -> list[Tensor]:
        """u of every exit: tensors [N, C_e] with |u|^2 = C_e."""
        x = self.stem_norm(convolve(images, self.stem))
        features, state = [], None
        for column in self.columns:
            state = column(x, state)
            pooled = state[3].float().mean(dim=(1, 2))
            features.append(F.layer_norm(pooled, pooled.shape[-1:], eps=EPS))
        return features

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([h(u) for h, u in zip(self.heads, self.features(images), strict=True)])

    def backbone_parameters(self) -> int:
        heads = sum(p.numel() for p in self.heads.parameters())
        return sum(p.numel() for p in self.parameters()) - heads


def macs(spec: Spec) -> list[int]:
    """Multiply-adds of each stage alone: its convolutions and linear layers, heads left out.

    Norms, GELU, sums and the factors alpha are not counted, as is the custom.
    The stem belongs to the first stage.
    """
    area = [h * w for h, w in spec.sides]
    counts = []
    before = None
    for widths, blocks in zip(spec.widths, spec.blocks, strict=True):
        n = 0
        if before is None:
            n += area[0] * spec.stem_kernel**2 * spec.channels * spec.stem
        if spec.stem != widths[0]:
            n += area[0] * spec.stem * widths[0]
        for level, c in enumerate(widths):
            n += area[level] * blocks[level] * (9 * c + 8 * c * c)
            if level:
                n += area[level] * 4 * widths[level - 1] * c
            if before is not None and level < 3:
                n += area[level + 1] * before[level + 1] * c
            if before is not None and before[level] != c:
                n += area[level] * before[level] * c
        counts.append(n)
        before = widths
    return counts
