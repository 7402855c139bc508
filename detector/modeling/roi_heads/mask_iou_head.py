"""Mask Scoring R-CNN (Huang et al. 2019, arXiv 1903.00241): how well a predicted mask covers its object."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector import distributed
from detector.modeling.convolution import Conv2d
from detector.modeling.layers import at_least, caffe2_msra_, caffe2_xavier_, normal_, only
from detector.modeling.shapes import known
from detector.schema.ranges import Repeats, Weight, Width
from detector.schema.signatures import checked

BINARY = 0.5  # a logit above it counts as mask in the target, as in MMDetection; its probability is 0.62


@checked
class MaskIoUConvFC(nn.Module):
    """Pooled regions (R, C, size, size) and the logits of their masks (R, 2 size, 2 size) -> IoU for each class (R, K).

    Args:
        channels: C.
        size: cells of a pooled region along each side.
        num_classes: K.
        convs: 3x3 convolutions in a row; the last one halves the size.
        conv_width: channels of each.
        width: features of the two fully connected layers.
        weight: factor of the loss.
    """

    target_fields = ("masks",)

    def __init__(
        self, channels: int, size: int, num_classes: int, *, convs: Repeats = 4, conv_width: Width = 256, width: Width = 1024,
        weight: Weight = 0.5,
    ):  # fmt: skip
        super().__init__()
        widths = [channels + 1] + [conv_width] * convs
        strides = [1] * (convs - 1) + [2]
        self.convs = nn.ModuleList(Conv2d(a, b, 3, s, 1) for a, b, s in zip(widths, widths[1:], strides))
        self.fc1, self.fc2 = nn.Linear(conv_width * (-(-size // 2)) ** 2, width), nn.Linear(width, width)
        self.iou = nn.Linear(width, num_classes)
        caffe2_msra_(self.convs)
        caffe2_xavier_(self.fc1)
        caffe2_xavier_(self.fc2)
        normal_(self.iou, std=0.01)
        self.weight = weight

    def forward(self, pooled: Tensor, mask_logits: Tensor) -> Tensor:
        x = torch.cat([pooled, F.max_pool2d(mask_logits.sigmoid()[:, None], 2).to(pooled.dtype)], dim=1)
        for conv in self.convs:
            x = F.relu_(conv(x))
        return self.iou(F.relu_(self.fc2(F.relu_(self.fc1(x.flatten(1)))))).float()

    def loss(self, iou: Tensor, target: Tensor) -> Tensor:
        """Squared error of the IoU (R,) of the regions whose target (R,) is above 0."""
        rows = target > 0
        count = known(rows.sum())
        divisor = distributed.global_normalizer(count) if self.training else at_least(count, 1)
        return F.mse_loss(iou, only(rows, target, iou), reduction="sum") * (self.weight / divisor)


@torch.no_grad()
def mask_iou_target(mask_logits: Tensor, targets: Tensor, share: Tensor) -> Tensor:
    """IoU (R,) of the mask logits (R, M, M) with the whole objects.

    Args:
        mask_logits: of the object's class.
        targets: (R, M, M), the object inside the region, 0 or 1.
        share: (R,) share of the object's area that lies in the region.
    """
    mask = (mask_logits > BINARY).float()
    overlap = (mask * targets).sum(dim=(1, 2))
    whole = targets.sum(dim=(1, 2)) / (share + 1e-7)
    return overlap / (mask.sum(dim=(1, 2)) + whole - overlap)


@torch.no_grad()
def share_inside(masks: Tensor, rows: Tensor, boxes: Tensor) -> Tensor:
    """The share (R,) of the area of the bitmaps `masks` (G, h, w) [rows (R,)] inside the whole pixels of boxes (R, 4)."""
    h, w = masks.shape[-2:]
    x1, y1, x2, y2 = boxes.long().unbind(dim=1)  # towards 0, at least one pixel
    x1, y1 = x1.clamp(0, w), y1.clamp(0, h)
    x2, y2 = x2.clamp(0, w).maximum(x1 + 1).clamp(max=w), y2.clamp(0, h).maximum(y1 + 1).clamp(max=h)
    below = F.pad(masks.cumsum(dim=1, dtype=torch.int16), (0, 0, 1, 0))  # (G, h + 1, w) sums of columns
    columns = below[rows, y2].int() - below[rows, y1].int()  # (R, w)
    along = F.pad(columns.cumsum(dim=1), (1, 0))  # (R, w + 1)
    inside = (along.gather(1, x2[:, None]) - along.gather(1, x1[:, None]))[:, 0]
    return inside / (masks.flatten(1).sum(dim=1)[rows] + 1e-7)
