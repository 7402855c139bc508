"""The second stage: classify and refine proposals (Girshick 2015, Fast R-CNN, arXiv 1504.08083)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector import distributed
from detector.errors import ConfigError, check_range
from detector.modeling.boxes import clip_boxes, decode, encode, is_larger_than
from detector.modeling.layers import balanced_l1, normal_, smooth_l1
from detector.modeling.matching import LEAST_IOU, assign_boxes
from detector.modeling.roi_heads.nms import suppress
from detector.modeling.sampling import sample
from detector.structures import Batch, Detections, Proposals, Target


def to_rois(boxes: list[Tensor]) -> Tensor:
    """Boxes (R_i, 4) of N images -> one (R, 5) tensor [image, x1, y1, x2, y2]."""
    return torch.cat([F.pad(b, (1, 0), value=float(i)) for i, b in enumerate(boxes)])


@dataclass
class Regions:
    """The S sampled regions of all images, S = S_1 + ... + S_N, each image's positives before its negatives."""

    boxes: list[Tensor]  # (S_i, 4) of every image
    labels: Tensor  # (S,) in 0..K, K for background
    goals: Tensor  # (S, 4) the box that each should become; a background region's own
    is_object: list[Tensor]  # (S_i,) bool: no proposal but an object, which joined them


class RegionHead(nn.Module):
    """Pooled regions -> class scores and deltas, and the rules by which they are learnt and reported.

    The class scores have `num_classes` + 1 columns, background last. `beta` is the corner of `box_loss`; `clamp_both`
    bounds how much a box may shrink, too (mmdetection). Suppression is `nms`: "hard", or soft by a "linear" or
    "gaussian" decay (roi_heads/nms.py), which drops a box once its score is below `soft_min_score`; of every class by
    itself, or with `class_agnostic_nms` of all together.
    """

    def __init__(
        self,
        box_head: nn.Module,
        num_classes: int,
        *,
        class_agnostic: bool = False,
        box_weights: tuple[float, float, float, float] = (10, 10, 5, 5),
        clamp_both: bool = False,
        batch_per_image: int = 512,
        positive_fraction: float = 0.25,
        pos_iou: float = 0.5,
        box_loss: Literal["smooth_l1", "balanced_l1"] = "smooth_l1",
        beta: float = 0.0,
        class_weight: float = 1.0,
        box_weight: float = 1.0,
        score_threshold: float = 0.05,
        nms: Literal["hard", "linear", "gaussian"] = "hard",
        nms_iou: float = 0.5,
        soft_min_score: float = 1e-3,
        class_agnostic_nms: bool = False,
        max_detections: int = 100,
        min_size: float = 0.0,
    ):
        super().__init__()
        check_range("model.roi_head", 0, 1, nms_iou=nms_iou, positive_fraction=positive_fraction,
                    score_threshold=score_threshold)  # fmt: skip
        check_range("model.roi_head", LEAST_IOU, 1, pos_iou=pos_iou)
        check_range("model.roi_head", 1e-9, 1, soft_min_score=soft_min_score)
        check_range(
            "model.roi_head", 0, 1e6, beta=beta, class_weight=class_weight, box_weight=box_weight, min_size=min_size
        )
        check_range("model.roi_head", 1, 1e9, batch_per_image=batch_per_image, max_detections=max_detections)
        check_range("model.roi_head", 1e-3, 1e6, box_weights=box_weights)
        if box_loss == "balanced_l1" and beta == 0:
            raise ConfigError("model.roi_head.beta: the balanced L1 loss needs a corner above 0 (1 in Libra R-CNN)")
        self.box_head, self.num_classes = box_head, num_classes
        self.class_score = nn.Linear(box_head.width, num_classes + 1)
        self.box_delta = nn.Linear(box_head.width, 4 if class_agnostic else 4 * num_classes)
        normal_(self.class_score, std=0.01)
        normal_(self.box_delta, std=0.001)
        self.box_weights, self.clamp_both = tuple(box_weights), clamp_both
        self.sampling = dict(num=batch_per_image, positive_fraction=positive_fraction)
        self.pos_iou, self.beta = pos_iou, beta
        self.box_loss = {"smooth_l1": smooth_l1, "balanced_l1": balanced_l1}[box_loss]
        self.class_weight, self.box_weight = class_weight, box_weight
        self.score_threshold, self.max_detections, self.min_size = score_threshold, max_detections, min_size
        self.class_agnostic_nms = class_agnostic_nms
        self.suppression = dict(kind=nms, iou=nms_iou, min_score=soft_min_score, limit=max_detections)

    def predict(self, pooled: Tensor | list[Tensor]) -> tuple[Tensor, Tensor]:
        """What the pool gives of R regions -> class logits (R, K+1) and deltas (R, K or 1, 4), float32."""
        x = self.box_head(pooled)
        return self.class_score(x).float(), self.box_delta(x).float().unflatten(1, (-1, 4))

    def sample_regions(self, boxes: list[Tensor], targets: list[Target], *, everything: bool = False) -> Regions:
        """What is learnt of the regions `boxes` (R_i, 4) of every image: a sample of them and the objects.

        `everything`: all of them and nothing else, as in the later stages of Detectron2's cascade.
        """
        samples = [self._sample(b, t, everything) for b, t in zip(boxes, targets)]
        boxes, labels, goals, is_object = zip(*samples)
        return Regions(list(boxes), torch.cat(labels), torch.cat(goals), list(is_object))

    def region_losses(self, logits: Tensor, deltas: Tensor, regions: Regions) -> tuple[Tensor, Tensor]:
        """Class and box loss of the head's output on sampled regions, both divided by their number."""
        label = regions.labels
        count = distributed.share_of_all(len(label)) if self.training else max(len(label), 1)
        positive = torch.where(label < self.num_classes)[0]
        own = label[positive] if deltas.shape[1] > 1 else torch.zeros_like(positive)
        target_deltas = encode(torch.cat(regions.boxes)[positive], regions.goals[positive], self.box_weights)
        class_loss = F.cross_entropy(logits, label, reduction="sum")
        box_loss = self.box_loss(deltas[positive, own], target_deltas, self.beta)
        return class_loss * (self.class_weight / count), box_loss * (self.box_weight / count)

    def decode(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Deltas (R, 4) on boxes (R, 4) -> boxes (R, 4), unclipped."""
        return decode(deltas, boxes, self.box_weights, self.clamp_both)

    def report(self, scores: Tensor, deltas: Tensor, boxes: list[Tensor], batch: Batch) -> list[Detections]:
        """Scores (R, K), deltas (R, K or 1, 4) of the regions `boxes` of all images -> threshold, boxes, suppression."""
        counts = [len(b) for b in boxes]
        return [self._report(*parts) for parts in zip(scores.split(counts), deltas.split(counts), boxes, batch.sizes)]

    @torch.no_grad()
    def _sample(self, proposals: Tensor, target: Target, everything: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The parts of `Regions` of one image."""
        # the objects themselves are the first positives to learn from
        boxes = proposals if everything else torch.cat([proposals, target.boxes])
        label, gt_index = assign_boxes(
            target.boxes, boxes, pos_iou=self.pos_iou, neg_iou=self.pos_iou, crowd=target.crowd
        )
        positive, negative = sample(
            label, **(dict(num=len(boxes), positive_fraction=1) if everything else self.sampling)
        )
        background = torch.full_like(negative, self.num_classes)
        labels = torch.cat([target.labels[gt_index[positive]], background])
        goals = torch.cat([target.boxes[gt_index[positive]], boxes[negative]])
        chosen = torch.cat([positive, negative])
        return boxes[chosen], labels, goals, chosen >= len(proposals)

    def _report(self, scores: Tensor, deltas: Tensor, boxes: Tensor, size: tuple[int, int]) -> Detections:
        """One image; only what may be reported is decoded."""
        row, label = torch.where(scores > self.score_threshold)  # never true of NaN
        own = label if deltas.shape[1] > 1 else torch.zeros_like(label)
        box = self.decode(deltas[row, own], boxes[row])
        finite = box.isfinite().all(dim=-1)
        box = clip_boxes(box, size)
        valid = torch.where(finite & is_larger_than(box, self.min_size))[0]
        box, score, label = box[valid], scores[row[valid], label[valid]], label[valid]
        group = torch.zeros_like(label) if self.class_agnostic_nms else label
        best, score = suppress(box, score, group, **self.suppression)
        return Detections(box[best], score, label[best])


class RoIHead(RegionHead):
    """Proposals -> detections. The options are those of RegionHead."""

    def __init__(self, pool: nn.Module, box_head: nn.Module, num_classes: int, **options):
        super().__init__(box_head, num_classes, **options)
        self.pool = pool

    def losses(
        self, p: list[Tensor], proposals: list[Proposals], batch: Batch, targets: list[Target]
    ) -> dict[str, Tensor]:
        """{"roi_class", "roi_box"}, both divided by the number of sampled regions."""
        regions = self.sample_regions([r.boxes for r in proposals], targets)
        class_loss, box_loss = self.region_losses(*self.head(p, to_rois(regions.boxes)), regions)
        return {"roi_class": class_loss, "roi_box": box_loss}

    def detect(self, p: list[Tensor], proposals: list[Proposals], batch: Batch) -> list[Detections]:
        """The final boxes of every image, best first."""
        boxes = [r.boxes for r in proposals]
        return self.select(*self.head(p, to_rois(boxes)), boxes, batch)

    def head(self, p: list[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        """(R, 5) rois -> class logits (R, K+1) and deltas (R, K or 1, 4), float32."""
        return self.predict(self.pool(p, rois))

    def select(self, logits: Tensor, deltas: Tensor, boxes: list[Tensor], batch: Batch) -> list[Detections]:
        """What of the head's output (rows of all images) on the regions `boxes` is reported."""
        return self.report(logits.softmax(dim=1)[:, :-1], deltas, boxes, batch)
