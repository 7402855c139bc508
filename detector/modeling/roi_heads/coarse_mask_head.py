"""The coarse mask head of PointRend (Kirillov et al. 2020, arXiv 1912.08193, sec. 4.1)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from detector.modeling.convolution import Conv2d
from detector.modeling.layers import caffe2_msra_, caffe2_xavier_, normal_
from detector.modeling.roi_heads.mask_targets import MaskTargets
from detector.schema.ranges import Width
from detector.schema.signatures import checked


@checked
class CoarseMaskHead(nn.Module):
    """(R, C, size, size) -> mask logits (R, K, size / 2, size / 2), by fully connected layers as in a box head.

    Args:
        channels: C; more of them than `conv_width` are reduced first.
        size: cells of a pooled region along each side, an even number.
        num_classes: K, without background.
        conv_width: channels of the convolution that halves the size.
        width: features of the two fully connected layers.
        init: the framework whose first weights the layers have: in MMDetection those of the last one are all equal.
        targets: what the masks of the positive regions are compared with.
    """

    def __init__(
        self, channels: int, size: int, num_classes: int, *, conv_width: Width = 256, width: Width = 1024,
        init: Literal["detectron2", "mmdetection"] = "detectron2", targets: MaskTargets = MaskTargets(),
    ):  # fmt: skip
        super().__init__()
        if size % 2:
            raise ValueError(
                f"this mask head halves a region, and the pool gives {size} cells along each side, an odd number"
            )
        wide = channels > conv_width
        self.reduce = Conv2d(channels, conv_width, 1) if wide else None
        self.downsample = Conv2d(conv_width if wide else channels, conv_width, 2, stride=2)
        self.size, self.num_classes, self.targets = size // 2, num_classes, targets
        self.fc1, self.fc2 = nn.Linear(conv_width * self.size**2, width), nn.Linear(width, width)
        self.logits = nn.Linear(width, num_classes * self.size**2)
        _initialise(self, init)

    def forward(self, x: Tensor) -> Tensor:
        if self.reduce is not None:
            x = F.relu_(self.reduce(x))
        x = F.relu_(self.downsample(x)).flatten(1)
        x = F.relu_(self.fc2(F.relu_(self.fc1(x))))
        return self.logits(x).float().view(-1, self.num_classes, self.size, self.size)


def _initialise(head: CoarseMaskHead, init: str) -> None:
    caffe2_msra_(head)
    for layer in (head.fc1, head.fc2):
        caffe2_xavier_(layer) if init == "detectron2" else nn.init.xavier_normal_(layer.weight)
    normal_(head.logits, std=0.001)
    if init == "mmdetection":
        nn.init.constant_(head.logits.weight, 0.001)
