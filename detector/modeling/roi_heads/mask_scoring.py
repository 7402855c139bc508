"""The mask branch of Mask Scoring R-CNN (Huang et al. 2019, arXiv 1903.00241): masks with scores of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from detector.modeling.roi_heads.mask_branch import MaskBranch, of_class, with_masks
from detector.modeling.roi_heads.mask_iou_head import MaskIoUConvFC, mask_iou_target, share_inside
from detector.modeling.roi_heads.stage import Regions, filled
from detector.structures import Batch, Detections, Target


class MaskScoringBranch(MaskBranch):
    """A mask branch with a head that tells how well each mask covers its object.

    Args:
        pool: levels and regions -> pooled regions, for both heads.
        head: pooled regions -> mask logits (R, K or 1, M, M).
        iou_head: pooled regions and the logits of their class's masks -> IoU (R, K).
    """

    def __init__(self, pool: Any, head: Any, iou_head: MaskIoUConvFC):
        super().__init__(pool, head)
        self.iou_head = iou_head

    def losses(
        self, x: Tensor, regions: Sequence[Regions], batch: Batch, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """{"roi_mask", "roi_mask_iou"} of the positive `regions` of every image."""
        labels = torch.cat([r.labels for r in regions])
        found = of_class(self.head(x), labels)  # (P, M, M)
        wanted = torch.cat([self.target_masks(r, t, batch) for r, t in zip(regions, targets)])
        iou = self._iou(x, found, labels)
        target = mask_iou_target(found, wanted, torch.cat([_share(r, t) for r, t in zip(regions, targets)]))
        target = torch.where(filled(labels)[0], target, 0)
        return {"roi_mask": self.compare(found, wanted, labels), "roi_mask_iou": self.iou_head.loss(iou, target)}

    def detect(self, x: Tensor, found: Sequence[Detections], batch: Batch) -> list[Detections]:
        """The detections of every image with masks, whose scores are those of the classes times the expected IoU."""
        labels = torch.cat([d.labels for d in found])
        logits = of_class(self.head(x), labels)
        parts = self._iou(x, logits, labels).split([len(d) for d in found])
        masked = with_masks(found, logits.sigmoid(), batch)
        return [_ranked(d, d.scores * iou.nan_to_num(0, 0, 0)) for d, iou in zip(masked, parts)]

    def _iou(self, x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """(R,) for each region's own class."""
        return self.iou_head(x, logits).gather(1, labels.clamp(min=0)[:, None])[:, 0]


def _ranked(found: Detections, scores: Tensor) -> Detections:
    assert found.masks is not None
    return replace(found, masks=replace(found.masks, scores=scores))


def _share(regions: Regions, target: Target) -> Tensor:
    """The share of each positive region's object that lies in the region."""
    assert target.masks is not None  # GeneralizedRCNN has checked it
    return share_inside(target.masks, regions.gt_index, regions.boxes)
