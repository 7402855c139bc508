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
    """[C3..C5] -> [P3..P7], every map of `width` channels, through `stacks` stacks of the seven cells; C2 is not read.

    `form`: "authors" or "mmdetection"; the weights of one do not serve the other. Global pooling scales the finer of
    two maps in the authors' code (`gate_low`), the coarser in mmdetection's (`gate_high`), which also has a 1x1
    convolution before each of the poolings that make P6 and P7. Made for images padded to multiples of 128; on others
    `resize` makes maps fit. Raises ValueError for a backbone whose last maps are not of strides 8, 16 and 32.
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
            raise ValueError(f"NAS-FPN makes P3..P7 of maps of strides {STRIDES}, the backbone's: {list(strides)}")
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
    """One stack: the seven merging cells that the search found, in the order in which it built them.

    A cell's name says how, what and where: gp_64_4 merges P6 and P4 by global pooling into a P4, sum_43_3 adds.
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
        """[P3..P7] -> [P3..P7]. The inputs P5 and P7, which no cell reads, are added to the outputs of their levels.

        A level's name is its input until a cell makes its output, and that output from there on.
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
    """What a cell does with the merged map x: norm(conv(relu(x))). The convolution keeps its bias before a norm, too."""

    def __init__(self, width: int, norm: Norm | None):
        super().__init__(width, width, 3, norm=norm, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.relu_(x))  # in place: nobody else reads the merged map


def gate_low(high: Tensor, low: Tensor) -> Tensor:
    """Global pooling, authors' code: the high (coarser) level's maxima say how much of the low level is added to it."""
    return high + low * high.amax(dim=(-2, -1), keepdim=True).sigmoid()


def gate_high(high: Tensor, low: Tensor) -> Tensor:
    """Global pooling, mmdetection: the low (finer) level's means say how much of the high level is added to it."""
    return low + high * low.mean(dim=(-2, -1), keepdim=True).sigmoid()


def resize(x: Tensor, like: Tensor) -> Tensor:
    """x at the size of a finer map by nearest neighbour, of a coarser one by the maximum of blocks.

    Where the blocks do not fit, zeros go around the map, the odd row or column to the right and below (mmdetection).
    """
    size = like.shape[-2:]
    if x.shape[-2:] < size:  # by height and, of equal heights, by width: mmdetection's comparison too
        return F.interpolate(x, size=size, mode="nearest")
    block = [-(-side // target) for side, target in zip(x.shape[-2:], size)]
    rows, columns = (b * target - side for b, side, target in zip(block, x.shape[-2:], size))  # that are missing
    if rows or columns:
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    return F.max_pool2d(x, block)


def halve_ceil(x: Tensor) -> Tensor:
    """Half the size, rounded up: the maximum of 2x2 blocks, cut off at the end of an odd side."""
    return F.max_pool2d(x, 2, ceil_mode=True)


def halve_floor(x: Tensor) -> Tensor:
    """Half the size, rounded down, but at least 1: the maximum of 2x2 blocks, without the last row of an odd side."""
    return F.max_pool2d(x, [min(2, side) for side in x.shape[-2:]], stride=2)
