"""The FPN without one of its parts (Lin et al. 2017, arXiv 1612.03144, sec. 5.1 and 5.2, tables 1 and 2, rows d-f).

Each level has its own 1x1 convolution l and 3x3 convolution o; `up` enlarges a map to the size of the next finer one:
    fpn         P_k = o(M_k),  M_k = l(C_k) + up(M_(k+1)),  M_5 = l(C_5)
    bottom_up   P_k = o(l(C_k))
    top_down    P_k = o(M_k),  M_k = up(M_(k+1)),  M_5 = l(C_5)
    finest      P_2 of fpn alone (fig. 2, top)
    hierarchy   P_k = l(C_k) (fig. 1c)
P_6, except in finest, is every second row and column of P_5.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from detector.modeling.layers import ConvNorm, caffe2_xavier_
from detector.modeling.necks.fpn import subsample, up
from detector.schema.ranges import Width
from detector.schema.signatures import checked


@checked
class BottomUp(nn.Module):
    """[C2..C5] -> [P2..P6]: an FPN without the top-down path (table 1d); a level depends on its own map alone.

    Args:
        channels: of the backbone's maps [C2..C5].
        strides: pixels of the image between two cells of each of these maps.
        width: channels of every level.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], *, width: Width = 256):
        super().__init__()
        self.lateral, self.output = _convs(channels, width, 1), _convs([width] * len(channels), width, 3)
        self.channels, self.strides = [width] * (len(channels) + 1), [*strides, 2 * strides[-1]]

    def forward(self, c: list[Tensor]) -> list[Tensor]:
        m = [lateral(x) for lateral, x in zip(self.lateral, c, strict=True)]
        p = [output(x) for output, x in zip(self.output, m)]
        return [*p, subsample(p[-1])]


@checked
class TopDown(nn.Module):
    """[C2..C5] -> [P2..P6]: an FPN without laterals (table 1e); every level is C5 enlarged.

    The 1x1 convolution of C5 remains, because it sets the width; the paper does not say whether it kept it.

    Args:
        channels: of the backbone's maps [C2..C5].
        strides: pixels of the image between two cells of each of these maps.
        width: channels of every level.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], *, width: Width = 256):
        super().__init__()
        self.lateral, self.output = _convs(channels[-1:], width, 1), _convs([width] * len(channels), width, 3)
        self.channels, self.strides = [width] * (len(channels) + 1), [*strides, 2 * strides[-1]]

    def forward(self, c: list[Tensor]) -> list[Tensor]:
        m = [self.lateral[0](c[-1])]
        for finer in reversed(c[:-1]):  # only the sizes of C4, C3 and C2 are read
            m.insert(0, up(m[0], like=finer))
        p = [output(x) for output, x in zip(self.output, m, strict=True)]
        return [*p, subsample(p[-1])]


@checked
class Finest(nn.Module):
    """[C2..C5] -> [P2]: an FPN of which only the finest map is used (table 1f), for anchors of all sizes.

    Args:
        channels: of the backbone's maps [C2..C5].
        strides: pixels of the image between two cells of each of these maps.
        width: channels of the level.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], *, width: Width = 256):
        super().__init__()
        self.lateral, self.output = _convs(channels, width, 1), _convs([width], width, 3)
        self.channels, self.strides = [width], list(strides[:1])

    def forward(self, c: list[Tensor]) -> list[Tensor]:
        *finer, m = [lateral(x) for lateral, x in zip(self.lateral, c, strict=True)]
        for x in reversed(finer):  # top-down: M4 = l(C4) + up(M5), then M3, then M2
            m = x + up(m, like=x)
        return [self.output[0](m)]


@checked
class Hierarchy(nn.Module):
    """[C2..C5] -> [P2..P6]: a 1x1 convolution for each map of the backbone and nothing else (fig. 1c), as in SSD.

    The convolutions are needed because all levels share the RPN and the box head, which read one width. The paper draws
    this form and measures BottomUp instead (sec. 5.1).

    Args:
        channels: of the backbone's maps [C2..C5].
        strides: pixels of the image between two cells of each of these maps.
        width: channels of every level.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], *, width: Width = 256):
        super().__init__()
        self.lateral = _convs(channels, width, 1)
        self.channels, self.strides = [width] * (len(channels) + 1), [*strides, 2 * strides[-1]]

    def forward(self, c: list[Tensor]) -> list[Tensor]:
        p = [lateral(x) for lateral, x in zip(self.lateral, c, strict=True)]
        return [*p, subsample(p[-1])]


def _convs(channels: Sequence[int], width: int, kernel: int) -> nn.ModuleList:
    """For each of `channels` a convolution to `width` channels."""
    convs = nn.ModuleList(ConvNorm(c, width, kernel) for c in channels)
    caffe2_xavier_(convs)
    return convs
