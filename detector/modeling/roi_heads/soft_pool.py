"""Soft RoI selection (Guo et al. 2020, AugFPN, arXiv 1912.05384, sec. 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from detector.modeling.layers import glorot_
from detector.modeling.necks.augfpn import AdaptiveSpatialFusion
from detector.modeling.roi_heads.pool import AllLevelPool


class SoftRoIPool(AllLevelPool):
    """Regions -> (R, C, size, size): a region's maps of all levels, weighed at every pixel by learnt weights.

    No rule assigns a region to a level. The options are AllLevelPool's.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], **options):
        super().__init__(channels, strides, **options)
        self.branches = 1
        self.attention = AdaptiveSpatialFusion(len(self.strides), self.channels)
        glorot_(self)

    def forward(self, p: list[Tensor], rois: Tensor) -> Tensor:
        """Levels (N, C, H, W) and (R, 5) rois -> (R, C, size, size)."""
        return self.attention(super().forward(p, rois))
