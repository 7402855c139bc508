"""The funnel of misses: the step at which a two-stage detector loses an object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from detector.insight.trace import ImageTrace
from detector.modeling.boxes import box_iou

STEPS = {  # from the image to the detections; what to do about each
    "no anchor": "no anchor reaches it; add sizes or ratios (detector check-data --anchors FILE), or enlarge data.resize",
    "top-k": "the first stage ranks its anchors too low; raise model.rpn.selection.pre_nms, or train longer",
    "suppressed": "a proposal of another object suppresses its own; raise model.rpn.selection.nms_iou or post_nms",
    "badly placed": "proposals reach it, but the final box does not; train longer, or refine boxes by a cascade",
    "wrong class": "its box is there under the name of another class; see the confusion matrix and the labels",
    "below threshold": "its box is there, but scored below model.roi_head.selection.score_threshold; lower that, or train longer",
    "suppressed at the end": "a better detection takes or suppresses its box; raise model.roi_head.selection.nms_iou",
    "poor mask": "its box is found, but the mask does not cover it; train the masks longer, or on larger images",
}
NO_ANCHOR, TOP_K, SUPPRESSED, PLACED, CLASS, THRESHOLD, END, MASK = range(len(STEPS))
ENOUGH = 0.5  # IoU of a box that reaches an object


class Loss(NamedTuple):
    """Where an object is lost, if it is missed."""

    step: int
    """Number of one of STEPS."""
    level: int
    """k of the level of stride 2**k that the second stage would read it from; -1 where it reads all."""


@torch.no_grad()
def lost_at(trace: ImageTrace, boxes: Tensor, labels: Tensor) -> Tensor:
    """(G,) the step up to which each object comes, with boxes (G, 4) in the pixels of the trace and labels (G,).

    An object is asked for from the end: a final box of its class that overlaps it by ENOUGH and counts can only be lost in the
    last suppression, and so on back to the anchors. So each object has one step, whether a detection finds it or not.
    """
    step = _before_proposals(trace, boxes)
    if not len(trace.proposals) or not len(boxes):
        return step
    if not trace.stages:
        return step.where(box_iou(boxes, trace.proposals.boxes).amax(dim=1) < ENOUGH, END)
    reached = box_iou(boxes, trace.proposals.boxes) >= ENOUGH  # (G, R)
    own = torch.stack([trace.boxes_of(label) for label in labels.tolist()])  # (G, R, 4)
    good = torch.stack([box_iou(box[None], regions)[0] for box, regions in zip(boxes, own)]) >= ENOUGH
    scores = trace.scores.T[labels]  # (G, R)
    best, named = trace.scores.max(dim=1)  # (R,)
    column = named if trace.boxes.shape[1] > 1 else torch.zeros_like(named)
    taken = trace.boxes[torch.arange(len(named), device=named.device), column]  # (R, 4) the box of the best class
    mistaken = (best > trace.threshold) & (named != labels[:, None])
    step = step.where(~reached.any(dim=1), PLACED)
    step = step.where(~good.any(dim=1), THRESHOLD)
    step = step.where(~(mistaken & (box_iou(boxes, taken) >= ENOUGH)).any(dim=1), CLASS)
    return step.where(~(good & (scores > trace.threshold)).any(dim=1), END)


def _before_proposals(trace: ImageTrace, boxes: Tensor) -> Tensor:
    """The step (G,) of objects that no proposal reaches."""
    step = torch.full((len(boxes),), NO_ANCHOR, device=boxes.device)
    if trace.anchors is None or not len(boxes):
        return step
    anchors = trace.anchors
    started = box_iou(boxes, anchors.boxes) >= ENOUGH  # (G, P)
    moved = box_iou(boxes, anchors.decoded) >= ENOUGH
    step = step.where(~(started | moved).any(dim=1), TOP_K)
    step = step.where(~(started & anchors.seen).any(dim=1), PLACED)
    return step.where(~(moved & anchors.seen).any(dim=1), SUPPRESSED)


def size_name(area: float) -> str:
    """COCO's name of an area in pixels."""
    return "small" if area < 32**2 else "medium" if area < 96**2 else "large"


def funnel(losses: Iterable[tuple[Loss, float]]) -> dict[int, Counter[str]]:
    """How many missed objects, given with their areas, each step has lost: in "all", by size, and by level ("P3")."""
    counts: dict[int, Counter[str]] = {step: Counter() for step in range(len(STEPS))}
    for loss, area in losses:
        level = f"P{loss.level}" if loss.level >= 0 else "all levels"
        counts[loss.step].update(["all", size_name(area), level])
    return counts
