"""Recursive feature pyramid (Qiao et al. 2020, DetectoRS, arXiv 2006.02334, sec. 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.modeling.convolution import Conv2d
from detector.modeling.layers import caffe2_msra_
from detector.schema.ranges import Range
from detector.schema.signatures import checked


@checked
class RecursivePyramid(nn.Module):
    """(N, 3, H, W) -> [P2..P6]: backbone and neck run several times; each later step reads the pyramid before it.

    Every step has its own backbone weights, as in the published models; all start from the same ImageNet weights. The
    steps share the neck. At initialisation the feedback adds nothing, and the gate averages the old and the new pyramid.
    This is a pyramid rather than a neck because the backbone runs inside its loop. Raises ValueError for a neck or a
    backbone that does not fit.

    Args:
        backbone: image -> maps [C2..C5], for the first step.
        neck: maps [C2..C5] -> levels [P2..P6], shared by all steps.
        new_backbone: makes the backbone of a later step.
        steps: how many times backbone and neck run.
    """

    def __init__(
        self, backbone: Any, neck: Any, new_backbone: Callable[[], Any], *,
        steps: Annotated[int, Range(2, 10)] = 2,
    ):  # fmt: skip
        super().__init__()
        levels = len(backbone.strides)
        width = neck.channels[0]
        if list(neck.strides[:levels]) != list(backbone.strides) or width % 4 or set(neck.channels[:levels]) != {width}:
            raise ValueError(
                f"feedback needs a level for each of the backbone's strides {backbone.strides}, all with one width "
                f"divisible by 4, as an FPN has; the neck has strides {neck.strides} and widths {neck.channels}"
            )
        if not hasattr(backbone, "add_feedback"):
            raise ValueError(
                f"the backbone must have `add_feedback`, as ResNet has; {type(backbone).__name__} has none"
            )
        self.backbone, self.neck = backbone, neck
        copies = [new_backbone() for _ in range(steps - 1)]
        self.unrolled = nn.ModuleList(copies)
        for again in copies:
            again.add_feedback(width)
        self.aspp = ASPP(width)
        self.gate = Conv2d(width, 1, 1)
        for parameter in self.gate.parameters():
            nn.init.zeros_(parameter)
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
        """g * new + (1 - g) * old with a gate g per pixel, computed from the new map (sec. 3.4, fusion module)."""
        gate = self.gate(new).sigmoid()  # (N, 1, H, W)
        return gate * new + (1 - gate) * old


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (sec. 3.3): (N, C, H, W) -> (N, C, H, W), four branches of C/4 channels each.

    A 1x1 convolution, 3x3 convolutions with dilations 3 and 6, and the mean of the map; their concatenation is the output.
    """

    def __init__(self, channels: int):
        super().__init__()
        width = channels // 4
        self.views = nn.ModuleList(
            [
                Conv2d(channels, width, 1),
                Conv2d(channels, width, 3, padding=3, dilation=3),
                Conv2d(channels, width, 3, padding=6, dilation=6),
                Conv2d(channels, width, 1),
            ]
        )
        caffe2_msra_(self.views)

    def forward(self, x: Tensor) -> Tensor:
        *local, whole = self.views
        near = [F.relu(conv(x)) for conv in local]
        mean = F.relu(whole(x.mean((2, 3), keepdim=True)))  # (N, C/4, 1, 1)
        return torch.cat([*near, mean.expand_as(near[0])], dim=1)
