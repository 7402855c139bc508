"""Libra R-CNN's balanced feature pyramid (Pang et al. 2019, arXiv 1904.02701, sec. 3.2, fig. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from detector.modeling.convolution import Conv2d
from detector.modeling.layers import caffe2_msra_, normal_
from detector.modeling.necks.fpn import FPN
from detector.schema.ranges import Width
from detector.schema.signatures import checked


@checked
class BFP(nn.Module):
    """[C2..C5] -> [P2..P6]: an FPN, then the refined mean of all levels is added to each level.

    P6 is among them, as in MMDetection; the paper's fig. 4 ends at P5.

    Args:
        channels: of the backbone's maps [C2..C5].
        strides: pixels of the image between two cells of each of these maps.
        width: channels of every level.
        refine: layer that refines the mean, a non-local block or a 3x3 convolution with a ReLU.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        width: Width = 256,
        refine: Literal["non_local", "conv"] = "non_local",
    ):
        super().__init__()
        self.fpn = FPN(channels, strides, width=width)
        self.refine = {"non_local": NonLocal, "conv": ConvReLU}[refine](width)
        self.channels, self.strides = self.fpn.channels, self.fpn.strides

    def forward(self, c: list[Tensor]) -> list[Tensor]:
        return self.balance(self.fpn(c))

    def balance(self, p: list[Tensor]) -> list[Tensor]:
        """Gather at the middle level (P4 of P2..P6), average, refine, scatter."""
        middle = p[len(p) // 2].shape[-2:]
        balanced = self.refine(sum(resize_to(x, middle) for x in p) / len(p))
        return [x + resize_to(balanced, x.shape[-2:]) for x in p]


def resize_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """(N, C, H, W) -> (N, C, *size): a larger size by nearest neighbour, a smaller one by adaptive max pooling."""
    if size[0] > x.shape[-2] or size[1] > x.shape[-1]:
        return F.interpolate(x, size=size, mode="nearest")
    return F.adaptive_max_pool2d(x, size)


class ConvReLU(nn.Module):
    """3x3 convolution and ReLU."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = Conv2d(width, width, 3, padding=1)
        caffe2_msra_(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class NonLocal(nn.Module):
    """x + out(softmax(theta(x)^T phi(x)) g(x)): attention of every pixel over all pixels, in the embedded-Gaussian form.

    Wang et al. 2018, arXiv 1711.07971, sec. 3.2 and 3.3, without halved channels and without subsampling. `out` is
    initialised to 0, so the block starts as the identity.
    """

    def __init__(self, width: int):
        super().__init__()
        self.theta, self.phi, self.g, self.out = (Conv2d(width, width, 1) for _ in range(4))
        for conv in (self.theta, self.phi, self.g):
            normal_(conv, std=0.01)
        normal_(self.out, std=0)

    def forward(self, x: Tensor) -> Tensor:
        theta, phi, g = (conv(x).flatten(2) for conv in (self.theta, self.phi, self.g))  # (N, C, H*W) each
        attention = (theta.transpose(1, 2) @ phi).softmax(dim=-1)  # (N, H*W, H*W), rows sum to 1
        y = (attention @ g.transpose(1, 2)).transpose(1, 2)  # (N, H*W, C) -> (N, C, H*W)
        return x + self.out(y.unflatten(2, x.shape[-2:]))
