"""From a pooled region to a vector: the two heads of FPN (sec. 4.2) and of group norm (Wu & He 2018)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from detector.modeling.layers import ConvNorm, Norm, caffe2_msra_, caffe2_xavier_
from detector.schema.ranges import Width
from detector.schema.signatures import checked


@checked
class TwoFC(nn.Module):
    """(R, C, size, size) -> (R, width): two fully connected layers.

    Args:
        channels: C.
        size: cells of a pooled region along each side.
        width: features of both layers.
    """

    def __init__(self, channels: int, size: int, *, width: Width = 1024):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels * size**2, width), nn.Linear(width, width)
        caffe2_xavier_(self)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.fc2(F.relu_(self.fc1(x.flatten(1)))))


@checked
class ConvFC(nn.Module):
    """(R, C, size, size) -> (R, width): 3x3 convolutions with norm, then one fully connected layer.

    Args:
        channels: C.
        size: cells of a pooled region along each side.
        convs: number of convolutions before the fully connected layers.
        conv_width: channels of each convolution.
        width: features of the fully connected layer.
        norm: after each convolution; null: none.
    """

    def __init__(
        self, channels: int, size: int, *, convs: Width = 4, conv_width: Width = 256, width: Width = 1024,
        norm: Norm | None = None,
    ):  # fmt: skip
        super().__init__()
        widths = [channels] + [conv_width] * convs
        self.convs = nn.ModuleList(ConvNorm(a, b, 3, norm=norm) for a, b in zip(widths, widths[1:]))
        self.fc1 = nn.Linear(conv_width * size**2, width)
        caffe2_msra_(self.convs)
        caffe2_xavier_(self.fc1)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu_(conv(x))
        return F.relu_(self.fc1(x.flatten(1)))
