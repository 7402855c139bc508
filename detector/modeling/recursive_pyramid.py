"""Recursive feature pyramid (Qiao et al. 2020, DetectoRS, arXiv 2006.02334, sec. 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.modeling.layers import caffe2_msra_
from detector.schema.ranges import Range
from detector.schema.signatures import checked


@checked
class RecursivePyramid(nn.Module):
    """(N, 3, H, W) -> [P2..P6]: backbone and neck run `steps` times, from the second on with the last pyramid fed back.

    Every step has a backbone with weights of its own (as in the published models; all start from ImageNet's); the neck
    is one. At initialisation the feedback adds nothing, and the gate takes the mean of the old and the new pyramid.
    It is a whole pyramid and no neck, for the backbone runs inside its loop.
    """

    def __init__(
        self, backbone: nn.Module, neck: nn.Module, new_backbone: Callable[[], nn.Module], *,
        steps: Annotated[int, Range(2, 10)] = 2,
    ):  # fmt: skip
        super().__init__()
        levels = len(backbone.strides)
        width = neck.channels[0]
        if list(neck.strides[:levels]) != list(backbone.strides) or width % 4 or set(neck.channels[:levels]) != {width}:
            raise ValueError(
                f"feedback needs a level for each of the backbone's strides {backbone.strides}, of equal widths that 4 "
                f"divides; the neck makes strides {neck.strides} of widths {neck.channels}. model.neck {{type: fpn}} fits"
            )
        if not hasattr(backbone, "add_feedback"):
            raise ValueError(
                f"the backbone takes no feedback; {{type: resnet}} does, {type(backbone).__name__} does not"
            )
        self.backbone, self.neck = backbone, neck
        self.unrolled = nn.ModuleList(new_backbone() for _ in range(steps - 1))
        for again in self.unrolled:
            again.add_feedback(width)
        self.aspp = ASPP(width)
        self.gate = nn.Conv2d(width, 1, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        self.channels, self.strides = neck.channels, neck.strides

    def forward(self, images: Tensor) -> list[Tensor]:
        c = self.backbone(images)
        p = self.neck(c)
        for again in self.unrolled:
            # nothing to layer1, which makes C2; P3 to layer2, which makes C3; P4 to layer3; P5 to layer4
            feedback = [None] + [self.aspp(x) for x in p[1 : len(c)]]
            c = again(images, feedback)
            p = [self.fuse(old, new) for old, new in zip(p, self.neck(c), strict=True)]
        return p

    def fuse(self, old: Tensor, new: Tensor) -> Tensor:
        """g * new + (1 - g) * old, where the new map gives the gate g of every pixel (sec. 3.4, the fusion module)."""
        gate = self.gate(new).sigmoid()  # (N, 1, H, W)
        return gate * new + (1 - gate) * old


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (sec. 3.3): (N, C, H, W) -> (N, C, H, W), four views of C/4 channels each.

    The pixel, its surroundings at dilations 3 and 6, and the map's mean; no convolution after their concatenation.
    """

    def __init__(self, channels: int):
        super().__init__()
        width = channels // 4
        self.views = nn.ModuleList(
            [
                nn.Conv2d(channels, width, 1),
                nn.Conv2d(channels, width, 3, padding=3, dilation=3),
                nn.Conv2d(channels, width, 3, padding=6, dilation=6),
                nn.Conv2d(channels, width, 1),
            ]
        )
        caffe2_msra_(self.views)

    def forward(self, x: Tensor) -> Tensor:
        *local, whole = self.views
        near = [F.relu(conv(x)) for conv in local]
        mean = F.relu(whole(x.mean((2, 3), keepdim=True)))  # (N, C/4, 1, 1)
        return torch.cat([*near, mean.expand_as(near[0])], dim=1)
