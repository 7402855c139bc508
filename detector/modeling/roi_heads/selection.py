"""Which classified regions become detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from detector.modeling.boxes import BoxCoder, clip_boxes, is_larger_than
from detector.modeling.nms import nms, suppress
from detector.modeling.padded import Padded
from detector.modeling.shapes import may_look
from detector.records.geometry import Size
from detector.schema.ranges import Count, Fraction, Range, Weight
from detector.schema.signatures import checked
from detector.structures import Detections

# Where shapes are fixed, NMS sees this many classes of regions of an image, the best. The others matter only if it leaves
# fewer of these than are wanted.
CANDIDATES = 4096


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

    def __call__(
        self, scores: Tensor, deltas: Tensor, boxes: Tensor, valid: Tensor, coder: BoxCoder, sizes: Sequence[Size]
    ) -> Padded[Detections]:
        """The detections of N images of these (h, w) `sizes`, best first.

        Scores (N, R, K) and deltas (N, R, K or 1, 4) belong to the boxes (N, R, 4) that are `valid` (N, R).
        """
        return self.choose(scores, deltas, boxes, valid, coder, sizes)[0]

    def choose(
        self, scores: Tensor, deltas: Tensor, boxes: Tensor, valid: Tensor, coder: BoxCoder, sizes: Sequence[Size]
    ) -> tuple[Padded[Detections], Tensor]:
        """The same, and the region (N, D) that each detection comes from."""
        candidate = (scores > self.score_threshold) & valid[..., None]  # never of NaN
        index = self._best(torch.where(candidate, scores, -1).flatten(1))  # (N, M)
        region, label = index // scores.shape[2], index % scores.shape[2]
        column = label if deltas.shape[2] > 1 else torch.zeros_like(label)
        delta = _rows(deltas.flatten(1, 2), region * deltas.shape[2] + column)
        box = coder.decode(delta, _rows(boxes, region))  # only the candidates
        finite = box.isfinite().all(dim=-1)
        box = torch.stack([clip_boxes(b, size) for b, size in zip(box, sizes)])
        valid = candidate.flatten(1).gather(1, index) & finite & is_larger_than(box, self.min_size)
        images = zip(box, scores.flatten(1).gather(1, index), label, valid)
        found = [self._suppressed(*of_image) for of_image in images]
        best, boxes, scores, labels, valid = (torch.stack(parts) for parts in zip(*found))
        return Padded(Detections(boxes, scores, labels), valid), region.gather(1, best)

    def _best(self, scores: Tensor) -> Tensor:
        """Indices (N, M) of what NMS sees of all classes of all regions (N, R*K), in their order; no candidate has -1."""
        if may_look(scores.device):
            count = int((scores >= 0).sum(dim=1).max())
        else:
            count = max(CANDIDATES, self.max_detections)
        if scores.shape[1] <= count:
            return torch.arange(scores.shape[1], device=scores.device).expand(scores.shape)
        return scores.topk(count, dim=1, sorted=False).indices.sort(dim=1).values

    def _suppressed(self, boxes: Tensor, scores: Tensor, labels: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        """Rows, boxes, scores and labels of the best candidates of an image that are left, and which of them are valid."""
        best, score, valid = suppress(
            boxes, scores, self._group(labels), valid, kind=self.nms, iou=self.nms_iou, min_score=self.soft_min_score,
            limit=self.max_detections,
        )  # fmt: skip
        return best, torch.where(valid[:, None], boxes[best], 0), torch.where(valid, score, 0), labels[best], valid

    def merge(self, views: Sequence[Detections]) -> Detections:
        """The detections of several views of one image, in its pixels, as those of one, by hard NMS."""
        together = Detections.joined(views)
        best = nms(together.boxes, together.scores, self.nms_iou, self._group(together.labels))
        return together[best[: self.max_detections]]

    def _group(self, labels: Tensor) -> Tensor:
        """Boxes of different groups do not suppress each other."""
        return torch.zeros_like(labels) if self.class_agnostic_nms else labels


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """(N, R, 4) at index (N, M) -> (N, M, 4)."""
    return values.gather(1, index[..., None].expand(-1, -1, 4))
