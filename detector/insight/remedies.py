"""What may help where an object is lost or nothing is found, with changes of the command line that are known to do it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from detector.inference.divergence import AGAIN
from detector.insight.explain_facts import FOUND, LOW, Remedy
from detector.insight.follow import Followed
from detector.insight.funnel import CLASS, END, ENOUGH, NO_ANCHOR, PLACED, STEPS, SUPPRESSED, THRESHOLD, TOP_K
from detector.insight.look import Look
from detector.modeling.boxes import box_iou, is_larger_than
from detector.modeling.nms import left_by_nms

FIRST, LAST = "model.rpn.selection", "model.roi_head.selection"
MARGIN = 0.05  # of an IoU, so that a resized image's rounding does not decide
MOST = 0.85  # a higher IoU would find every object many times
GREATEST = 8  # times larger or smaller that an image may be read
LEAST = 0.01  # a lower score says that there is nothing, and no threshold helps
TRAIN = "train longer, on images with such objects"


def remedy_of(look: Look) -> Remedy | None:
    """For what is followed; None where it is found."""
    followed = look.followed
    if followed is None or followed.answer == FOUND:
        return None
    if not _is_finite(look):
        return Remedy(f"the network's numbers are not finite: {AGAIN}")
    if followed.answer == LOW:
        score = float(look.trace.detections.scores[_detection(look, followed)])
        return Remedy("it is there; show detections of lower scores, or " + TRAIN, [f"--score={_below(score)}"])
    step = list(STEPS).index(followed.answer)
    if step == NO_ANCHOR:
        return _other_size(look)
    if step in (TOP_K, SUPPRESSED):
        return _in_first_stage(look, followed)
    if step == THRESHOLD:
        return _at_threshold(look, followed)
    if step == END:
        return _in_last_suppression(look, followed)
    if step == CLASS:
        return Remedy(
            "look at the labels of both classes in the training images, and train on more that tell them apart"
        )
    assert step == PLACED
    if followed.region is None or look.model.reports_proposals or hasattr(look.model.roi_head, "stages"):
        return Remedy(TRAIN)
    return Remedy(f"{TRAIN}, or refine the boxes in several stages (model.roi_head.type=cascade)")


def why_nothing(look: Look) -> tuple[str, Remedy]:
    """Why no detection of an image has the asked score, in words, and what may help."""
    t, logits = look.trace, look.anchors.logits
    objectness, best = logits.sigmoid(), _best_score(look)
    if not _is_finite(look):
        return "the network's numbers are not finite: its weights come from a training that diverged", Remedy(AGAIN)
    if float(objectness.max() - objectness.min()) < 0.1 and 0.2 < float(objectness.median()) < 0.8:
        return (
            "the objectness is nearly the same everywhere: the first stage has learnt nothing yet",
            Remedy("train longer, or name the checkpoint of a finished training"),
        )
    if len(look.found):
        cause = f"the best detection has a score of {best:.2f}, below the {look.asked.score:g} that is asked for"
        return cause, Remedy(
            f"show detections of lower scores; if they are wrong, {TRAIN}", [f"--score={_below(best)}"]
        )
    if float(objectness.max()) < 0.5:
        cause = "the first stage takes nothing for an object: what is in the image, or its size, differs from the training images"
    else:
        cause = f"the second stage takes every proposal for background: no class has a score above {t.threshold:g}"
    if best < LEAST:
        return cause, Remedy(TRAIN)
    changes = [f"{LAST}.score_threshold={_below(best)}", f"--score={_below(best)}"]
    return cause, Remedy(f"see what a lower threshold shows; if it is wrong, {TRAIN}", changes)


def _is_finite(look: Look) -> bool:
    return bool(look.anchors.logits.isfinite().all() and look.trace.scores.isfinite().all())


def _best_score(look: Look) -> float:
    """Of the detections, or of the candidates where there is none."""
    scores = look.found.scores if len(look.found) else look.trace.scores
    return float(scores.max()) if scores.numel() else 0.0


def _detection(look: Look, followed: Followed) -> int:
    t = look.trace
    return int(torch.where((t.regions == followed.region) & (t.detections.labels == followed.label))[0][0])


def _below(score: float) -> float:
    """The next lower number of two digits."""
    if score <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(score)) - 1)
    lower = (math.ceil(score / unit - 1e-6) - 1) * unit
    return float(f"{lower:.2g}")


def _in_first_stage(look: Look, followed: Followed) -> Remedy:
    """For an object whose anchors or their boxes the first stage drops."""
    a, rule = look.anchors, look.model.rpn.selection
    row = followed.anchor
    assert row is not None and look.box is not None
    if not a.seen[row]:
        wanted_rank = _rounded_up(int(a.ranks[row]) + 1)
        return _of_anchor(
            look, row, "let its suppression see more anchors", f"pre_nms=[{rule.pre_nms[0]},{wanted_rank}]"
        )
    if a.left[row]:
        better = int((a.left & (a.logits >= a.logits[row])).sum())
        return _of_anchor(
            look, row, "let more proposals through", f"post_nms=[{rule.post_nms[0]},{_rounded_up(better)}]"
        )
    if a.suppressed_by(row) is None:
        return Remedy("let smaller boxes through", [f"{FIRST}.min_size=0"])
    here = a.seen & (a.levels == a.levels[row])
    wanted = (box_iou(look.box[None], a.decoded)[0] >= ENOUGH)[here]
    iou = _least_iou(a.decoded[here], a.logits[here], wanted, rule.nms_iou)
    if iou is None:
        return Remedy(f"the better box is nearly its own: {TRAIN}")
    return _of_anchor(look, row, "let it suppress less", f"nms_iou={iou}")


def _of_anchor(look: Look, row: int, change: str, key: str) -> Remedy:
    """A change of the first stage; where an anchor seems to be background, training comes first."""
    if float(look.anchors.logits[row].sigmoid()) < LEAST:
        text = f"the first stage takes it for background: {TRAIN}, or {change}"
    else:
        text = f"{change} in the first stage, or {TRAIN}"
    return Remedy(text, [f"{FIRST}.{key}"])


def _in_last_suppression(look: Look, followed: Followed) -> Remedy:
    t, label = look.trace, followed.label
    assert followed.region is not None and look.box is not None
    candidates = int((t.scores >= t.scores[followed.region, label]).sum())
    if look.model.reports_proposals or t.suppressed_by(followed.region, label) is None:
        return Remedy("let more detections through", [f"{LAST}.max_detections={_rounded_up(candidates)}"])
    changes = _through_last(look, label, t.threshold)
    if changes is None:
        return Remedy("the better box is nearly its own: train longer, for boxes that are placed better")
    return Remedy("let the last suppression suppress less; objects may then be found twice", changes)


def _at_threshold(look: Look, followed: Followed) -> Remedy:
    """For an object whose box is scored below the threshold; above it the last suppression must let the box through, too."""
    t, label = look.trace, followed.label
    assert followed.region is not None
    score = float(t.scores[followed.region, label])
    if score < LEAST:
        return Remedy(TRAIN)
    lower = _below(score)
    changes = _through_last(look, label, lower)
    if changes is None:
        return Remedy(f"a better box is nearly its own, and its score is low: {TRAIN}")
    beside = ", let more boxes through the last suppression" if changes else ""
    return Remedy(
        f"lower the threshold of the scores{beside}, or {TRAIN}", [f"{LAST}.score_threshold={lower}", *changes]
    )


def _through_last(look: Look, label: int, threshold: float) -> list[str] | None:
    """What lets a box of the asked object through the last suppression with that threshold; None where nothing near does it."""
    t, limit = look.trace, look.model.roi_head.selection.max_detections
    assert look.box is not None
    region, label_of = torch.where(t.scores > threshold)
    boxes = t.boxes[region, label_of if t.boxes.shape[1] > 1 else torch.zeros_like(label_of)]
    scores, group = t.scores[region, label_of], torch.zeros_like(label_of) if t.across_classes else label_of
    wanted = (label_of == label) & (box_iou(look.box[None], boxes)[0] >= ENOUGH)
    valid = is_larger_than(boxes, 0) & scores.isfinite()
    for iou in (t.suppression, *_higher(t.suppression)):
        left = left_by_nms(boxes, scores, valid, iou, group)
        if (left & wanted).any():
            rank = int((left & (scores >= scores[left & wanted].max())).sum())
            changes = [] if iou == t.suppression else [f"{LAST}.nms_iou={iou}"]
            return changes + ([f"{LAST}.max_detections={_rounded_up(rank)}"] if rank > limit else [])
    return None


def _least_iou(boxes: Tensor, logits: Tensor, wanted: Tensor, present: float) -> float | None:
    """The least IoU above the present one at which the first stage's NMS leaves one of the wanted boxes (R,) bool."""
    valid = is_larger_than(boxes, 0) & logits.isfinite()
    return next((iou for iou in _higher(present) if (left_by_nms(boxes, logits, valid, iou) & wanted).any()), None)


def _higher(present: float) -> list[float]:
    """IoUs above the present one in steps of MARGIN, up to MOST."""
    ious = [round(present + count * MARGIN, 4) for count in range(1, 20)]
    return [iou for iou in ious if iou <= MOST]


def _other_size(look: Look) -> Remedy:
    """For an object that no anchor meets: the nearest other size of the image at which one does."""
    factor = _fitting_factor(look)
    if factor is None:
        return Remedy(
            "no size of the image brings an anchor to it: train with other sizes or ratios of anchors, which `detector "
            "check-data CONFIG --anchors FILE` finds for a data set"
        )
    resize = look.predictor.resize
    sides = (
        f"{name}={max(1, round(side * factor))}" for name, side in (("short", max(resize.sides)), ("long", resize.long))
    )
    size = "larger" if factor > 1 else "smaller"
    return Remedy(f"read the image {size}, and train with such a size", [f"data.resize.{side}" for side in sides])


def _fitting_factor(look: Look) -> float | None:
    """By how much the image must be resized for an anchor to overlap the asked box by ENOUGH; None if nothing near does it."""
    assert look.box is not None
    steps = 8 * round(math.log2(GREATEST))
    for step in sorted(range(-steps, steps + 1), key=abs):
        factor = 2 ** (step / 8)
        if _best_overlap(look, look.box * factor, factor) >= ENOUGH + MARGIN:
            return factor
    return None


def _best_overlap(look: Look, box: Tensor, factor: float) -> float:
    """The highest IoU of a box with the anchors of an image that is read larger by a factor."""
    a, (h, w) = look.anchors, look.trace.size
    best = 0.0
    for level, stride in enumerate(look.strides):
        cell = a.boxes[a.levels == level][: look.model.rpn.anchors.per_cell]  # around the first cell, at (0, 0)
        centre = (box[:2] + box[2:]) / 2
        most = centre.new_tensor([w, h]) * factor
        place = torch.minimum((centre / stride).round(), (most / stride).ceil() - 1).clamp(min=0) * stride
        best = max(best, float(box_iou(box[None], cell + place.repeat(2)).max()))
    return best


def _rounded_up(count: int) -> int:
    """To two digits, so that a little more than the least is let through."""
    unit = 10 ** max(len(str(count)) - 2, 0)
    return (count // unit + 1) * unit
