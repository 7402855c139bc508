"""The box head of a detector on C4: the ResNet's last stage (He et al. 2016, ResNet, appendix A)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Res5(nn.Module):
    """(R, C, size, size) -> (R, width): layer4 at half the size, then its mean; 14 x 14 is usual.

    The stage is built and filled as the backbone would, which has to end before it. A mask head takes the maps of layer4,
    `width` channels of `map_size` x `map_size` cells.
    """

    shares_maps = True

    def __init__(self, channels: int, size: int, backbone: Any):
        super().__init__()
        if getattr(backbone, "stages", 4) != 3 or channels != backbone.channels[-1]:
            raise ValueError(
                "res5 is the stage after C4, so it needs model.backbone {type: resnet, stages: 3} "
                f"and model.neck {{type: single}}; this pool gives {channels} channels"
            )
        self.layer4: Any = backbone.layer4_for_head()
        self.width, self.map_size = self.layer4[-1].c_out, -(-size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.mean(self.maps(x))

    def maps(self, x: Tensor) -> Tensor:
        """(R, C, size, size) -> (R, width, size / 2, size / 2)."""
        return self.layer4(x)

    def mean(self, maps: Tensor) -> Tensor:
        """(R, width, size / 2, size / 2) -> (R, width)."""
        return maps.mean((2, 3))
