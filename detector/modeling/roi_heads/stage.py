"""One stage of classification and box refinement: what Faster R-CNN has once and a cascade several times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector import distributed
from detector.modeling.boxes import BoxCoder
from detector.modeling.layers import balanced_l1, normal_, smooth_l1
from detector.modeling.matching import Matching
from detector.modeling.sampling import Sampling, everything
from detector.records.record import Record, boxes_field, rows_field
from detector.schema.ranges import Weight
from detector.schema.signatures import checked
from detector.structures import Target


def to_rois(boxes: Sequence[Tensor] | Tensor) -> Tensor:
    """Boxes (R_i, 4) of N images, or (N, R, 4) -> one (R, 5) tensor [image, x1, y1, x2, y2]."""
    return torch.cat([F.pad(b, (1, 0), value=float(i)) for i, b in enumerate(boxes)])


@dataclass
class Regions(Record):
    """The sampled regions of one image, positives before negatives."""

    boxes: Tensor = boxes_field()
    """(S, 4) xyxy."""
    labels: Tensor = rows_field()
    """(S,) in 0..K, K for background."""
    gt_index: Tensor = rows_field()
    """(S,) row of the matched object in the image's target; means something only for positives."""
    is_gt: Tensor = rows_field()
    """(S,) bool: a ground-truth box that was appended to the proposals."""


@checked
@dataclass(frozen=True)
class RegionLoss:
    """Cross-entropy of the classes and a box loss of the positives' deltas (Fast R-CNN sec. 2.3)."""

    box_loss: Literal["smooth_l1", "balanced_l1"] = "smooth_l1"
    """Smooth L1, or the balanced L1 of Libra R-CNN."""
    beta: Weight = 0.0
    """Corner of the box loss; 0 makes smooth L1 an L1 loss."""
    class_weight: Weight = 1.0
    """Factor of the classification loss."""
    box_weight: Weight = 1.0
    """Factor of the box loss."""

    def __post_init__(self) -> None:
        if self.box_loss == "balanced_l1" and self.beta == 0:
            raise ValueError("beta: the balanced L1 loss needs a corner above 0 (1 in Libra R-CNN)")

    def __call__(
        self, logits: Tensor, labels: Tensor, deltas: Tensor, target_deltas: Tensor, count: float
    ) -> tuple[Tensor, Tensor]:
        """Logits (S, K+1) against labels (S,), deltas (P, 4) of positives against their targets: both divided by `count`."""
        box_loss = balanced_l1 if self.box_loss == "balanced_l1" else smooth_l1
        class_sum = F.cross_entropy(logits, labels, reduction="sum")
        box_sum = box_loss(deltas, target_deltas, self.beta)
        return class_sum * (self.class_weight / count), box_sum * (self.box_weight / count)


class Stage(nn.Module):
    """Pooled regions -> class logits and deltas; and which regions it learns from, by which loss.

    Args:
        box_head: pooled regions -> vectors (R, `box_head.width`).
        num_classes: K; the logits have K + 1 columns, background last.
        class_agnostic: one set of deltas for all classes instead of one for each.
        matching: which regions are positive.
        sampling: how many regions of an image are learnt from.
        coder: how deltas describe a box relative to its region.
        loss: of classes and deltas.
    """

    def __init__(
        self, box_head: Any, num_classes: int, *, class_agnostic: bool, matching: Matching, sampling: Sampling,
        coder: BoxCoder, loss: RegionLoss,
    ):  # fmt: skip
        super().__init__()
        self.box_head, self.num_classes = box_head, num_classes
        self.class_score = nn.Linear(box_head.width, num_classes + 1)
        self.box_delta = nn.Linear(box_head.width, 4 if class_agnostic else 4 * num_classes)
        normal_(self.class_score, std=0.01)
        normal_(self.box_delta, std=0.001)
        self.matching, self.sampling, self.coder, self.loss = matching, sampling, coder, loss

    def forward(self, pooled: Tensor | list[Tensor]) -> tuple[Tensor, Tensor]:
        """What the pool gives of R regions -> class logits (R, K+1) and deltas (R, K or 1, 4), float32."""
        return self.predict(self.box_head(pooled))

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The box head's vectors (R, width) -> class logits (R, K+1) and deltas (R, K or 1, 4), float32."""
        return self.class_score(x).float(), self.box_delta(x).float().unflatten(1, (-1, 4))

    def sample(self, boxes: Sequence[Tensor], targets: Sequence[Target], *, use_all: bool = False) -> list[Regions]:
        """The regions to learn from, of the `boxes` (R_i, 4) of every image and its ground-truth boxes.

        `use_all`: all of the boxes and nothing else, as in the later stages of Detectron2's cascade.
        """
        return [self._sample(b, t, use_all) for b, t in zip(boxes, targets)]

    @torch.no_grad()
    def _sample(self, proposals: Tensor, target: Target, use_all: bool) -> Regions:
        # appended ground truth gives the first positives to learn from
        boxes = proposals if use_all else torch.cat([proposals, target.boxes])
        label, gt_index = self.matching(target.boxes, boxes, target.crowd)
        positive, negative = everything(label) if use_all else self.sampling(label)
        chosen = torch.cat([positive, negative])
        background = torch.full_like(negative, self.num_classes)
        labels = torch.cat([target.labels[gt_index[positive]], background])
        return Regions(boxes[chosen], labels, gt_index[chosen], chosen >= len(proposals))

    def losses(
        self, logits: Tensor, deltas: Tensor, regions: Sequence[Regions], targets: Sequence[Target]
    ) -> tuple[Tensor, Tensor]:
        """Class and box loss of the output on the sampled regions of all images, both divided by their number."""
        label = torch.cat([r.labels for r in regions])
        count = distributed.global_normalizer(len(label)) if self.training else max(len(label), 1)
        positive = torch.where(label < self.num_classes)[0]
        column = label[positive] if deltas.shape[1] > 1 else torch.zeros_like(positive)
        source = torch.cat([r.boxes for r in regions])[positive]
        matched_gt_boxes = torch.cat([self._matched(r, t) for r, t in zip(regions, targets)])
        return self.loss(logits, label, deltas[positive, column], self.coder.encode(source, matched_gt_boxes), count)

    @torch.no_grad()
    def moved(self, deltas: Tensor, regions: Sequence[Regions]) -> list[Regions]:
        """The positive regions of every image, their boxes where the deltas (S, K or 1, 4) of all regions move them."""
        kept = [r[r.labels < self.num_classes] for r in regions]
        label = torch.cat([r.labels for r in regions])
        positive = torch.where(label < self.num_classes)[0]
        column = label[positive] if deltas.shape[1] > 1 else torch.zeros_like(positive)
        source = torch.cat([r.boxes for r in kept])
        boxes = self.coder.decode(deltas[positive, column], source)
        boxes = torch.where(boxes.isfinite().all(dim=-1, keepdim=True), boxes, source)
        return [replace(r, boxes=b) for r, b in zip(kept, boxes.split([len(r) for r in kept]))]

    def _matched(self, regions: Regions, target: Target) -> Tensor:
        """The regression targets (P, 4) of the positives of an image."""
        return target.boxes[regions.gt_index[regions.labels < self.num_classes]]
