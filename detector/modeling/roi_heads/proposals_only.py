"""No second stage: a region proposal network alone (Ren et al. 2015, arXiv 1506.01497, sec. 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detector.modeling.padded import Padded
from detector.schema.ranges import Count
from detector.schema.signatures import checked
from detector.structures import Batch, Detections, Proposals, Target


@checked
@dataclass(frozen=True)
class BestProposals:
    """The first proposals of an image."""

    max_detections: Count = 100
    """At most this many detections per image."""


class ProposalsOnly(nn.Module):
    """In the place of a second stage: the best proposals are reported as detections of one class, label 0.

    Targets keep their `num_classes` labels, which nothing reads.

    Args:
        num_classes: K of the targets.
        selection: how many proposals are reported.
    """

    reports_proposals = True

    def __init__(self, num_classes: int, *, selection: BestProposals = BestProposals()):
        super().__init__()
        self.num_classes, self.selection = num_classes, selection

    def losses(
        self, p: list[Tensor], proposals: list[Proposals], batch: Batch, targets: list[Target]
    ) -> dict[str, Tensor]:
        """Nothing beyond the RPN's own losses."""
        return {}

    def detect(self, p: list[Tensor], proposals: Sequence[Proposals], batch: Batch) -> list[Detections]:
        """The best proposals of every image, their score the sigmoid of the objectness."""
        return list(self.find(p, Padded.of(proposals), batch))

    def find(self, p: list[Tensor], proposals: Padded[Proposals], batch: Batch) -> Padded[Detections]:
        """The same; the shapes depend on those of the arguments alone."""
        return Padded(self.postprocess(proposals.rows), proposals.valid[:, : self.selection.max_detections])

    def postprocess(self, proposals: Proposals) -> Detections:
        """Proposals (..., R), best first, as detections of class 0."""
        limit = self.selection.max_detections
        boxes, scores = proposals.boxes[..., :limit, :].float(), proposals.scores[..., :limit].float()
        return Detections(boxes, scores.sigmoid(), torch.zeros_like(scores, dtype=torch.int64))

    def merge(self, views: Sequence[Detections], proposals: Proposals) -> Detections:
        """The merged proposals of several views of one image (test-time augmentation)."""
        return self.postprocess(proposals)
