"""No neck: RPN and RoI head read one map, as in Faster R-CNN (Ren et al. 2015, arXiv 1506.01497).

These are baselines a and b of the FPN paper (Lin et al. 2017, arXiv 1612.03144, tables 1-3).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Single(nn.Module):
    """[C2..C5] -> [C5], the last map unchanged: C4 of a backbone with three stages; a dilated C5 has the stride of C4.

    Args:
        channels: of the backbone's maps [C2..C5].
        strides: pixels of the image between two cells of each of these maps.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int]):
        super().__init__()
        self.channels, self.strides = list(channels[-1:]), list(strides[-1:])

    def forward(self, c: list[Tensor]) -> list[Tensor]:
        return c[-1:]
