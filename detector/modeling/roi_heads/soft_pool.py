"""Soft RoI selection (Guo et al. 2020, AugFPN, arXiv 1912.05384, sec. 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor

from detector.modeling.layers import glorot_
from detector.modeling.necks.augfpn import AdaptiveSpatialFusion
from detector.modeling.roi_heads.pool import AllLevelPool, Samples, Size
from detector.schema.ranges import Range


class SoftRoIPool(AllLevelPool):
    """Regions -> (R, C, size, size): a region's maps of all levels, weighted at every pixel by learnt weights.

    Args:
        channels: of every level.
        strides: of every level, in pixels.
        levels: how many levels, from the finest, regions are read from.
        size: cells of a pooled region along each side.
        samples: sampling points per bin and axis; 0: as many as the bin has cells, by torchvision's kernel.
        aligned: the half-pixel shift of Detectron2's ROIAlignV2.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], *, levels: Annotated[int, Range(2, 100)] = 4, size: Size = 7,
        samples: Samples = 2, aligned: bool = True,
    ):  # fmt: skip
        super().__init__(channels, strides, levels=levels, size=size, samples=samples, aligned=aligned)
        self.branches = 1
        self.attention = AdaptiveSpatialFusion(len(self.strides), self.channels)
        glorot_(self)

    def forward(self, p: list[Tensor], rois: Tensor) -> Tensor:
        """Levels (N, C, H, W) and (R, 5) rois -> (R, C, size, size)."""
        return self.attention(super().forward(p, rois))
