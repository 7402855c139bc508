"""An explanation as one picture: the image, the first stage, the second stage, and the objectness of each level."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detector.inference.drawing import draw_detections
from detector.insight.canvas import Colour, TitledView, View, around, compose, panel_width
from detector.insight.exhibits import Exhibits
from detector.insight.explain_facts import Box, Explanation, RegionFacts
from detector.insight.explain_words import headline, remedy_words
from detector.structures import image_size

HEIGHT = 380  # of the picture of a panel at most
ASKED: Colour = (255, 255, 255)
GOOD: Colour = (0, 200, 120)
BAD: Colour = (230, 60, 40)
DROPPED: Colour = (255, 190, 60)
LEVELS: dict[str, Colour] = {
    "blue": (80, 180, 255), "green": (0, 220, 140), "yellow": (255, 200, 0), "orange": (255, 120, 60), "pink": (230, 90, 220),
    "violet": (160, 160, 255),
}  # fmt: skip
FINEST = 2  # the level of the first of these colours
SHOWN = 12  # anchors


def explanation_png(made: Explanation, exhibits: Exhibits) -> bytes:
    """The picture as the content of a PNG file."""
    file = io.BytesIO()
    draw_explanation(made, exhibits).save(file, "PNG")
    return file.getvalue()


def draw_explanation(made: Explanation, exhibits: Exhibits) -> Image.Image:
    """Three panels a row, then the levels in a row of their own."""
    panels = list(_of_image(made, exhibits) if made.asked.box is None else _of_place(made, exhibits, made.asked.box))
    rows = [panels[start : start + 3] for start in range(0, len(panels), 3)]
    title = headline(made)
    lines = [made.explained + ": " + "all boxes in the text are in pixels of the image"]
    lines += [remedy_words(made.remedy)] if made.remedy is not None else []
    return compose(f"{title[0].upper()}{title[1:]}.", lines, [*rows, list(_levels(made, exhibits))])


def _of_image(made: Explanation, exhibits: Exhibits) -> Iterator[TitledView]:
    found, score, counts = exhibits.detections, made.asked.score, made.counts
    caption = f"Detections with a score of at least {score:g}: {counts.found}."
    yield TitledView("Found", _detections(exhibits, found.scores >= score), caption)
    caption = f"Detections with lower scores: {counts.detections - counts.found}."
    yield TitledView("Nearly found", _detections(exhibits, found.scores < score), caption)
    view = View(exhibits.image, _whole(exhibits), (panel_width(3), HEIGHT))
    for proposal in reversed(made.proposals):
        view.frame(proposal.box, GOOD, 2, seam=True)
    best = f", the best with an objectness of {made.proposals[0].objectness:.2f}" if made.proposals else ""
    yield TitledView("Proposals", view.picture, f"The first {len(made.proposals)} of {made.counts.proposals}{best}.")


def _of_place(made: Explanation, exhibits: Exhibits, box: Box) -> Iterator[TitledView]:
    whole = View(exhibits.image, _whole(exhibits), (panel_width(3), HEIGHT))
    whole.picture = _detections(exhibits, exhibits.detections.scores >= made.asked.score)
    whole.frame(box, ASKED, 3, seam=True)
    what = "the object" if made.asked.detection is None else f"detection {made.asked.detection}"
    yield TitledView(
        "The image",
        whole.picture,
        f"White: {what}. The detections have scores of at least {made.asked.score:g}.",
    )
    yield _anchors(made, exhibits, box)
    yield _proposals(made, exhibits, box)
    if made.region is not None:
        if made.region.stages:
            yield _pooled(made.region, exhibits, box)
    if exhibits.gradient is not None:
        yield _gradient(made, exhibits, box)
    if made.region is not None:
        yield _second_stage(made, made.region, exhibits, box)


def _anchors(made: Explanation, exhibits: Exhibits, box: Box) -> TitledView:
    view = _close(exhibits, box)
    shown = made.anchors[:SHOWN] or ([made.anchor] if made.anchor is not None else [])
    for anchor in reversed(shown):
        view.frame(anchor.box, level_colour(anchor.level), 2)
    view.frame(box, ASKED, 3, seam=True)
    meeting = [f"{one.meeting} on P{one.level} ({colour_name(one.level)})" for one in made.levels if one.meeting]
    drawn = f"drawn are the best {len(shown)}" if made.anchors else "drawn is the one that comes furthest"
    caption = f"Anchors with an IoU of at least 0.5: {', '.join(meeting) or 'none'}; {drawn}."
    return TitledView("Anchors that meet it", view.picture, caption)


def _proposals(made: Explanation, exhibits: Exhibits, box: Box) -> TitledView:
    view = _close(exhibits, box)
    for one in reversed(made.before):
        if one.proposal is None:
            view.frame(one.moved, DROPPED, 1)
    for one in reversed(made.before):
        if one.proposal is not None:
            view.frame(one.moved, GOOD, 2)
    if made.anchor is not None and made.anchor.suppressed_by is not None:
        view.frame(made.anchor.suppressed_by.box, BAD, 3)
    view.frame(box, ASKED, 3, seam=True)
    before, after = (sum(getattr(level, name) or 0 for level in made.levels) for name in ("before", "after"))
    suppressor = (
        "; red: what suppresses it" if made.anchor is not None and made.anchor.suppressed_by is not None else ""
    )
    return TitledView(
        "First stage: before and after suppression", view.picture,
        f"Boxes with an IoU of at least 0.5: {before} before, {after} after. Yellow: dropped, green: proposals{suppressor}.",
    )  # fmt: skip


def _pooled(region: RegionFacts, exhibits: Exhibits, box: Box) -> TitledView:
    view = _close(exhibits, box)
    stage = region.stages[0]
    colour = GOOD if stage.level is None else level_colour(stage.level)
    view.grid(stage.box, exhibits.cells, colour)
    view.frame(stage.box, colour, 3, seam=True)
    source = "all levels" if stage.level is None else f"P{stage.level}"
    return TitledView(
        "Pooled region",
        view.picture,
        f"Proposal {region.proposal.number}, {exhibits.cells} x {exhibits.cells} cells from {source}.",
    )


def _gradient(made: Explanation, exhibits: Exhibits, box: Box) -> TitledView:
    gradient, shares = exhibits.gradient or [], made.gradient or {}
    pooled = made.region.proposal.level if made.region is not None else None
    level = max(gradient, key=lambda one: (one.level == pooled, shares[f"P{one.level}"]))
    view = _close(exhibits, box)
    view.signed(level)
    view.frame(box, ASKED, 2, seam=True)
    region = made.region
    what = region.name if region is not None and region.stages else "an object"
    share = f"P{level.level}, {shares[f'P{level.level}']:.2f} of the sum over all levels"
    caption = f"Gradient times activation on {share}. Red speaks for it, blue against."
    return TitledView(f"What speaks for {what}", view.picture, caption)


def _second_stage(made: Explanation, region: RegionFacts, exhibits: Exhibits, box: Box) -> TitledView:
    view = _close(exhibits, box)
    view.frame(region.proposal.box, level_colour(FINEST), 2)
    for stage in region.stages[:-1]:
        view.frame(stage.refined, level_colour(FINEST + stage.stage), 2)
    caption = [f"Blue: the proposal, objectness {region.proposal.objectness:.2f}"]
    if region.suppressed_by is not None:
        view.frame(made.detections[region.suppressed_by].box, BAD, 3)
    view.frame(region.box, GOOD, 3, seam=True)
    for stage in region.stages:
        best = [f"{name} {score:.2f}" for name, score in list(stage.scores.items())[:2]]
        caption.append(f"stage {stage.stage}: {', '.join(best)}, IoU {stage.iou:.2f}")
    caption.append("green: the final box")
    if region.suppressed_by is not None:
        caption.append(f"red: detection {region.suppressed_by}, which suppresses it")
    return TitledView("Second stage" if region.stages else "Reported", view.picture, "; ".join(caption) + ".")


def _levels(made: Explanation, exhibits: Exhibits) -> Iterator[TitledView]:
    """The objectness of each level."""
    width = panel_width(len(exhibits.objectness))
    for facts, level in zip(made.levels, exhibits.objectness):
        view = View(exhibits.image, _whole(exhibits), (width, HEIGHT))
        view.heat(level)
        if made.asked.box is not None:
            view.frame(made.asked.box, ASKED, 1, seam=True)
        sides = " and ".join(f"{side:g}" for side in facts.sides)
        yield TitledView(
            f"Objectness on P{facts.level}", view.picture,
            f"Dark 0, bright 1; highest {facts.best_objectness:.2f}. Anchors of {sides} pixels, {facts.proposals} proposals.",
        )  # fmt: skip


def level_colour(level: int) -> Colour:
    """The colour of what is read from a level."""
    return LEVELS[colour_name(level)]


def colour_name(level: int) -> str:
    """Its name."""
    return list(LEVELS)[(level - FINEST) % len(LEVELS)]


def _whole(exhibits: Exhibits) -> Box:
    h, w = exhibits.image.shape[-2:]
    return 0.0, 0.0, float(w), float(h)


def _close(exhibits: Exhibits, box: Box) -> View:
    h, w = exhibits.image.shape[-2:]
    room = (panel_width(3), HEIGHT)
    return View(exhibits.image, around(box, (w, h), room), room)


def _detections(exhibits: Exhibits, kept: Tensor) -> Image.Image:
    """The image as large as a panel, with some of its detections."""
    view = View(exhibits.image, _whole(exhibits), (panel_width(3), HEIGHT))
    pixels = torch.from_numpy(np.array(view.picture)).permute(2, 0, 1)
    h, w = exhibits.image.shape[-2:]
    return draw_detections(pixels, exhibits.detections[kept].resized((h, w), image_size(pixels)))
