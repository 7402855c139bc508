"""NAS-FPN, a feature pyramid found by search (Ghiasi, Lin and Le 2019, arXiv 1904.07392, sec. 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from detector.modeling.layers import ConvNorm, Norm, caffe2_xavier_
from detector.schema.ranges import Repeats, Width
from detector.schema.signatures import checked

STRIDES = [8, 16, 32]  # of C3..C5


@checked
class NASFPN(nn.Module):
    """[C3..C5] -> [P3..P7]; C2 is not read.

    Meant for images padded to multiples of 128; for other sizes `resize` makes maps fit. Raises ValueError for a backbone
    whose last three maps do not have strides 8, 16 and 32.

    Args:
        channels: of the backbone's maps [C2..C5].
        strides: pixels of the image between two cells of each of these maps.
        width: channels of every level.
        stacks: how many times the seven merging cells follow each other.
        norm: norm layer after each convolution; null: none.
        form: which map global pooling scales, the finer (authors) or the coarser (mmdetection); mmdetection also has 1x1
            convolutions before P6 and P7, so that weights of one form do not fit the other.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        width: Width = 256,
        stacks: Repeats = 7,
        norm: Norm | None = "batch",
        form: Literal["authors", "mmdetection"] = "authors",
    ):
        super().__init__()
        if list(strides[-3:]) != STRIDES:
            raise ValueError(f"NAS-FPN makes P3..P7 of maps of strides {STRIDES}, got {list(strides)}")
        mmdetection = form == "mmdetection"
        self.lateral = nn.ModuleList(ConvNorm(c, width, 1, norm=norm) for c in channels[-3:])
        self.extra = nn.ModuleList(
            ConvNorm(width, width, 1, norm=norm) if mmdetection else nn.Identity() for _ in ("P6", "P7")
        )
        self.halve = halve_floor if mmdetection else halve_ceil
        gate = gate_high if mmdetection else gate_low
        self.stacks = nn.ModuleList(PyramidNetwork(width, norm, gate) for _ in range(stacks))
        caffe2_xavier_(self)
        self.channels = [width] * 5
        self.strides = [*STRIDES, 64, 128]

    def forward(self, c: list[Tensor]) -> list[Tensor]:
        p = [lateral(x) for lateral, x in zip(self.lateral, c[-3:], strict=True)]
        for extra in self.extra:  # P6 from P5, P7 from P6
            p.append(self.halve(extra(p[-1])))
        for stack in self.stacks:
            p = stack(p)
        return p


class PyramidNetwork(nn.Module):
    """One stack: the seven merging cells of the searched architecture, in its order.

    A cell's name gives operation, inputs and output: gp_64_4 merges P6 and P4 by global pooling into a P4, sum_43_3 adds.
    """

    def __init__(self, width: int, norm: Norm | None, gate: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.gate = gate
        self.gp_64_4 = MergingCell(width, norm)
        self.sum_44_4 = MergingCell(width, norm)
        self.sum_43_3 = MergingCell(width, norm)
        self.sum_34_4 = MergingCell(width, norm)
        self.gp_43_5 = MergingCell(width, norm)
        self.gp_54_7 = MergingCell(width, norm)
        self.gp_75_6 = MergingCell(width, norm)

    def forward(self, p: list[Tensor]) -> list[Tensor]:
        """[P3..P7] -> [P3..P7]. No cell reads the inputs P5 and P7, so they are added to the outputs of their levels.

        `p3` to `p7` are the inputs of a level until its output cell, and its output afterwards.
        """
        p3, p4, p5, p6, p7 = p
        gp = self.gate
        p4_1 = self.gp_64_4(gp(resize(p6, p4), p4))
        p4_2 = self.sum_44_4(p4_1 + p4)
        p3 = self.sum_43_3(resize(p4_2, p3) + p3)
        p4 = self.sum_34_4(resize(p3, p4) + p4_2)
        p5 = self.gp_43_5(gp(resize(p4, p5), resize(p3, p5)) + p5)
        p7 = self.gp_54_7(gp(resize(p5, p7), resize(p4_2, p7)) + p7)
        p6 = self.gp_75_6(gp(resize(p7, p6), resize(p5, p6)))
        return [p3, p4, p5, p6, p7]


class MergingCell(ConvNorm):
    """norm(conv(relu(x))) of the merged map x; the convolution has a bias even before a norm."""

    def __init__(self, width: int, norm: Norm | None):
        super().__init__(width, width, 3, norm=norm, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.relu_(x))  # in place: nothing else reads the merged map


def gate_low(high: Tensor, low: Tensor) -> Tensor:
    """Global pooling, authors' code: the maxima of the high (coarser) level gate the low level, which is added to it."""
    return high + low * high.amax(dim=(-2, -1), keepdim=True).sigmoid()


def gate_high(high: Tensor, low: Tensor) -> Tensor:
    """Global pooling, MMDetection: the means of the low (finer) level gate the high level, which is added to it."""
    return low + high * low.mean(dim=(-2, -1), keepdim=True).sigmoid()


def resize(x: Tensor, like: Tensor) -> Tensor:
    """x at the size of `like`: a finer one by nearest neighbour, a coarser one by the maximum of blocks.

    Where the blocks do not fit, the map is padded by zeros, with the odd row or column below and to the right (MMDetection).
    """
    size = like.shape[-2:]
    if x.shape[-2:] < size:  # compares heights, then widths, as in MMDetection
        return F.interpolate(x, size=size, mode="nearest")
    block = [-(-side // target) for side, target in zip(x.shape[-2:], size)]
    rows, columns = (b * target - side for b, side, target in zip(block, x.shape[-2:], size))  # of padding
    if rows or columns:
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    return F.max_pool2d(x, block)


def halve_ceil(x: Tensor) -> Tensor:
    """Half the size, rounded up: the maximum of 2x2 blocks; the last block of an odd side is smaller."""
    return F.max_pool2d(x, 2, ceil_mode=True)


def halve_floor(x: Tensor) -> Tensor:
    """Half the size, rounded down, but at least 1: the maximum of 2x2 blocks; the last row of an odd side is dropped."""
    return F.max_pool2d(x, [min(2, side) for side in x.shape[-2:]], stride=2)
