"""PointRend (Kirillov et al. 2020, arXiv 1912.08193): a coarse mask, then its uncertain points one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.modeling.layers import caffe2_msra_, normal_
from detector.modeling.roi_heads.mask_branch import MaskBranch, of_class
from detector.modeling.roi_heads.points import PointSampling, Subdivision, in_image, read_bitmaps, read_points
from detector.modeling.roi_heads.stage import Regions, to_rois
from detector.schema.ranges import Repeats, Width
from detector.schema.signatures import checked
from detector.structures import Batch, Target

POINT_LIMIT = 2**15  # points that exist at once in inference: 44 MB for each layer of the default head


@checked
class PointMLP(nn.Module):
    """Features (R, P, C) and coarse logits (R, P, K) at points -> logits (R, P, K), by a perceptron shared by all points.

    Each of its layers gets the coarse logits, too.

    Args:
        channels: C.
        num_classes: K.
        width: features of each layer but the last.
        layers: layers but the last.
        sampling: the points that training learns from.
        subdivision: how masks are refined in inference.
    """

    target_fields = ("masks",)

    def __init__(
        self, channels: int, num_classes: int, *, width: Width = 256, layers: Repeats = 3,
        sampling: PointSampling = PointSampling(), subdivision: Subdivision = Subdivision(),
    ):  # fmt: skip
        super().__init__()
        widths = [channels] + [width] * layers
        self.layers = nn.ModuleList(nn.Linear(a + num_classes, b) for a, b in zip(widths, widths[1:]))
        self.predictor = nn.Linear(width + num_classes, num_classes)
        caffe2_msra_(self.layers)
        normal_(self.predictor, std=0.001)
        self.sampling, self.subdivision = sampling, subdivision

    def forward(self, features: Tensor, coarse: Tensor) -> Tensor:
        x, coarse = features, coarse.to(features.dtype)
        for layer in self.layers:
            x = F.relu_(layer(torch.cat([x, coarse], dim=-1)))
        return self.predictor(torch.cat([x, coarse], dim=-1)).float()


class RegionMaps(NamedTuple):
    """What the branch reads of R regions."""

    pooled: Tensor
    """(R, C, size, size)."""
    finest: Tensor
    """(N, C, H, W), the finest level of the pyramid."""
    rois: Tensor
    """(R, 5) [image, x1, y1, x2, y2]."""

    def of(self, rows: Tensor) -> RegionMaps:
        """Those of some regions."""
        return RegionMaps(self.pooled[rows], self.finest, self.rois[rows])


class PointRendBranch(MaskBranch):
    """A mask branch whose masks are refined point by point.

    Args:
        pool: levels and regions -> pooled regions, for the coarse head.
        head: pooled regions -> coarse mask logits (R, K, M, M).
        point_head: features and coarse logits at points -> logits.
        stride: of the finest level, in pixels.
    """

    def __init__(self, pool: Any, head: Any, point_head: PointMLP, stride: int):
        super().__init__(pool, head)
        self.point_head, self.stride = point_head, stride

    def read(self, p: list[Tensor], boxes: Sequence[Tensor]) -> RegionMaps:
        """What the heads take of the boxes (R_i, 4) of every image."""
        rois = to_rois(boxes)
        # every reading of points takes rows of channels, and would otherwise copy the level for it
        return RegionMaps(self.pool(p, rois), p[0].contiguous(memory_format=torch.channels_last), rois)

    def losses(
        self, x: RegionMaps, regions: Sequence[Regions], batch: Batch, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """{"roi_mask", "roi_mask_point"} of the positive `regions` of every image: of all coarse cells, and of some points."""
        labels = torch.cat([r.labels for r in regions])
        coarse = self.head(x.pooled)
        own = of_class(coarse, labels)  # (R, M, M)
        points = self.point_head.sampling(own)
        cells = torch.cat([self.target_masks(r, t, batch) for r, t in zip(regions, targets)])
        parts = points.split([len(r) for r in regions])
        inside = torch.cat([_labels_at(at, r, t) for at, r, t in zip(parts, regions, targets)])
        found = self._logits_at(points, x, coarse, labels)
        return {"roi_mask": self.compare(own, cells, labels), "roi_mask_point": self.compare(found, inside, labels)}

    def probabilities(self, x: RegionMaps, labels: Tensor) -> Tensor:
        """(R, M, M) in 0..1 for the `labels` (R,) of regions, refined; a part of the regions at a time."""
        coarse = self.head(x.pooled)
        at_once = max(1, POINT_LIMIT // self.point_head.subdivision.points)
        parts = torch.arange(len(labels), device=labels.device).split(at_once)
        return torch.cat([self._refined(x.of(rows), coarse[rows], labels[rows]) for rows in parts])

    def _refined(self, x: RegionMaps, coarse: Tensor, labels: Tensor) -> Tensor:
        refine = self.point_head.subdivision
        return refine(of_class(coarse, labels), lambda points: self._logits_at(points, x, coarse, labels)).sigmoid()

    def _logits_at(self, points: Tensor, x: RegionMaps, coarse: Tensor, labels: Tensor) -> Tensor:
        """The logits (R, P) of each region's class at points (R, P, 2) in 0..1, where its `coarse` ones are (R, K, M, M)."""
        image, boxes = x.rois[:, 0].long(), x.rois[:, 1:]
        features = read_points(x.finest, image, in_image(points, boxes) / self.stride)
        rows = torch.arange(len(coarse), device=coarse.device)
        by_class = self.point_head(features, read_points(coarse, rows, points * coarse.shape[-1]))
        return by_class[rows, :, labels.clamp(min=0)]  # an empty row has any


def _labels_at(points: Tensor, regions: Regions, target: Target) -> Tensor:
    """How much of the matched object's mask is at points (R, P, 2) in 0..1 of the regions of an image: (R, P) in 0..1."""
    assert target.masks is not None  # GeneralizedRCNN has checked it
    return read_bitmaps(target.masks, regions.gt_index, in_image(points, regions.boxes))
