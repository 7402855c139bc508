"""AugFPN's neck (Guo et al. 2020, arXiv 1912.05384, sec. 3.1 and 3.2).

Consistent supervision is roi_heads/auxiliary.py, soft RoI selection is roi_heads/soft_pool.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.modeling.layers import glorot_
from detector.modeling.necks.fpn import subsample, up
from detector.schema.ranges import Width
from detector.schema.signatures import checked
from detector.structures import Features

RATIOS = (0.1, 0.2, 0.3)  # of C5's height and width, to which its context is pooled (authors' code)


@checked
class AugFPN(nn.Module):
    """[C2..C5] -> [P2..P6]: an FPN whose M5 gets back the context that was lost when a 1x1 convolution narrowed C5.

    In training it returns Features: the list of levels with the laterals before anything was added to them.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], *, width: Width = 256):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.residual = ResidualFeatureAugmentation(channels[-1], width)
        self.output = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        glorot_(self)
        self.channels, self.strides = [width] * (len(channels) + 1), [*strides, 2 * strides[-1]]
        self.lateral_strides = list(strides)

    def forward(self, c: list[Tensor]) -> list[Tensor]:
        laterals = [lateral(x) for lateral, x in zip(self.lateral, c, strict=True)]
        m = [*laterals[:-1], laterals[-1] + self.residual(c[-1])]
        for i in reversed(
            range(len(m) - 1)
        ):  # top-down: M4 = M4 + up(M5), then M3, then M2; `laterals` must not change
            m[i] = m[i] + up(m[i + 1], like=m[i])
        p = [output(x) for output, x in zip(self.output, m)]
        p.append(subsample(p[-1]))  # P6
        return Features(p, laterals) if self.training else p


class ResidualFeatureAugmentation(nn.Module):
    """C5 (N, C, H, W) -> what M5 gets, (N, width, H, W): C5's context at three scales, weighed pixel by pixel."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for _ in RATIOS)
        self.attention = AdaptiveSpatialFusion(len(RATIOS), width)

    def forward(self, c5: Tensor) -> Tensor:
        return self.attention([self._context(c5, ratio, lateral) for ratio, lateral in zip(RATIOS, self.lateral)])

    def _context(self, c5: Tensor, ratio: float, lateral: nn.Conv2d) -> Tensor:
        """Ratio-invariant adaptive pooling: to `ratio` of C5's height and width, so in its aspect ratio, and back."""
        size = c5.shape[-2:]
        pooled = F.adaptive_avg_pool2d(c5, [max(1, int(side * ratio)) for side in size])
        return F.interpolate(lateral(pooled), size=size, mode="bilinear", align_corners=True)


class AdaptiveSpatialFusion(nn.Sequential):
    """L maps (N, C, H, W) -> their sum (N, C, H, W), each weighed at every pixel by what all of them say there.

    The weights lie in 0..1 each and need not sum to 1.
    """

    def __init__(self, maps: int, width: int):
        super().__init__(
            nn.Conv2d(maps * width, width, 1), nn.ReLU(), nn.Conv2d(width, maps, 3, padding=1), nn.Sigmoid()
        )

    def forward(self, xs: list[Tensor]) -> Tensor:
        weights = super().forward(torch.cat(xs, dim=1))  # (N, L, H, W)
        return sum(w * x for w, x in zip(weights.split(1, dim=1), xs))
