"""Path aggregation network (Liu et al. 2018, arXiv 1803.01534, sec. 3.1, fig. 1b), in mmdetection's form."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from detector.layers import ConvNorm, c2_xavier_
from detector.necks.fpn import FPN


class PANet(nn.Module):
    """[C2..C5] -> [N2..N6]: an FPN, then a short bottom-up path over its outputs.

    mmdetection's form departs from the paper in two places, which its published weights need: no ReLU after the
    convolutions, and the path goes on from the sum S_l itself, not from the convolved N_l.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], *, width: int = 256):
        super().__init__()
        if any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
            raise ValueError(f"the bottom-up path halves its maps, which have strides {list(strides)}")
        self.fpn = FPN(channels, strides, width=width)
        self.down = nn.ModuleList(ConvNorm(width, width, 3, stride=2) for _ in channels[1:])
        self.output = nn.ModuleList(ConvNorm(width, width, 3) for _ in channels[1:])
        for layer in [*self.down, *self.output]:
            c2_xavier_(layer.conv)
        self.channels, self.strides = self.fpn.channels, self.fpn.strides

    def forward(self, c: list[Tensor]) -> list[Tensor]:
        *s, _ = self.fpn(c)  # P2..P5; the path makes its own top level
        for i, down in enumerate(self.down):  # bottom-up: S3 = P3 + down(S2), then S4, then S5
            s[i + 1] = s[i + 1] + down(s[i])
        n = [s[0]] + [output(x) for output, x in zip(self.output, s[1:])]
        return n + [F.max_pool2d(n[-1], kernel_size=1, stride=2)]  # N6
