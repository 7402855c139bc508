"""What is followed through a trace: the region of a detection, or what comes furthest of an object at a place."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detector.insight.explain_facts import FOUND, LOW
from detector.insight.funnel import CLASS, END, ENOUGH, NO_ANCHOR, PLACED, STEPS, SUPPRESSED, THRESHOLD, TOP_K, lost_at
from detector.insight.trace import ImageTrace
from detector.modeling.boxes import box_iou


@dataclass(frozen=True)
class Followed:
    """Rows of a trace, and the answer that they give."""

    answer: str
    """found, low score, or the step of the funnel at which the object is lost."""
    label: int
    """Of the class that is followed; of an object of the wrong class the one that it is taken for."""
    region: int | None = None
    anchor: int | None = None
    """Which it comes from; without a region the one that comes furthest."""


def follow_detection(trace: ImageTrace, number: int, score: float) -> Followed:
    """The way of the detection with that number, from 0."""
    found = trace.detections
    answer = FOUND if found.scores[number] >= score else LOW
    return _with_anchor(trace, Followed(answer, int(found.labels[number]), int(trace.regions[number])))


def follow_box(trace: ImageTrace, box: Tensor, label: int | None, score: float) -> Followed:
    """What comes furthest of an object at `box` (4,), in pixels of the trace, of a class that may be unknown."""
    found = trace.detections
    there = box_iou(box[None], found.boxes)[0] >= ENOUGH
    if label is not None:
        there &= found.labels == label
    if there.any():
        return follow_detection(trace, int(torch.where(there)[0][0]), score)
    label = likely_label(trace, box) if label is None else label
    step = int(lost_at(trace, box[None], torch.tensor([label], device=box.device))[0])
    followed = Followed(list(STEPS)[step], label)
    if step in (END, THRESHOLD):
        good = box_iou(box[None], trace.boxes_of(label))[0] >= ENOUGH
        return _with_anchor(trace, replace(followed, region=_best(trace.scores[:, label], good)))
    if step == CLASS:
        return _with_anchor(trace, _mistaken(trace, box, followed))
    overlap = box_iou(box[None], trace.proposals.boxes)[0]
    if step == PLACED and (overlap >= ENOUGH).any():
        return _with_anchor(trace, replace(followed, region=int(overlap.argmax())))
    return replace(followed, anchor=_furthest_anchor(trace, box, step))


def likely_label(trace: ImageTrace, box: Tensor) -> int:
    """The class with the highest score at `box` (4,): of final boxes that reach it, else of the proposal nearest to it."""
    if not len(trace.proposals):
        return 0
    overlap = box_iou(box[None], trace.boxes.flatten(0, 1))[0].view(trace.boxes.shape[:2])  # (R, K or 1)
    score = torch.where(overlap >= ENOUGH, trace.scores, -1.0)
    if (score >= 0).any():
        return int(score.argmax()) % score.shape[1]
    return int(trace.scores[box_iou(box[None], trace.proposals.boxes)[0].argmax()].argmax())


def _mistaken(trace: ImageTrace, box: Tensor, followed: Followed) -> Followed:
    """With the region at the box that is surest of another class."""
    best, named = trace.scores.max(dim=1)
    column = named if trace.boxes.shape[1] > 1 else torch.zeros_like(named)
    taken = trace.boxes[torch.arange(len(named), device=named.device), column]
    region = _best(best, (box_iou(box[None], taken)[0] >= ENOUGH) & (named != followed.label))
    return replace(followed, region=region, label=int(named[region]))


def _furthest_anchor(trace: ImageTrace, box: Tensor, step: int) -> int | None:
    anchors = trace.anchors
    if anchors is None:
        return None
    start, moved = box_iou(box[None], anchors.boxes)[0], box_iou(box[None], anchors.decoded)[0]
    if step == NO_ANCHOR:
        return int(start.argmax())
    if step == TOP_K:
        return _best(-anchors.ranks.float(), (start >= ENOUGH) | (moved >= ENOUGH))
    if step == SUPPRESSED:
        return _best(anchors.logits, (moved >= ENOUGH) & anchors.seen)
    return _best(moved, (start >= ENOUGH) & anchors.seen)


def _with_anchor(trace: ImageTrace, followed: Followed) -> Followed:
    """With the anchor of its region."""
    if trace.anchors is None or followed.region is None:
        return followed
    rows = torch.where(trace.anchors.proposal == followed.region)[0]
    return replace(followed, anchor=int(rows[0])) if len(rows) else followed


def _best(values: Tensor, allowed: Tensor) -> int:
    """The row of the highest value (n,) among the `allowed` (n,)."""
    return int(torch.where(allowed, values, -torch.inf).argmax())
