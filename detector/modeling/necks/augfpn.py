"""AugFPN's neck (Guo et al. 2020, arXiv 1912.05384, sec. 3.1 and 3.2).

Consistent supervision is roi_heads/auxiliary.py, soft RoI selection is roi_heads/soft_pool.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.modeling.convolution import Conv2d
from detector.modeling.layers import glorot_
from detector.modeling.necks.fpn import subsample, up
from detector.schema.ranges import Width
from detector.schema.signatures import checked
from detector.structures import Features

RATIOS = (0.1, 0.2, 0.3)  # of C5's height and width, to which its context is pooled (authors' code)


@checked
class AugFPN(nn.Module):
    """[C2..C5] -> [P2..P6]: an FPN whose M5 regains context that C5 loses in its 1x1 convolution.

    In training it returns Features: the list of levels with the `laterals` before fusion, which auxiliary losses read.

    Args:
        channels: of the backbone's maps [C2..C5].
        strides: pixels of the image between two cells of each of these maps.
        width: channels of every level.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], *, width: Width = 256):
        super().__init__()
        self.lateral = nn.ModuleList(Conv2d(c, width, 1) for c in channels)
        self.residual = ResidualFeatureAugmentation(channels[-1], width)
        self.output = nn.ModuleList(Conv2d(width, width, 3, padding=1) for _ in channels)
        glorot_(self)
        self.channels, self.strides = [width] * (len(channels) + 1), [*strides, 2 * strides[-1]]
        self.lateral_strides = list(strides)

    def forward(self, c: list[Tensor]) -> list[Tensor]:
        laterals = [lateral(x) for lateral, x in zip(self.lateral, c, strict=True)]
        m = [*laterals[:-1], laterals[-1] + self.residual(c[-1])]
        for i in reversed(range(len(m) - 1)):  # top-down: M4 = M4 + up(M5), then M3, then M2
            m[i] = m[i] + up(m[i + 1], like=m[i])  # not in place: `laterals` must not change
        p = [output(x) for output, x in zip(self.output, m)]
        p.append(subsample(p[-1]))  # P6
        return Features(p, laterals) if self.training else p


class ResidualFeatureAugmentation(nn.Module):
    """C5 (N, C, H, W) -> the residual of M5, (N, width, H, W): context of C5 at three scales, weighted per pixel."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.lateral = nn.ModuleList(Conv2d(channels, width, 1) for _ in RATIOS)
        self.attention = AdaptiveSpatialFusion(len(RATIOS), width)

    def forward(self, c5: Tensor) -> Tensor:
        return self.attention([self._context(c5, ratio, lateral) for ratio, lateral in zip(RATIOS, self.lateral)])

    def _context(self, c5: Tensor, ratio: float, lateral: nn.Conv2d) -> Tensor:
        """Ratio-invariant adaptive pooling: to `ratio` of C5's height and width, then back to its size."""
        size = c5.shape[-2:]
        pooled = F.adaptive_avg_pool2d(c5, [max(1, int(side * ratio)) for side in size])
        return F.interpolate(lateral(pooled), size=size, mode="bilinear", align_corners=True)


class AdaptiveSpatialFusion(nn.Sequential):
    """L maps (N, C, H, W) -> their weighted sum (N, C, H, W); convolutions over all L maps give the weights of a pixel.

    Each weight lies in 0..1; they need not sum to 1.
    """

    def __init__(self, maps: int, width: int):
        super().__init__(Conv2d(maps * width, width, 1), nn.ReLU(), Conv2d(width, maps, 3, padding=1), nn.Sigmoid())

    def forward(self, xs: list[Tensor]) -> Tensor:
        weights = super().forward(torch.cat(xs, dim=1))  # (N, L, H, W)
        return sum(w * x for w, x in zip(weights.split(1, dim=1), xs))
