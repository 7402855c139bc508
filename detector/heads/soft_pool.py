"""Soft RoI selection (Guo et al. 2020, AugFPN, arXiv 1912.05384, sec. 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detector.heads.pool import AllLevelPool


class SoftRoIPool(AllLevelPool):
    """Regions -> (R, C, size, size): a region's maps of all levels, weighed at every pixel by learnt weights.

    No rule assigns a region to a level. The weights lie in 0..1 each and need not sum to 1. The options are AllLevelPool's.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], **options):
        super().__init__(channels, strides, **options)
        self.branches = 1
        c, levels = self.channels, len(self.strides)
        self.attention = nn.Sequential(
            nn.Conv2d(levels * c, c, 1), nn.ReLU(), nn.Conv2d(c, levels, 3, padding=1), nn.Sigmoid()
        )
        for conv in (self.attention[0], self.attention[2]):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, p: list[Tensor], rois: Tensor) -> Tensor:
        """Levels (N, C, H, W) and (R, 5) rois -> (R, C, size, size)."""
        pooled = super().forward(p, rois)
        weights = self.attention(torch.cat(pooled, dim=1))  # (R, L, size, size)
        return sum(w * x for w, x in zip(weights.split(1, dim=1), pooled))
