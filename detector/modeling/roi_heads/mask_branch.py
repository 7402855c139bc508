"""The mask branch of a second stage (He et al. 2017, Mask R-CNN, sec. 3): pool, head, targets, loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector import distributed
from detector.modeling.layers import at_least, reads_whole_batch
from detector.modeling.roi_heads.stage import Regions, filled, to_rois
from detector.records.region_masks import RegionMasks
from detector.structures import Batch, Detections, Target


class MaskBranch(nn.Module):
    """A mask for every positive region in training and for every final box in inference.

    Args:
        pool: levels and regions -> pooled regions; None where the branch reads maps that the box head has made (C4).
        head: pooled regions -> mask logits (R, K or 1, M, M).

    `alone`: padding would change what the head learns.
    """

    def __init__(self, pool: Any, head: Any):
        super().__init__()
        self.pool, self.head = pool, head
        self.alone = reads_whole_batch(self)

    def read(self, p: list[Tensor], boxes: Sequence[Tensor]) -> Any:
        """What the head takes of the boxes (R_i, 4) of every image, by the branch's own pool."""
        return self.pool(p, to_rois(boxes))

    def losses(self, x: Any, regions: Sequence[Regions], batch: Batch, targets: Sequence[Target]) -> dict[str, Tensor]:
        """{"roi_mask"} of the positive `regions` of every image, of which `x` is what the head takes."""
        return {"roi_mask": self.loss(self.head(x), regions, batch, targets)}

    def loss(self, logits: Tensor, regions: Sequence[Regions], batch: Batch, targets: Sequence[Target]) -> Tensor:
        """Cross-entropy of each cell's logit (R, K or 1, M, M) for the region's class, the mean over all positive regions."""
        labels = torch.cat([r.labels for r in regions])
        wanted = torch.cat([self.target_masks(r, t, batch) for r, t in zip(regions, targets)])
        return self.compare(of_class(logits, labels), wanted, labels)

    def compare(self, found: Tensor, wanted: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of logits (P, ...) against 0..1 (P, ...), the mean over all positive regions, by their labels (P,)."""
        rows, count = filled(labels)
        divisor = distributed.global_normalizer(count) if self.training else at_least(count, 1)
        weight = rows.to(found.dtype).view(-1, *[1] * (found.ndim - 1))
        cells = F.binary_cross_entropy_with_logits(found, wanted, weight, reduction="sum")
        return cells / (divisor * found.shape[1:].numel())

    def target_masks(self, regions: Regions, target: Target, batch: Batch) -> Tensor:
        """(P, M, M) in 0..1 of the positive `regions` of an image."""
        h, w = batch.images.shape[-2:]
        return self.head.targets(regions, target, self.head.size, (h, w))

    def probabilities(self, x: Any, labels: Tensor) -> Tensor:
        """(R, M, M) in 0..1 for the `labels` (R,) of regions of which `x` is what the head takes."""
        return of_class(self.head(x), labels).sigmoid()

    def detect(self, x: Any, found: Sequence[Detections], batch: Batch) -> list[Detections]:
        """The detections of every image with masks; `x` is what the head takes of their boxes."""
        return with_masks(found, self.probabilities(x, torch.cat([d.labels for d in found])), batch)


def of_class(logits: Tensor, labels: Tensor) -> Tensor:
    """The mask logits (R, M, M) of each region's own class, of (R, K or 1, M, M); float32."""
    column = labels.clamp(min=0) if logits.shape[1] > 1 else torch.zeros_like(labels)  # an empty row has any
    return logits[torch.arange(len(labels), device=labels.device), column].float()


def with_masks(found: Sequence[Detections], probabilities: Tensor, batch: Batch) -> list[Detections]:
    """The detections of every image with their masks, of which `probabilities` (D, M, M) has those of all images."""
    parts = probabilities.split([len(d) for d in found])
    return [replace(d, masks=RegionMasks(m, d.boxes, size)) for d, m, size in zip(found, parts, batch.sizes)]
