"""What a detector makes of one image at every step, from the anchors to the last suppression.

The steps are those of `GeneralizedRCNN.detect`, by the same functions: the detections of a trace are its detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detector.errors import ConfigError
from detector.modeling.boxes import box_iou, clip_boxes
from detector.modeling.padded import Padded
from detector.modeling.rcnn import GeneralizedRCNN
from detector.records.geometry import Size
from detector.structures import Batch, Detections, Proposals


@dataclass(frozen=True)
class AnchorTrace:
    """All P anchors of an image, those of one level after those of another, and what became of them."""

    boxes: Tensor
    """(P, 4) xyxy, before the deltas."""
    levels: Tensor
    """(P,) index of the level, 0 for the finest."""
    logits: Tensor
    """(P,) objectness."""
    ranks: Tensor
    """(P,) place among the anchors of the level by objectness, 0 for the best."""
    decoded: Tensor
    """(P, 4) where the deltas move them, clipped to the image."""
    seen: Tensor
    """(P,) bool: among the best of the level, which NMS sees (`pre_nms`)."""
    left: Tensor
    """(P,) bool: NMS has left it."""
    proposal: Tensor
    """(P,) row of the proposal that it became; -1 for none."""
    suppression: float = torch.inf
    """IoU above which a better box of its level suppresses."""

    def suppressed_by(self, anchor: int) -> int | None:
        """The row of the anchor whose box suppresses that of another; None where NMS leaves it, or does not see it."""
        if not self.seen[anchor] or self.left[anchor]:
            return None
        rival = self.left & (self.levels == self.levels[anchor]) & (self.logits >= self.logits[anchor])
        rows = torch.where(rival)[0]
        overlap = box_iou(self.decoded[anchor][None], self.decoded[rows])[0]
        rows = rows[overlap > self.suppression]
        return int(rows[self.ranks[rows].argmin()]) if len(rows) else None


@dataclass(frozen=True)
class StageTrace:
    """One stage of the second stage: what it reads and what it says of it."""

    boxes: Tensor
    """(R, 4) the regions that it reads: the proposals or, in a cascade, the boxes of the stage before."""
    levels: Tensor | None
    """(R,) the level k of stride 2**k that each is pooled from; None where all levels are read."""
    scores: Tensor
    """(R, K+1) softmax, background last."""
    refined: Tensor
    """(R, K or 1, 4) where its deltas move them, clipped to the image: for each class, or once for all."""


@dataclass(frozen=True)
class ImageTrace:
    """One image from the anchors to the detections; all boxes are in pixels of the given image."""

    size: Size
    """(h, w) of the image."""
    anchors: AnchorTrace | None
    """None where the proposals came with the image."""
    proposals: Proposals
    """R boxes with their objectness, best first."""
    stages: Sequence[StageTrace]
    """In their order; none where the detector is an RPN alone."""
    scores: Tensor
    """(R, K) of the regions, by which the last suppression ranks; of an RPN alone (R, 1)."""
    boxes: Tensor
    """(R, K or 1, 4) the boxes that it sees."""
    threshold: float
    """A class of a region takes part in it only above this score."""
    detections: Detections
    """D of them, best first, with masks and keypoints where the detector finds them."""
    regions: Tensor
    """(D,) row of the region that each detection comes from."""
    suppression: float
    """IoU above which a better detection suppresses; inf where nothing is suppressed."""
    across_classes: bool
    """Whether detections of other classes suppress, too."""

    def boxes_of(self, label: int) -> Tensor:
        """(R, 4) the final boxes of all regions for one class."""
        return self.boxes[:, label if self.boxes.shape[1] > 1 else 0]

    def suppressed_by(self, region: int, label: int) -> int | None:
        """The row of the best detection that suppresses this class of a region; None for one that no detection overlaps so.

        Such a one is a detection itself, lies below the threshold, or was one too many (`max_detections`).
        """
        found = self.detections
        overlap = box_iou(self.boxes_of(label)[region][None], found.boxes)[0]
        rival = (overlap > self.suppression) & (found.scores >= self.scores[region, label])
        rival &= ((found.labels == label) | self.across_classes) & ~((self.regions == region) & (found.labels == label))
        rows = torch.where(rival)[0]
        return int(rows[0]) if len(rows) else None


def can_trace(model: GeneralizedRCNN) -> bool:
    """Whether both stages are of this package, so that their steps can be followed."""
    first, second = model.needs_proposals or hasattr(model.rpn, "candidates"), hasattr(model.roi_head, "run")
    return first and (second or model.reports_proposals)


@torch.no_grad()
def trace(model: GeneralizedRCNN, image: Tensor, proposals: Proposals | None = None) -> ImageTrace:
    """Every step of `model`, in eval mode, on a uint8 RGB image (3, h, w) as it is: nothing is resized.

    `proposals` are for a detector without an RPN. Raises ConfigError for a first or second stage of the user's own.
    """
    batch = model.batch([image], [proposals])
    p = model.pyramid(batch.images)
    anchors, regions = _first_stage(model, p, batch)
    if model.reports_proposals:
        return _without_second_stage(model.roi_head, p, batch, anchors, regions)
    return _second_stage(model.roi_head, p, batch, anchors, regions)


def _first_stage(model: GeneralizedRCNN, p: list[Tensor], batch: Batch) -> tuple[AnchorTrace | None, Proposals]:
    rpn: Any = model.rpn
    if model.needs_proposals:
        [given] = rpn.propose(p, batch)
        return None, given
    if not hasattr(rpn, "candidates"):
        raise ConfigError(f"model.rpn: {type(rpn).__name__} is not of this package and cannot be traced")
    logits, deltas = rpn.head(p)
    anchors = rpn.anchors(p, batch.images.shape[-2:])
    scores, logit, boxes, rows = rpn.candidates(logits, deltas, anchors, training=False)
    counts = [row.shape[1] for row in rows]
    [proposals] = rpn.selection(scores, logit, boxes, counts, batch.sizes, training=False)
    _, left, chosen, valid = rpn.selection.choose(scores, logit, boxes, counts, batch.sizes, training=False)
    starts = torch.tensor([0, *(len(level) for level in anchors)]).cumsum(0).tolist()
    index = torch.cat([row[0] + start for row, start in zip(rows, starts)])  # of what NMS sees, among all anchors
    every, device = torch.cat(anchors), index.device
    seen, kept = (torch.zeros(len(every), dtype=torch.bool, device=device) for _ in range(2))
    seen[index], kept[index] = True, left[0]
    became = torch.full((len(every),), -1, device=device)
    became[index[chosen[0][valid[0]]]] = torch.arange(len(proposals), device=device)
    decoded = rpn.coder.decode(torch.cat([delta[0] for delta in deltas]), every)
    return AnchorTrace(
        boxes=every,
        levels=torch.cat([torch.full((len(a),), k, device=device) for k, a in enumerate(anchors)]),
        logits=torch.cat([level[0] for level in logits]),
        ranks=torch.cat([_ranks(level[0]) for level in logits]),
        decoded=clip_boxes(decoded, batch.sizes[0]),
        seen=seen, left=kept, proposal=became, suppression=rpn.selection.nms_iou,
    ), proposals  # fmt: skip


def _ranks(values: Tensor) -> Tensor:
    """(n,) -> (n,) the place of each, 0 for the highest."""
    order = values.argsort(descending=True, stable=True)
    return torch.zeros_like(order).scatter(0, order, torch.arange(len(order), device=order.device))


def _without_second_stage(
    head: Any, p: list[Tensor], batch: Batch, anchors: AnchorTrace | None, proposals: Proposals
) -> ImageTrace:  # fmt: skip
    [found] = head.detect(p, [proposals], batch)
    return ImageTrace(
        batch.sizes[0], anchors, proposals, [], proposals.scores.float().sigmoid()[:, None], proposals.boxes[:, None], 0.0,
        found, torch.arange(len(found), device=found.boxes.device), torch.inf, False,
    )  # fmt: skip


def _second_stage(
    head: Any, p: list[Tensor], batch: Batch, anchors: AnchorTrace | None, proposals: Proposals
) -> ImageTrace:  # fmt: skip
    if not hasattr(head, "run"):
        raise ConfigError(f"model.roi_head: {type(head).__name__} is not of this package and cannot be traced")
    padded, size = Padded.of([proposals]), batch.sizes[0]
    stages = getattr(head, "stages", None) or [head.stage]
    outputs = head.run(p, list(padded.rows.boxes), batch.sizes)
    seen = [
        StageTrace(
            boxes[0], region_levels(head, boxes[0]), logits.softmax(dim=1), _decoded(stage, deltas, boxes[0], size)
        )
        for stage, (boxes, logits, deltas) in zip(stages, outputs)
    ]
    scores = head.scores([logits for _, logits, _ in outputs])
    last = outputs[-1][2].unflatten(0, padded.valid.shape), torch.stack(outputs[-1][0]), padded.valid, stages[-1].coder
    found, regions = head.selection.choose(scores.unflatten(0, padded.valid.shape), *last, batch.sizes)
    [complete] = head.complete(p, list(found), batch)
    rule = head.selection
    return ImageTrace(
        size, anchors, proposals, seen, scores, seen[-1].refined, rule.score_threshold, complete, regions[0][found.valid[0]],
        rule.nms_iou if rule.nms == "hard" else torch.inf, rule.class_agnostic_nms,
    )  # fmt: skip


def region_levels(head: Any, boxes: Tensor) -> Tensor | None:
    """The level k (R,) of stride 2**k that a RoI head pools each box (R, 4) from; None where it reads all, or pools nothing."""
    pool = getattr(head, "pool", None)
    pool = getattr(pool, "pool", pool)  # of one that adds the semantic embedding
    return None if pool is None or not hasattr(pool, "level_of") else pool.level_of(boxes)


def _decoded(stage: Any, deltas: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """(R, K or 1, 4) the boxes of a stage."""
    return clip_boxes(stage.coder.decode(deltas, boxes[:, None].expand_as(deltas)), size)
