"""Which classified regions become detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detector.modeling.boxes import BoxCoder, clip_boxes, is_larger_than
from detector.modeling.nms import suppress
from detector.records.geometry import Size
from detector.schema.ranges import Count, Fraction, Range, Weight
from detector.schema.signatures import checked
from detector.structures import Detections


@checked
@dataclass(frozen=True)
class DetectionSelection:
    """Score threshold, box decoding and suppression of the classified regions of an image (Fast R-CNN sec. 3.2)."""

    score_threshold: Fraction = 0.05
    """A class of a region is a candidate only above this score."""
    nms: Literal["hard", "linear", "gaussian"] = "hard"
    """Suppression by better boxes: hard NMS, or soft-NMS with a linear or gaussian decay of scores."""
    nms_iou: Fraction = 0.5
    """IoU above which hard NMS suppresses and linear soft-NMS decays."""
    soft_min_score: Annotated[float, Range(1e-9, 1)] = 1e-3
    """Soft-NMS drops a box once its score has decayed below this."""
    class_agnostic_nms: bool = False
    """Suppress across classes instead of within each."""
    max_detections: Count = 100
    """At most this many detections per image."""
    min_size: Weight = 0.0
    """Boxes with a shorter side, in pixels, are dropped."""

    def __call__(self, scores: Tensor, deltas: Tensor, boxes: Tensor, coder: BoxCoder, size: Size) -> Detections:
        """Scores (R, K), deltas (R, K or 1, 4) on boxes (R, 4) of one image of size (h, w) -> detections, best first."""
        row, label = torch.where(scores > self.score_threshold)  # never true of NaN
        column = label if deltas.shape[1] > 1 else torch.zeros_like(label)
        box = coder.decode(deltas[row, column], boxes[row])  # only the candidates
        finite = box.isfinite().all(dim=-1)
        box = clip_boxes(box, size)
        valid = torch.where(finite & is_larger_than(box, self.min_size))[0]
        box, score, label = box[valid], scores[row[valid], label[valid]], label[valid]
        best, score = suppress(
            box, score, self._group(label), kind=self.nms, iou=self.nms_iou, min_score=self.soft_min_score,
            limit=self.max_detections,
        )  # fmt: skip
        return Detections(box[best], score, label[best])

    def merge(self, views: Sequence[Detections]) -> Detections:
        """The detections of several views of one image, in its pixels, as those of one, by hard NMS."""
        together = Detections.joined(views)
        best = batched_nms(together.boxes, together.scores, self._group(together.labels), self.nms_iou)
        return together[best[: self.max_detections]]

    def _group(self, labels: Tensor) -> Tensor:
        """Boxes of different groups do not suppress each other."""
        return torch.zeros_like(labels) if self.class_agnostic_nms else labels
