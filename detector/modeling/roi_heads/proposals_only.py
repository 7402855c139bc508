"""No second stage: a region proposal network alone (Ren et al. 2015, arXiv 1506.01497, sec. 3.1)."""

from __future__ import annotations

from torch import Tensor, nn

from detector.errors import check_range
from detector.structures import Batch, Detections, Proposals, Target


class ProposalsOnly(nn.Module):
    """In the place of a second stage: the best proposals are reported as detections of one class, label 0.

    Targets keep their `num_classes` labels, which nothing reads. `max_detections` of an image are reported.
    """

    def __init__(self, num_classes: int, *, max_detections: int = 100):
        super().__init__()
        check_range("model.roi_head", 1, 1e9, max_detections=max_detections)
        self.num_classes, self.max_detections = num_classes, max_detections

    def losses(
        self, p: list[Tensor], proposals: list[Proposals], batch: Batch, targets: list[Target]
    ) -> dict[str, Tensor]:
        """Nothing beyond the RPN's own losses."""
        return {}

    def detect(self, p: list[Tensor], proposals: list[Proposals], batch: Batch) -> list[Detections]:
        """The best proposals of every image, their score the sigmoid of the objectness."""
        return [self.report(of_image) for of_image in proposals]

    def report(self, proposals: Proposals) -> Detections:
        """Proposals of one image, best first, as detections of class 0."""
        boxes, scores = (x[: self.max_detections].float() for x in (proposals.boxes, proposals.scores))
        return Detections(boxes, scores.sigmoid(), scores.new_zeros(len(scores)).long())
