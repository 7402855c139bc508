"""An explanation as one paragraph of plain sentences; every number in it is one of the facts."""

from __future__ import annotations

from collections.abc import Iterator

from detector.dataset_check.findings import printable
from detector.insight.explain_facts import FOUND, LOW, AnchorFacts, Box, Explanation, RegionFacts, Remedy, StageFacts

NAMED = 5  # detections of an image that are listed
LOST = {
    "no anchor": "is not found: no anchor of the first stage meets it",
    "top-k": "is not found: the first stage ranks its anchors too low",
    "suppressed": "is not found: the first stage drops its box",
    "badly placed": "is not found: boxes come near it and none is placed well",
    "wrong class": "is not found: its box is taken for another class",
    "below threshold": "is not found: its box is there, and its score is not above the threshold",
    "suppressed at the end": "is not found: its box is dropped at the end",
}
FATES = {
    "not seen": "it is not among the {limits.pre_nms} best of its level that the suppression sees",
    "too small": "its box is too small to be a proposal",
    "one too many": "its box is not among the {limits.post_nms} best that become proposals",
    "proposal": "it becomes proposal {anchor.proposal}",
}


def words(made: Explanation) -> str:
    """The paragraph; boxes are in pixels of the original image."""
    (w, h), (read_w, read_h) = made.size, made.read_at
    start = f"Explanation of {made.explained} by {made.checkpoint}; all boxes are in pixels of the image, {w} x {h}, "
    start += f"which is read at {read_w} x {read_h}: "
    sentences = _of_image(made) if made.asked.about == "image" else _of_place(made)
    text = start + " ".join(sentences)
    return printable(text if made.remedy is None else f"{text} {remedy_words(made.remedy)}")


def headline(made: Explanation) -> str:
    """The answer in one sentence, without its full stop."""
    asked = made.asked
    if asked.about == "image":
        if made.answer == FOUND:
            classes = ", ".join(f"{count} {name}" for name, count in made.counts.classes.items())
            return f"{made.counts.found} objects are found with a score of at least {asked.score:g} ({classes})"
        return f"nothing is found with a score of at least {asked.score:g}: {made.cause}"
    if made.region is not None and made.region.detection is not None:
        return _detected(made, made.region)
    called = "the object" if asked.name is None else asked.name
    return f"{called} at {_place(asked.box)} {LOST[made.answer]}"


def remedy_words(remedy: Remedy) -> str:
    """What may help, with the changes of the command line."""
    changes = f" ({' '.join(remedy.changes)})" if remedy.changes else ""
    return f"What may help: {remedy.text}{changes}."


def _detected(made: Explanation, region: RegionFacts) -> str:
    found = made.detections[region.detection or 0]
    said = f"detection {found.number} is {found.name} with a score of {found.score:.2f} at {_place(found.box)}"
    if made.answer == LOW:
        said += f", less than the {made.asked.score:g} that is asked for"
    if made.asked.about == "object":
        said = f"the object at {_place(made.asked.box)} is there: {said}, an IoU of {_two(found.iou)}"
    return said


def _of_image(made: Explanation) -> Iterator[str]:
    counts, limits = made.counts, made.limits
    yield f"{headline(made)}."
    if made.answer == FOUND:
        shown = [f"#{d.number} {d.name} {d.score:.2f}" for d in made.detections[: min(counts.found, NAMED)]]
        yield f"The best: {', '.join(shown)}."
    near = made.detections[counts.found :]
    if near:
        shown = [f"#{d.number} {d.name} {d.score:.2f}" for d in near[:NAMED]]
        yield f"Lower scores have {counts.detections - counts.found} detections, the best {', '.join(shown)}."
    yield (
        f"Of {counts.anchors} anchors the suppression of the first stage sees the {counts.seen} of the highest objectness (at "
        f"most {limits.pre_nms} of a level) and leaves {counts.left}, of which {counts.proposals} become proposals."
    )
    best = max(made.levels, key=lambda level: level.best_objectness)
    yield f"The highest objectness is {_score(best.best_objectness)}, on P{best.level}."
    if limits.threshold is not None:
        yield (
            f"In the second stage {counts.candidates} classes of proposals pass the threshold of {limits.threshold:g}, and the "
            f"last suppression leaves {counts.detections} detections."
        )
    sides = sorted(side for level in made.levels for side in level.sides)
    yield f"The anchors have the areas of squares of {sides[0]:g} to {sides[-1]:g} pixels of the image."


def _of_place(made: Explanation) -> Iterator[str]:
    yield f"{headline(made)}."
    yield _meeting(made)
    anchor, region = made.anchor, made.region
    if anchor is not None:
        yield from _first_stage(made, anchor)
    if region is None:
        return
    if region.proposal.level is not None:
        yield f"The proposal, with an IoU of {_two(region.proposal.iou)}, is pooled from P{region.proposal.level}."
    elif region.stages:
        yield f"The proposal, with an IoU of {_two(region.proposal.iou)}, is pooled from all levels."
    yield from (_stage(stage, region) for stage in region.stages)
    yield from _end(made, region)


def _meeting(made: Explanation) -> str:
    meeting = [(level.level, level.meeting) for level in made.levels if level.meeting]
    best = max(made.levels, key=lambda level: level.best_iou or 0)
    closest = f"the closest, on P{best.level}, has an IoU of {_two(best.best_iou)}"
    if not meeting:
        return f"No anchor meets it with an IoU of at least 0.5; {closest}."
    listed = ", ".join(f"{count} on P{level}" for level, count in meeting)
    return f"Anchors that meet it with an IoU of at least 0.5: {listed}; {closest}."


def _first_stage(made: Explanation, anchor: AnchorFacts) -> Iterator[str]:
    count = next(level.anchors for level in made.levels if level.level == anchor.level)
    which = "Its anchor" if made.region is not None else "The anchor that comes furthest"
    yield (
        f"{which}, on P{anchor.level}, has rank {anchor.rank} of {count} there with an objectness of {_score(anchor.objectness)} "
        f"and is moved from an IoU of {anchor.iou:.2f} to {anchor.moved_iou:.2f}."
    )
    listed = [f"{level.before} and {level.after} on P{level.level}" for level in made.levels if level.before]
    if listed:
        yield f"Boxes at the place before and after the suppression of the first stage: {', '.join(listed)}."
    if anchor.suppressed_by is not None:
        rival = anchor.suppressed_by
        yield (
            f"A better box at {_place(rival.box)} with an objectness of {_score(rival.objectness)} suppresses it: their IoU is "
            f"{rival.iou:.2f}, above {made.limits.rpn_iou:g}; with the object it has one of {rival.asked_iou:.2f}."
        )
    else:
        said = FATES[anchor.fate].format(limits=made.limits, anchor=anchor)
        yield said[0].upper() + said[1:] + "."


def _stage(stage: StageFacts, region: RegionFacts) -> str:
    """What a stage says; of classes that it gives next to nothing only the one that is followed."""
    shown = {name: score for name, score in stage.scores.items() if score >= 0.01 or name == region.name}
    scores = ", ".join(f"{name} {_score(score)}" for name, score in shown.items())
    which = f"Stage {stage.stage}" if len(region.stages) > 1 else "The second stage"
    return f"{which} gives {scores}, and moves the box to an IoU of {stage.iou:.2f}."


def _end(made: Explanation, region: RegionFacts) -> Iterator[str]:
    limits = made.limits
    if not region.stages:
        if region.detection is None:
            yield f"It is not among the {limits.max_detections} best proposals that are reported."
        return
    if len(region.stages) > 1:
        yield f"Together they give {region.name} {_score(region.score)}."
    if made.answer == "wrong class":
        yield f"So {made.asked.name} is taken for {region.name}, with {region.score:.2f}."
    if region.suppressed_by is not None:
        rival = made.detections[region.suppressed_by]
        yield (
            f"Detection {rival.number}, {rival.name} {rival.score:.2f}, suppresses it: their IoU is {_two(region.overlap)}, "
            f"above {_two(limits.iou)}; with the object it has one of {_two(rival.iou)}."
        )
    elif region.detection is not None:
        score = made.detections[region.detection].score
        if abs(score - region.score) > 5e-4:
            yield f"Better boxes that overlap it lower its score from {region.score:.2f} to {score:.2f} (soft-NMS)."
        else:
            yield f"Its score is above the threshold of {_short(limits.threshold)}, and no better detection suppresses it."
    elif made.answer == "below threshold":
        which = "The likeliest class there" if made.asked.name is None else "The class"
        said = f"{_score(region.score)}, not above the threshold of {_short(limits.threshold)}"
        yield f"{which}, {region.name}, has a score of {said}."
    elif made.answer == "suppressed at the end":
        yield f"It is not among the {limits.max_detections} best detections that are kept."


def _place(box: Box | None) -> str:
    return "(" + ", ".join(f"{v:g}" for v in box or ()) + ")"


def _two(value: float | None) -> str:
    return f"{value or 0:.2f}"


def _score(value: float) -> str:
    """Two digits, of a small one four."""
    return f"{value:.2f}" if value >= 0.01 else f"{value:.4f}"


def _short(value: float | None) -> str:
    return f"{value or 0:g}"
