"""A pyramid: normalised images -> levels."""

from __future__ import annotations

from torch import Tensor, nn


class PlainPyramid(nn.Module):
    """(N, 3, H, W) -> [P2..P6]: backbone, then neck.

    Args:
        backbone: image -> maps [C2..C5].
        neck: maps [C2..C5] -> levels [P2..P6].
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module):
        super().__init__()
        self.backbone, self.neck = backbone, neck
        self.channels, self.strides = neck.channels, neck.strides
        # of the laterals that AugFPN also returns in training
        self.lateral_strides = getattr(neck, "lateral_strides", None)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.neck(self.backbone(images))
