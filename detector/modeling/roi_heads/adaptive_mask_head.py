"""PANet's mask branch (Liu et al. 2018, arXiv 1803.01534, sec. 3.2 and 3.3): every level's view, and two paths that are added."""

from __future__ import annotations

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.modeling.convolution import Conv2d
from detector.modeling.layers import ConvNorm, Norm, caffe2_msra_, normal_
from detector.modeling.roi_heads.mask_targets import MaskTargets
from detector.schema.ranges import Width
from detector.schema.signatures import checked


@checked
class AdaptiveFusedMaskHead(nn.Module):
    """`branches` maps (R, C, size, size) -> mask logits (R, K, 2 size, 2 size).

    The convolutional path has a mask for each class. The fully connected one sees the whole region and has one for all; after
    its last layer the authors' code has a ReLU, so it only raises logits.

    Args:
        channels: C.
        size: cells of a pooled region along each side.
        branches: maps per region; each has its own first convolution, and the greatest values are kept.
        num_classes: K.
        width: channels of the convolutions; the last one of the fully connected path has half of them.
        norm: after each convolution; null: none.
        targets: what the masks of the positive regions are compared with.
    """

    def __init__(
        self, channels: int, size: int, branches: int, num_classes: int, *, width: Width = 256, norm: Norm | None = "group",
        targets: MaskTargets = MaskTargets(),
    ):  # fmt: skip
        super().__init__()
        if branches < 2:
            raise ValueError(
                "this mask head fuses several maps per region, and the pool gives one: choose model.roi_head.mask_pool "
                "{type: all_levels}"
            )
        self.conv1 = nn.ModuleList(ConvNorm(channels, width, 3, norm=norm) for _ in range(branches))
        self.convs = nn.ModuleList(ConvNorm(width, width, 3, norm=norm) for _ in range(2))
        self.conv4 = ConvNorm(width, width, 3, norm=norm)
        self.deconv = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.predictor = Conv2d(width, num_classes, 1)
        self.fc_convs = nn.ModuleList(ConvNorm(width, c, 3, norm=norm) for c in (width, width // 2))
        self.fc = nn.Linear(width // 2 * size**2, (2 * size) ** 2)
        caffe2_msra_(self)
        normal_(self.predictor, std=0.001)
        normal_(self.fc, std=0.01)
        self.size, self.targets = 2 * size, targets

    def forward(self, xs: list[Tensor]) -> Tensor:
        x = reduce(torch.maximum, [F.relu_(conv(x)) for conv, x in zip(self.conv1, xs, strict=True)])
        for conv in self.convs:
            x = F.relu_(conv(x))
        by_class = self.predictor(F.relu_(self.deconv(F.relu_(self.conv4(x)))))
        return by_class.float() + self._whole_region(x).float()

    def _whole_region(self, x: Tensor) -> Tensor:
        """The path through a fully connected layer: (R, 1, 2 size, 2 size)."""
        for conv in self.fc_convs:
            x = F.relu_(conv(x))
        return F.relu_(self.fc(x.flatten(1))).view(-1, 1, self.size, self.size)
