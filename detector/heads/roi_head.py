"""The second stage: classify and refine proposals (Girshick 2015, Fast R-CNN, arXiv 1504.08083)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from detector.errors import check_range
from detector.geometry.boxes import clip_boxes, decode, encode, is_larger_than
from detector.heads.pool import RoIPool
from detector.layers import normal_, smooth_l1
from detector.matching.assign import assign_boxes
from detector.matching.sample import sample
from detector.structures import Batch, Detections, Proposals, Target


def to_rois(boxes: list[Tensor]) -> Tensor:
    """Boxes (R_i, 4) of N images -> one (R, 5) tensor [image, x1, y1, x2, y2]."""
    return torch.cat([F.pad(b, (1, 0), value=float(i)) for i, b in enumerate(boxes)])


class RoIHead(nn.Module):
    """Proposals -> detections. The class scores have `num_classes` + 1 columns, background last."""

    def __init__(
        self,
        pool: RoIPool,
        box_head: nn.Module,
        num_classes: int,
        *,
        class_agnostic: bool = False,
        box_weights: tuple[float, float, float, float] = (10, 10, 5, 5),
        batch_per_image: int = 512,
        positive_fraction: float = 0.25,
        pos_iou: float = 0.5,
        beta: float = 0.0,
        class_weight: float = 1.0,
        box_weight: float = 1.0,
        score_threshold: float = 0.05,
        nms_iou: float = 0.5,
        max_detections: int = 100,
        min_size: float = 0.0,
    ):
        super().__init__()
        check_range("model.roi_head", 0, 1, nms_iou=nms_iou, positive_fraction=positive_fraction, pos_iou=pos_iou,
                    score_threshold=score_threshold)  # fmt: skip
        check_range(
            "model.roi_head", 0, 1e6, beta=beta, class_weight=class_weight, box_weight=box_weight, min_size=min_size
        )
        check_range("model.roi_head", 1, 1e9, batch_per_image=batch_per_image, max_detections=max_detections)
        check_range("model.roi_head", 1e-3, 1e6, box_weights=box_weights)
        self.pool, self.box_head, self.num_classes = pool, box_head, num_classes
        self.class_score = nn.Linear(box_head.width, num_classes + 1)
        self.box_delta = nn.Linear(box_head.width, 4 if class_agnostic else 4 * num_classes)
        normal_(self.class_score, std=0.01)
        normal_(self.box_delta, std=0.001)
        self.box_weights = tuple(box_weights)
        self.sampling = dict(num=batch_per_image, positive_fraction=positive_fraction)
        self.pos_iou, self.beta = pos_iou, beta
        self.class_weight, self.box_weight = class_weight, box_weight
        self.score_threshold, self.nms_iou = score_threshold, nms_iou
        self.max_detections, self.min_size = max_detections, min_size

    def losses(self, p: list[Tensor], proposals: list[Proposals], targets: list[Target]) -> dict[str, Tensor]:
        """{"roi_class", "roi_box"}, both divided by the number of sampled regions."""
        samples = [self._sample(r.boxes, t) for r, t in zip(proposals, targets)]
        boxes, label, goal = (torch.cat(parts) for parts in zip(*samples))
        logits, deltas = self.head(p, to_rois([s[0] for s in samples]))
        count = max(len(label), 1)
        positive = torch.where(label < self.num_classes)[0]
        own = label[positive] if deltas.shape[1] > 1 else torch.zeros_like(positive)
        target_deltas = encode(boxes[positive], goal[positive], self.box_weights)
        class_loss = F.cross_entropy(logits, label, reduction="sum")
        box_loss = smooth_l1(deltas[positive, own], target_deltas, self.beta)
        return {
            "roi_class": class_loss * (self.class_weight / count),
            "roi_box": box_loss * (self.box_weight / count),
        }

    def detect(self, p: list[Tensor], proposals: list[Proposals], batch: Batch) -> list[Detections]:
        """The final boxes of every image, best first."""
        boxes = [r.boxes for r in proposals]
        return self.select(*self.head(p, to_rois(boxes)), boxes, batch)

    def select(self, logits: Tensor, deltas: Tensor, boxes: list[Tensor], batch: Batch) -> list[Detections]:
        """What of the head's output (rows of all images) on the regions `boxes` is reported: threshold, NMS per class."""
        counts = [len(b) for b in boxes]
        scores = logits.softmax(dim=1)[:, :-1].split(counts)  # (R_i, K) each
        return [self._select(*parts) for parts in zip(scores, deltas.split(counts), boxes, batch.sizes)]

    def head(self, p: list[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        """(R, 5) rois -> class logits (R, K+1) and deltas (R, K or 1, 4), float32."""
        x = self.box_head(self.pool(p, rois))
        return self.class_score(x).float(), self.box_delta(x).float().unflatten(1, (-1, 4))

    @torch.no_grad()
    def _sample(self, proposals: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        """Sampled regions (S, 4), their class (S,) with K for background, and the box (S, 4) that each should become."""
        boxes = torch.cat([proposals, target.boxes])  # the objects themselves are the first positives to learn from
        label, gt_index = assign_boxes(
            target.boxes, boxes, pos_iou=self.pos_iou, neg_iou=self.pos_iou, crowd=target.crowd
        )
        positive, negative = sample(label, **self.sampling)
        background = torch.full_like(negative, self.num_classes)
        labels = torch.cat([target.labels[gt_index[positive]], background])
        goal = torch.cat([target.boxes[gt_index[positive]], boxes[negative]])
        return boxes[torch.cat([positive, negative])], labels, goal

    def _select(self, scores: Tensor, deltas: Tensor, boxes: Tensor, size: tuple[int, int]) -> Detections:
        """Scores (R, K), deltas (R, K or 1, 4) on boxes (R, 4) of one image; only what may be reported is decoded."""
        row, label = torch.where(scores > self.score_threshold)  # never true of NaN
        own = label if deltas.shape[1] > 1 else torch.zeros_like(label)
        box = decode(deltas[row, own], boxes[row], self.box_weights)
        finite = box.isfinite().all(dim=-1)
        box = clip_boxes(box, size)
        valid = torch.where(finite & is_larger_than(box, self.min_size))[0]
        box, score, label = box[valid], scores[row[valid], label[valid]], label[valid]
        best = batched_nms(box, score, label, self.nms_iou)[: self.max_detections]
        return Detections(box[best], score[best], label[best])
