"""Why something is detected in an image or is not: its trace as facts, in pixels of the original image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from detector.inference.predictor import Predictor
from detector.insight import explain_facts as facts
from detector.insight.exhibits import Exhibits, LevelMap, exhibits_of
from detector.insight.explain_facts import FOUND, LOW, NOTHING, Asked, Explanation
from detector.insight.explain_words import words
from detector.insight.funnel import ENOUGH
from detector.insight.look import Look
from detector.insight.remedies import remedy_of, why_nothing
from detector.modeling.boxes import box_area, box_iou

LISTED = 20  # anchors and proposals
CLASSES = 5  # of a stage, by score
BACKGROUND = "background"


def explain(
    predictor: Predictor, image: Tensor, asked: Asked, *, name: str, checkpoint: str
) -> tuple[Explanation, Exhibits]:
    """Why what is `asked` for is detected in an image, uint8 RGB (3, H, W), or is not; and what a picture of it shows.

    Raises ConfigError for a first or second stage of the user's own, DataError for a detector without an RPN and for a detection
    or class that there is not.
    """
    predictor.check_pictures()
    look = Look(predictor, image, asked)
    answer = _answer(look)
    cause, remedy = None, remedy_of(look)
    if look.followed is None and answer != FOUND:
        cause, remedy = why_nothing(look)
    exhibits = exhibits_of(look)
    made = Explanation(
        explained=name, checkpoint=checkpoint, pixels=facts.PIXELS,
        size=image.shape[:0:-1], read_at=look.prepared.shape[:0:-1], asked=look.asked, answer=answer, cause=cause,
        remedy=remedy, limits=_limits(look), counts=_counts(look), levels=_levels(look), anchors=_meeting_anchors(look),
        before=_before(look), proposals=_proposals(look), anchor=_anchor(look), region=_region(look),
        gradient=_shares(exhibits.gradient), detections=_detections(look),
    )  # fmt: skip
    return replace(made, words=words(made)), exhibits


def _answer(look: Look) -> str:
    if look.followed is not None:
        return look.followed.answer
    scores = look.found.scores
    return facts.FOUND if (scores >= look.asked.score).any() else LOW if len(scores) else NOTHING


def _limits(look: Look) -> facts.Limits:
    first, last = look.model.rpn.selection, look.model.roi_head.selection
    alone = look.model.reports_proposals
    return facts.Limits(
        first.pre_nms[1], first.nms_iou, first.post_nms[1], None if alone else last.score_threshold,
        None if alone else last.nms, None if alone else last.nms_iou, last.max_detections,
    )  # fmt: skip


def _counts(look: Look) -> facts.Counts:
    t, a = look.trace, look.anchors
    found = look.found[look.found.scores >= look.asked.score]
    return facts.Counts(
        len(a.boxes), int(a.seen.sum()), int(a.left.sum()), len(t.proposals), int((t.scores > t.threshold).sum()),
        len(look.found), len(found), dict(Counter(found.names).most_common()),
    )  # fmt: skip


def _levels(look: Look) -> list[facts.LevelFacts]:
    a, overlap, rows = look.anchors, look.iou(look.anchors.boxes), []
    comes = look.iou(a.decoded) >= ENOUGH
    for index, (k, stride) in enumerate(zip(look.levels, look.strides)):
        here = a.levels == index
        sides = {round(v, 1) for v in _sides(look, a.boxes[here][: look.model.rpn.anchors.per_cell])}
        asked = look.box is not None
        rows.append(
            facts.LevelFacts(
                k, stride, int(here.sum()), sorted(sides), _score(a.logits[here].sigmoid().nan_to_num().max()),
                int(a.seen[here].sum()), int(a.left[here].sum()), int((a.proposal[here] >= 0).sum()),
                int((overlap[here] >= ENOUGH).sum()) if asked else None,
                _score(overlap[here].max()) if asked else None,
                int((comes & a.seen)[here].sum()) if asked else None,
                int((comes & a.left)[here].sum()) if asked else None,
            )
        )  # fmt: skip
    return rows


def _sides(look: Look, boxes: Tensor) -> list[float]:
    """Of squares with the areas of boxes (n, 4), in pixels of the original."""
    return box_area(boxes * look.scales()).sqrt().tolist()


def _meeting_anchors(look: Look) -> list[facts.AnchorFacts]:
    """The anchors with the highest IoU, those of at least ENOUGH; of an image as a whole none."""
    overlap = look.iou(look.anchors.boxes)
    best = overlap.topk(min(LISTED, len(overlap)))
    rows = best.indices[best.values >= ENOUGH].tolist()
    return [_anchor_facts(look, row) for row in rows]


def _before(look: Look) -> list[facts.AnchorFacts]:
    a = look.anchors
    comes = torch.where((look.iou(a.decoded) >= ENOUGH) & a.seen)[0]
    return [_anchor_facts(look, row) for row in comes[a.logits[comes].argsort(descending=True)][:LISTED].tolist()]


def _anchor(look: Look) -> facts.AnchorFacts | None:
    followed = look.followed
    return None if followed is None or followed.anchor is None else _anchor_facts(look, followed.anchor)


def _anchor_facts(look: Look, row: int) -> facts.AnchorFacts:
    a = look.anchors
    rival, proposal = a.suppressed_by(row), int(a.proposal[row])
    return facts.AnchorFacts(
        level=look.levels[int(a.levels[row])], box=look.to_box(a.boxes[row]), iou=_score(look.iou(a.boxes[row][None])[0]),
        rank=int(a.ranks[row]) + 1, objectness=_score(a.logits[row].sigmoid()), moved=look.to_box(a.decoded[row]),
        moved_iou=_score(look.iou(a.decoded[row][None])[0]), fate=_fate(look, row),
        proposal=proposal if proposal >= 0 else None, suppressed_by=None if rival is None else _rival(look, row, rival),
    )  # fmt: skip


def _fate(look: Look, row: int) -> str:
    a = look.anchors
    if not a.seen[row]:
        return "not seen"
    if a.left[row]:
        return "proposal" if a.proposal[row] >= 0 else "one too many"
    return "too small" if a.suppressed_by(row) is None else "suppressed"


def _rival(look: Look, row: int, rival: int) -> facts.Rival:
    a = look.anchors
    proposal = int(a.proposal[rival])
    overlap = box_iou(a.decoded[row][None], a.decoded[rival][None])[0, 0]
    return facts.Rival(
        box=look.to_box(a.decoded[rival]), objectness=_score(a.logits[rival].sigmoid()), iou=_score(overlap),
        asked_iou=_score(look.iou(a.decoded[rival][None])[0]), proposal=proposal if proposal >= 0 else None,
    )  # fmt: skip


def _proposals(look: Look) -> list[facts.ProposalFacts]:
    """Those of the highest IoU with the asked box, that touch it; of an image as a whole the best."""
    boxes = look.trace.proposals.boxes
    if look.box is None:
        return [_proposal(look, row) for row in range(min(LISTED, len(boxes)))]
    best = look.iou(boxes).topk(min(LISTED, len(boxes)))
    return [_proposal(look, row) for row in best.indices[best.values > 0].tolist()]


def _proposal(look: Look, row: int) -> facts.ProposalFacts:
    boxes, scores = look.trace.proposals.boxes, look.trace.proposals.scores
    iou = None if look.box is None else _score(look.iou(boxes[row][None])[0])
    stages = look.trace.stages
    return facts.ProposalFacts(
        row, look.to_box(boxes[row]), _score(scores[row].sigmoid()), iou, _level(stages[0].levels, row) if stages else None
    )  # fmt: skip


def _region(look: Look) -> facts.RegionFacts | None:
    followed = look.followed
    if followed is None or followed.region is None:
        return None
    t, row, label = look.trace, followed.region, followed.label
    final = t.boxes_of(label)[row]
    there = torch.where((t.regions == row) & (t.detections.labels == label))[0]
    number = int(there[0]) if len(there) else None
    rival = t.suppressed_by(row, label) if number is None else None
    overlap = None if rival is None else _score(box_iou(final[None], t.detections.boxes[rival][None])[0, 0])
    return facts.RegionFacts(
        proposal=_proposal(look, row), anchor=_anchor(look), stages=_stages(look, row, label), name=look.names[label],
        score=_score(t.scores[row, label]), box=look.to_box(final), iou=_score(look.iou(final[None])[0]), detection=number,
        suppressed_by=rival, overlap=overlap,
    )  # fmt: skip


def _stages(look: Look, row: int, label: int) -> list[facts.StageFacts]:
    names, made = [*look.names, BACKGROUND], []
    for number, stage in enumerate(look.trace.stages, start=1):
        scores = stage.scores[row]
        best = scores[:-1].argsort(descending=True)[:CLASSES].tolist()
        listed = dict.fromkeys([*best, label, len(names) - 1])
        refined = stage.refined[row, label if stage.refined.shape[1] > 1 else 0]
        made.append(
            facts.StageFacts(
                number, look.to_box(stage.boxes[row]), _level(stage.levels, row),
                {names[column]: _score(scores[column]) for column in listed}, look.to_box(refined),
                _score(look.iou(refined[None])[0]),
            )
        )  # fmt: skip
    return made


def _detections(look: Look) -> list[facts.DetectionFacts]:
    ious = look.iou(look.trace.detections.boxes).tolist()
    rows = zip(look.found.names, look.found.scores, look.trace.detections.boxes, ious)
    return [
        facts.DetectionFacts(number, name, _score(score), look.to_box(box), None if look.box is None else round(iou, 4))
        for number, (name, score, box, iou) in enumerate(rows)
    ]


def _level(levels: Tensor | None, row: int) -> int | None:
    return None if levels is None else int(levels[row])


def _score(value: Tensor) -> float:
    """A number of 0..1 as it is written; what is not finite ranks last, as 0 does."""
    return round(float(value.nan_to_num()), 4)


def _shares(gradient: Sequence[LevelMap] | None) -> dict[str, float] | None:
    """Of each level in the sum of the absolute values."""
    if gradient is None:
        return None
    sums = [float(one.values.abs().sum()) for one in gradient]
    return {f"P{one.level}": round(part / (sum(sums) or 1), 4) for one, part in zip(gradient, sums)}
