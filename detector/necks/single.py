"""No neck: one map serves RPN and head, as before pyramids (Ren et al. 2015; FPN paper, table 1 a, b)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Single(nn.Module):
    """[C2..C5] -> [C5], as it is. A backbone of three stages ends in C4; a dilated C5 has C4's stride."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int]):
        super().__init__()
        self.channels, self.strides = list(channels[-1:]), list(strides[-1:])

    def forward(self, c: list[Tensor]) -> list[Tensor]:
        return c[-1:]
