"""The keypoint branch of Mask R-CNN (He et al. 2017, arXiv 1703.06870, sec. 5): a heat map for each keypoint of a region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector import distributed
from detector.modeling.layers import ConvNorm, at_least, caffe2_msra_
from detector.modeling.roi_heads.heat_maps import heat_map_cells, read_heat_maps
from detector.modeling.roi_heads.stage import Regions, filled, to_rois
from detector.modeling.shapes import known, may_look
from detector.records.keypoints import Keypoints
from detector.schema.ranges import Count, Range, Weight, Width
from detector.schema.signatures import checked
from detector.structures import Detections, Target


@checked
class KeypointConvUpsample(nn.Module):
    """(R, C, size, size) -> heat-map logits (R, J, 4 size, 4 size): 3x3 convolutions, a transposed one, a bilinear x2.

    Args:
        channels: C.
        keypoints: J, of each object.
        convs: 3x3 convolutions in a row.
        width: channels of each.
        weight: factor of the loss.
        positives_per_image: null: the loss is the mean over the visible keypoints of the batch; a number: it is divided by
            this many regions of each image with all their keypoints (128 in Detectron2, if it does not count the visible).
        scores: what a found keypoint has as score: its softmax value over the map (Detectron2), or its logit (torchvision).
        offset: pixels that are added to annotated x and y before an image is transformed, and taken off those that are found:
            0.5 in Detectron2, which takes them for numbers of pixels; 0 in torchvision.
    """

    target_fields = ("keypoints",)

    def __init__(
        self, channels: int, *, keypoints: Width = 17, convs: Width = 8, width: Width = 512, weight: Weight = 1.0,
        positives_per_image: Count | None = None, scores: Literal["softmax", "logit"] = "softmax",
        offset: Annotated[float, Range(0, 1)] = 0.0,
    ):  # fmt: skip
        super().__init__()
        widths = [channels] + [width] * convs
        self.convs = nn.ModuleList(ConvNorm(a, b, 3) for a, b in zip(widths, widths[1:]))
        self.upsample = nn.ConvTranspose2d(width, keypoints, 4, stride=2, padding=1)
        caffe2_msra_(self)
        self.keypoints, self.weight, self.positives_per_image = keypoints, weight, positives_per_image
        self.scores: Literal["softmax", "logit"] = scores
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu_(conv(x))
        return F.interpolate(self.upsample(x).float(), scale_factor=2.0, mode="bilinear", align_corners=False)

    def loss(self, logits: Tensor, cells: Tensor, valid: Tensor, images: int) -> Tensor:
        """Cross-entropy over all cells of a map: logits (R, J, M, M), target cells (R, J), of the valid (R, J) alone."""
        fixed = self.positives_per_image
        count = known(valid.sum()) if fixed is None else images * self.keypoints * fixed
        divisor = distributed.global_normalizer(count) if self.training else at_least(count, 1)
        wanted = torch.where(valid, cells, -1).flatten()
        total = F.cross_entropy(logits.flatten(2).flatten(0, 1), wanted, reduction="sum", ignore_index=-1)
        return total * (self.weight / divisor)


class KeypointBranch(nn.Module):
    """A pool and a keypoint head beside the box head: which regions they learn from, and what they find.

    Args:
        pool: levels and regions -> pooled regions (R, C, size, size).
        head: pooled regions -> heat maps.
    """

    def __init__(self, pool: Any, head: KeypointConvUpsample):
        super().__init__()
        self.pool, self.head = pool, head

    def losses(self, p: list[Tensor], regions: Sequence[Regions], targets: Sequence[Target]) -> dict[str, Tensor]:
        """{"roi_keypoint"} of those positive `regions` that have a visible keypoint inside."""
        cells, valid, boxes = [], [], []
        for i, (r, target) in enumerate(zip(regions, targets, strict=True)):
            keypoints = self._keypoints(target, i)[r.gt_index]
            cell, inside = heat_map_cells(keypoints, r.boxes, 4 * self.pool.size)
            inside = inside & filled(r.labels)[0][:, None]
            # as Detectron2 selects; the loss of the others is 0
            seen = inside.any(dim=1) if may_look(inside.device) else slice(None)
            cells.append(cell[seen])
            valid.append(inside[seen])
            boxes.append(r.boxes[seen])
        logits = self.head(self.pool(p, to_rois(boxes)))
        return {"roi_keypoint": self.head.loss(logits, torch.cat(cells), torch.cat(valid), len(boxes))}

    def detect(self, p: list[Tensor], found: Sequence[Detections]) -> list[Detections]:
        """The detections of every image, with their keypoints."""
        return with_keypoints(found, self.heat_maps(p, [d.boxes for d in found]), self.head.scores, self.head.offset)

    def heat_maps(self, p: list[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """The logits (R, J, M, M) of the boxes (R_i, 4) of every image."""
        return self.head(self.pool(p, to_rois(boxes)))

    def _keypoints(self, target: Target, i: int) -> Keypoints:
        found = target.keypoints
        if found is None or found.points.shape[1:] != (self.head.keypoints, 2):
            held = "none" if found is None else f"{found.points.shape[1]} of each object"
            raise ValueError(f"target {i}: the model learns {self.head.keypoints} keypoints, and there are {held}")
        return found


def with_keypoints(
    found: Sequence[Detections], heat_maps: Tensor, scores: Literal["softmax", "logit"], offset: float
) -> list[Detections]:
    """The detections of every image with the keypoints of their heat maps (D, J, M, M), which has those of all images."""
    points, values = read_heat_maps(heat_maps, torch.cat([d.boxes for d in found]), scores)
    visible = torch.ones_like(values, dtype=torch.int64)
    counts = [len(d) for d in found]
    parts = zip(found, *(x.split(counts) for x in (points, visible, values)), strict=True)
    return [replace(d, keypoints=Keypoints(p, v, s, offset=offset)) for d, p, v, s in parts]
