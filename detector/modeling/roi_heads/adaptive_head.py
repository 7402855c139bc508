"""Box heads over every level's view of a region (Liu et al. 2018, PANet, arXiv 1803.01534, sec. 3.2, fig. 1c).

The first layer is each level's own; its outputs are fused element by element, and the rest is the ordinary head.
"""

from __future__ import annotations

from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.modeling.layers import ConvNorm, Norm, caffe2_msra_, caffe2_xavier_
from detector.schema.ranges import Width
from detector.schema.signatures import checked

FUSE = {"max": torch.maximum, "sum": torch.add}


@checked
class AdaptiveTwoFC(nn.Module):
    """`branches` maps (R, C, size, size) -> (R, width): a first layer for each level, `fuse`, one layer for all.

    The authors' code has a group norm after the second layer, the paper has none.

    Args:
        channels: C.
        size: cells of a pooled region along each side.
        branches: maps per region.
        width: features of both layers.
        fuse: how the levels' first layers are combined.
    """

    def __init__(
        self, channels: int, size: int, branches: int, *, width: Width = 1024, fuse: Literal["max", "sum"] = "max"
    ):
        super().__init__()
        _check_branches(branches)
        self.fc1 = nn.ModuleList(nn.Linear(channels * size**2, width) for _ in range(branches))
        self.fc2 = nn.Linear(width, width)
        caffe2_xavier_(self)
        self.fuse, self.width = FUSE[fuse], width

    def forward(self, xs: list[Tensor]) -> Tensor:
        x = reduce(self.fuse, [F.relu_(fc(x.flatten(1))) for fc, x in zip(self.fc1, xs, strict=True)])
        return F.relu_(self.fc2(x))


@checked
class AdaptiveConvFC(nn.Module):
    """`branches` maps (R, C, size, size) -> (R, width): 3x3 convolutions with norm, then one fully connected layer.

    Args:
        channels: C.
        size: cells of a pooled region along each side.
        branches: maps per region.
        convs: convolutions in a row; each level has its own first one, and `fuse` follows it.
        conv_width: channels of each convolution.
        width: features of the fully connected layer.
        norm: after each convolution; null: none.
        fuse: how the levels' first layers are combined.
    """

    def __init__(
        self, channels: int, size: int, branches: int, *, convs: Width = 4, conv_width: Width = 256, width: Width = 1024,
        norm: Norm | None = None, fuse: Literal["max", "sum"] = "max",
    ):  # fmt: skip
        super().__init__()
        _check_branches(branches)
        self.conv1 = nn.ModuleList(ConvNorm(channels, conv_width, 3, norm=norm) for _ in range(branches))
        self.convs = nn.ModuleList(ConvNorm(conv_width, conv_width, 3, norm=norm) for _ in range(convs - 1))
        self.fc1 = nn.Linear(conv_width * size**2, width)
        for layers in (self.conv1, self.convs):
            caffe2_msra_(layers)
        caffe2_xavier_(self.fc1)
        self.fuse, self.width = FUSE[fuse], width

    def forward(self, xs: list[Tensor]) -> Tensor:
        x = reduce(self.fuse, [F.relu_(conv(x)) for conv, x in zip(self.conv1, xs, strict=True)])
        for conv in self.convs:
            x = F.relu_(conv(x))
        return F.relu_(self.fc1(x.flatten(1)))


def _check_branches(branches: int) -> None:
    if branches < 2:
        raise ValueError(
            "this box head fuses several maps per region, and the pool gives one: choose model.roi_head.pool {type: all_levels}"
        )
