"""COCO's metrics, computed by pycocotools from an annotation file and results in COCO form."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

from detector.coco_format import ONE_CLASS
from detector.data.box_arrays import clip_to_images, corners, have_area, were_clipped
from detector.data.coco_reader import CocoFile, read_coco_file
from detector.evaluation.result_shapes import fields_of, take_shapes
from detector.evaluation.results import checked_results, say_oddities
from detector.evaluation.scope import STANDARD, Scope, twelve
from detector.evaluation.shapes import keypoint_sigmas, shape_sections
from detector.recipe import Scoring


@dataclass(frozen=True)
class Scored:
    """The metrics of some results, and the counts that they come from."""

    metrics: dict[str, dict[str, Any]]
    """Those of `evaluate_results`."""
    scope: Scope
    """What is scored."""
    detections: list[dict[str, Any]]
    """The checked results, whose `id` counts from 1."""
    objects: list[dict[str, Any]]
    """The annotations, whose `id` counts from 1 in the order of the file."""
    counts: dict[str, COCOeval]
    """By COCO's standard: of boxes under "bbox", and of each of the `shapes` that are scored, such as "segm"."""


def evaluate_results(
    annotations: str | Path,
    results: list[dict[str, Any]],
    image_ids: list[int] | None = None,
    category_ids: list[int] | None = None,
    *,
    fields: Collection[str] | None = None,
    as_one_class: bool = False,
    scoring: Scoring = STANDARD,
    say_missing: bool = False,
) -> dict[str, dict[str, Any]]:
    """Score results in COCO form: {"bbox": the twelve metrics, "per_class": {name: {"AP", "AP50"}}}, fractions 0..1.

    With masks "segm" and "boundary" have the twelve metrics of masks and of boundary IoU, with keypoints "keypoints" has
    COCO's ten; in "per_class" they are under "segm/AP" and so on. With another `scoring` than COCO's, "configured" has the
    twelve metrics of boxes under it, beside the standard ones.

    A metric is -1 where the annotations hold no such object (COCO's convention), but every metric is 0 without results.
    Raises DataError for a malformed file or result and for ids that the annotations lack.

    Args:
        annotations: COCO file of the ground truth.
        results: detections in COCO form, {image_id, category_id, bbox (xywh), score} each, with masks also `segmentation`
            and with keypoints `keypoints`.
        image_ids: images to score; None scores all.
        category_ids: categories to score; None scores all.
        fields: what is scored beside boxes: masks, keypoints; None: what the results have.
        as_one_class: all these categories, and those of the results, count as ONE_CLASS.
        scoring: limits of detections, whether boxes are clipped to their image, sigmas of keypoints, and which `shapes` of
            these fields are scored.
        say_missing: log how many images with objects have no result, and repeated results.
    """
    return score_results(
        annotations, results, image_ids, category_ids, fields=fields, as_one_class=as_one_class, scoring=scoring,
        say_missing=say_missing,
    ).metrics  # fmt: skip


def score_results(
    annotations: str | Path,
    results: list[dict[str, Any]],
    image_ids: list[int] | None = None,
    category_ids: list[int] | None = None,
    *,
    fields: Collection[str] | None = None,
    as_one_class: bool = False,
    scoring: Scoring = STANDARD,
    say_missing: bool = False,
) -> Scored:
    """The same with the counts behind the metrics."""
    fields = scoring.fields(fields_of(results) if fields is None else fields)
    coco = read_coco_file(annotations, fields=fields)
    chosen = coco.category_ids.tolist() if category_ids is None else list(category_ids)
    names = dict(zip(coco.category_ids.tolist(), coco.category_names))
    objects = ground_truth_entries(coco)
    if as_one_class:
        [one] = ONE_CLASS
        objects = [entry | {"category_id": one} for entry in objects if entry["category_id"] in set(chosen)]
        names, chosen = dict(ONE_CLASS), [one]
    detections = checked_results(results, coco, names)
    if "keypoints" in fields:
        keypoint_sigmas(coco, scoring.keypoint_sigmas)  # its errors say more than those of a result
    take_shapes(results, detections, coco, fields)
    if say_missing:
        say_oddities(detections, coco)
    images = coco.image_ids.tolist() if image_ids is None else image_ids
    scope = Scope(coco, names, images, sorted(chosen))
    return _scored(scope, detections, objects, fields, scoring)


def _scored(
    scope: Scope, detections: list[dict[str, Any]], objects: list[dict[str, Any]], fields: Collection[str], scoring: Scoring
) -> Scored:  # fmt: skip
    """Checked detections and annotations with their metrics."""
    lowest = -1.0 if detections else 0.0
    counts = scope.evaluated(detections, objects, STANDARD.max_detections)
    metrics: dict[str, dict[str, Any]] = {"bbox": twelve(counts, lowest)}
    per_class, every = scope.per_class(counts, lowest), {"bbox": counts}
    for title, section, of_shape in shape_sections(scope, detections, objects, fields, scoring, lowest):
        metrics[title], every[title] = section, of_shape
        for name, values in scope.per_class(of_shape, lowest).items():
            per_class[name] |= {f"{title}/{metric}": value for metric, value in values.items()}
    metrics["per_class"] = per_class
    if scoring.other_boxes():
        entries = _clipped(objects, scope.coco) if scoring.clip else objects
        metrics["configured"] = twelve(scope.evaluated(detections, entries, scoring.max_detections), lowest)
    return Scored(metrics, scope, detections, objects, every)


def _clipped(entries: list[dict[str, Any]], coco: CocoFile) -> list[dict[str, Any]]:
    """The annotations with their boxes clipped to the images, those without area left out, as in training."""
    size_of = dict(zip(coco.image_ids.tolist(), coco.sizes.tolist()))
    boxes = corners(np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4))
    inside = clip_to_images(boxes, np.array([size_of[entry["image_id"]] for entry in entries]).reshape(-1, 2))
    clipped = []
    for entry, box, solid, moved in zip(entries, inside.tolist(), have_area(inside), were_clipped(boxes, inside)):
        if not solid:
            continue
        x1, y1, x2, y2 = box
        change = (
            {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": min(entry["area"], (x2 - x1) * (y2 - y1))} if moved else {}
        )
        clipped.append(entry | change)
    return clipped


def ground_truth_entries(coco: CocoFile) -> list[dict[str, Any]]:
    """The annotations as COCOeval indexes them. They are numbered from 1, because COCOeval takes 0 for "unmatched"."""
    columns = (
        coco.image_ids[coco.image_rows].tolist(),
        coco.category_ids[coco.category_rows].tolist(),
        coco.xywh.tolist(),
        coco.areas.tolist(),
        coco.crowd.astype(int).tolist(),
    )
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd")
    return [{"id": number, **dict(zip(keys, row))} for number, row in enumerate(zip(*columns), start=1)]
