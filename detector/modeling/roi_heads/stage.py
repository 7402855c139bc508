"""One stage of classification and box refinement: what Faster R-CNN has once and a cascade several times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector import distributed
from detector.modeling.boxes import BoxCoder, is_larger_than
from detector.modeling.layers import at_least, balanced_l1, normal_, only, reads_whole_batch, smooth_l1
from detector.modeling.matching import IGNORE, NEGATIVE, POSITIVE, Matching
from detector.modeling.padded import Padded
from detector.modeling.sampling import Sampling, everything
from detector.modeling.shapes import may_look
from detector.records.record import Record, boxes_field, rows_field
from detector.schema.ranges import Weight
from detector.schema.signatures import checked
from detector.structures import Proposals, Target

EMPTY = -1  # the label of a row that holds no region


def to_rois(boxes: Sequence[Tensor] | Tensor) -> Tensor:
    """Boxes (R_i, 4) of N images, or (N, R, 4) -> one (R, 5) tensor [image, x1, y1, x2, y2]."""
    return torch.cat([F.pad(b, (1, 0), value=float(i)) for i, b in enumerate(boxes)])


def boxes_of(proposals: Sequence[Proposals]) -> list[Tensor]:
    """The boxes (R_i, 4) of every image; where shapes are fixed, those without an area are padding."""
    if isinstance(proposals, Padded) and not may_look(proposals.valid.device):
        return [r.boxes for r in proposals.whole()]
    return [r.boxes for r in proposals]


@dataclass
class Regions(Record):
    """The sampled regions of one image, positives before negatives."""

    boxes: Tensor = boxes_field()
    """(S, 4) xyxy."""
    labels: Tensor = rows_field()
    """(S,) in 0..K, K for background, or EMPTY."""
    gt_index: Tensor = rows_field()
    """(S,) row of the matched object in the image's target; means something only for positives."""
    is_gt: Tensor = rows_field()
    """(S,) bool: a ground-truth box that was appended to the proposals."""
    slots: int | None = None
    """No positive comes after so many rows, where that is known."""


def positives(regions: Sequence[Regions], num_classes: int, *, alone: bool = False) -> list[Regions]:
    """The regions of every image that are matched to an object.

    Where shapes are fixed, all rows before the last that may be one; the others of them are EMPTY. `alone`: without these.
    """
    if alone or may_look(regions[0].labels.device):
        return [r[(r.labels < num_classes) & (r.labels != EMPTY)] for r in regions]
    first = [r[: r.slots] for r in regions]
    return [replace(r, labels=torch.where(r.labels < num_classes, r.labels, EMPTY)) for r in first]


def positive_rows(regions: Sequence[Regions], num_classes: int) -> Tensor:
    """The rows (P,) of `positives` among the regions of all images."""
    if may_look(regions[0].labels.device):
        return torch.where(torch.cat([r.labels for r in regions]) < num_classes)[0]
    rows = torch.arange(sum(map(len, regions)), device=regions[0].labels.device).split([len(r) for r in regions])
    return torch.cat([row[: r.slots] for row, r in zip(rows, regions)])


def filled(labels: Tensor) -> tuple[Tensor, int | Tensor]:
    """Which rows (S,) are not EMPTY, and how many: a number of the device where shapes are fixed."""
    rows = labels != EMPTY
    return rows, len(rows) if may_look(labels.device) else rows.sum()


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
        self, logits: Tensor, labels: Tensor, deltas: Tensor, target_deltas: Tensor, count: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits (S, K+1) against labels (S,), deltas (P, 4) of positives against their targets: both divided by `count`."""
        box_loss = balanced_l1 if self.box_loss == "balanced_l1" else smooth_l1
        class_sum = F.cross_entropy(logits, labels, reduction="sum", ignore_index=EMPTY)
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
        self.alone = reads_whole_batch(self)

    def forward(self, pooled: Tensor | list[Tensor]) -> tuple[Tensor, Tensor]:
        """What the pool gives of R regions -> class logits (R, K+1) and deltas (R, K or 1, 4), float32."""
        return self.predict(self.box_head(pooled))

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The box head's vectors (R, width) -> class logits (R, K+1) and deltas (R, K or 1, 4), float32."""
        return self.class_score(x).float(), self.box_delta(x).float().unflatten(1, (-1, 4))

    def sample(self, boxes: Sequence[Tensor], targets: Sequence[Target], *, use_all: bool = False) -> list[Regions]:
        """The regions to learn from, of the `boxes` (R_i, 4) of every image and its ground-truth boxes.

        Boxes without an area are never learnt from: rows that hold nothing where shapes are fixed.
        `use_all`: all of the boxes and nothing else, as in the later stages of Detectron2's cascade.
        """
        regions = [self._sample(b, t, use_all) for b, t in zip(boxes, targets)]
        return [r[r.labels != EMPTY] for r in regions] if self.alone else regions

    @torch.no_grad()
    def _sample(self, proposals: Tensor, target: Target, use_all: bool) -> Regions:
        # appended ground truth gives the first positives to learn from
        boxes = proposals if use_all else torch.cat([proposals, target.boxes])
        label, gt_index = self.matching(target.boxes, boxes, target.crowd)
        label = torch.where(is_larger_than(boxes, 0), label, IGNORE)
        chosen, kind, slots = everything(label) if use_all else self.sampling(label)
        slots, gt_index = slots if len(target) else 0, gt_index[chosen]
        labels = torch.where(kind == NEGATIVE, self.num_classes, EMPTY)
        of_objects = torch.where(kind[:slots] == POSITIVE, target.labels[gt_index[:slots]], labels[:slots])
        labels = torch.cat([of_objects, labels[slots:]])
        return Regions(boxes[chosen], labels, gt_index, chosen >= len(proposals), slots)

    def losses(
        self, logits: Tensor, deltas: Tensor, regions: Sequence[Regions], targets: Sequence[Target]
    ) -> tuple[Tensor, Tensor]:
        """Class and box loss of the output on the sampled regions of all images, both divided by their number."""
        label = torch.cat([r.labels for r in regions])
        _, count = filled(label)
        divisor = distributed.global_normalizer(count) if self.training else at_least(count, 1)
        found, of_objects = self._deltas(deltas, regions)
        matched_gt_boxes = torch.cat([t.boxes[r.gt_index] for r, t in zip(of_objects, targets)])
        wanted = self.coder.encode(torch.cat([r.boxes for r in of_objects]), matched_gt_boxes)
        rows, _ = filled(torch.cat([r.labels for r in of_objects]))
        return self.loss(logits, label, found, only(rows, wanted, found), divisor)

    @torch.no_grad()
    def moved(self, deltas: Tensor, regions: Sequence[Regions]) -> list[Regions]:
        """The positive regions of every image, their boxes where the deltas (S, K or 1, 4) of all regions move them."""
        found, kept = self._deltas(deltas, regions)
        source = torch.cat([r.boxes for r in kept])
        boxes = self.coder.decode(found, source)
        boxes = torch.where(boxes.isfinite().all(dim=-1, keepdim=True), boxes, source)
        return [replace(r, boxes=b) for r, b in zip(kept, boxes.split([len(r) for r in kept]))]

    def _deltas(self, deltas: Tensor, regions: Sequence[Regions]) -> tuple[Tensor, list[Regions]]:
        """Of the deltas (S, K or 1, 4) those of the positives for their class (P, 4), and the positives of every image."""
        kept = positives(regions, self.num_classes)
        label = torch.cat([r.labels for r in kept]).clamp(min=0)
        column = label if deltas.shape[1] > 1 else torch.zeros_like(label)
        return deltas[positive_rows(regions, self.num_classes), column], kept
