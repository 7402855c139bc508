"""Feature pyramid network (Lin et al. 2017, arXiv 1612.03144, sec. 3, fig. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.modeling.convolution import Conv2d
from detector.modeling.layers import ConvNorm, Norm, caffe2_xavier_
from detector.schema.ranges import Width
from detector.schema.signatures import checked


@checked
class FPN(nn.Module):
    """[C2..C5] -> [P2..P6], or [P2..P7] where convolutions make the extra levels.

    Args:
        channels: of the backbone's maps [C2..C5].
        strides: pixels of the image between two cells of each of these maps.
        width: channels of every level.
        norm: norm layer after each convolution; null: none.
        fuse: how a lateral and the upsampled map above it become M_k; average is Detectron2's fuse_type avg.
        extra: pool makes P6 of every second row and column of P5 (footnote 1); c5, m5 and p5 make P6 and P7 by two
            strided convolutions of C5, of the merged map M5 (MMDetection's on_lateral) or of P5 (RetinaNet, Lin et al.
            2017, arXiv 1708.02002, sec. 4).
        extra_relu: whether a ReLU comes between these two convolutions.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        width: Width = 256,
        norm: Norm | None = None,
        fuse: Literal["sum", "average"] = "sum",
        extra: Literal["pool", "c5", "m5", "p5"] = "pool",
        extra_relu: bool = True,
    ):
        super().__init__()
        self.lateral = nn.ModuleList(ConvNorm(c, width, 1, norm=norm) for c in channels)
        self.output = nn.ModuleList(ConvNorm(width, width, 3, norm=norm) for _ in channels)
        self.fuse = fuse_average if fuse == "average" else torch.add
        c_in = channels[-1] if extra == "c5" else width
        self.extra = PoolP6() if extra == "pool" else ConvP6P7(c_in, width, relu=extra_relu)
        self.extra_from = "p5" if extra == "pool" else extra
        caffe2_xavier_(self)
        levels = len(channels) + self.extra.levels
        self.channels = [width] * levels
        self.strides = [*strides, *(strides[-1] * 2**i for i in range(1, self.extra.levels + 1))]

    def forward(self, c: list[Tensor]) -> list[Tensor]:
        m = [lateral(x) for lateral, x in zip(self.lateral, c, strict=True)]
        for i in reversed(range(len(m) - 1)):  # top-down: M4 = fuse(M4, up(M5)), then M3, then M2
            m[i] = self.fuse(m[i], up(m[i + 1], like=m[i]))
        p = [output(x) for output, x in zip(self.output, m)]
        return p + self.extra({"c5": c, "m5": m, "p5": p}[self.extra_from][-1])


def up(x: Tensor, *, like: Tensor) -> Tensor:
    """x at the size of the next finer map, by nearest neighbour."""
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")


def subsample(x: Tensor) -> Tensor:
    """Every second row and column: P6 of P5 (footnote 1)."""
    return F.max_pool2d(x, kernel_size=1, stride=2)


def fuse_average(lateral: Tensor, top_down: Tensor) -> Tensor:
    """The mean of the two maps; the top-down path continues from this mean."""
    return (lateral + top_down) / 2


class PoolP6(nn.Module):
    """P6, which only the RPN reads, by subsampling P5."""

    levels = 1

    def forward(self, p5: Tensor) -> list[Tensor]:
        return [subsample(p5)]


class ConvP6P7(nn.Module):
    """P6 = conv(x) and P7 = conv(relu(P6)), both 3x3 with stride 2; without `relu`, P7 = conv(P6)."""

    levels = 2

    def __init__(self, c_in: int, width: int, *, relu: bool):
        super().__init__()
        self.relu = nn.ReLU() if relu else nn.Identity()
        self.p6 = Conv2d(c_in, width, 3, stride=2, padding=1)
        self.p7 = Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        p6 = self.p6(x)
        return [p6, self.p7(self.relu(p6))]
