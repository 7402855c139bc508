"""No neck: one map serves RPN and head, as before pyramids (Ren et al. 2015, arXiv 1506.01497).

The FPN paper's baselines a and b (Lin et al. 2017, arXiv 1612.03144, tables 1-3).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Single(nn.Module):
    """[C2..C5] -> [C5], the last map as it is: C4 of a backbone of three stages; a dilated C5 has C4's stride."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int]):
        super().__init__()
        self.channels, self.strides = list(channels[-1:]), list(strides[-1:])

    def forward(self, c: list[Tensor]) -> list[Tensor]:
        return c[-1:]
