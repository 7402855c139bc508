"""COCO's twelve metrics, computed by pycocotools from an annotation file and results in COCO form."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.coco_format import ONE_CLASS
from detector.data.box_arrays import clip_to_images, corners, have_area, were_clipped
from detector.data.coco_reader import CocoFile, read_coco_file
from detector.evaluation.results import checked_results, say_oddities
from detector.recipe import Scoring

METRICS = "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split()  # the order of COCOeval.stats
STANDARD = Scoring()  # COCO's


def evaluate_results(
    annotations: str | Path,
    results: list[dict[str, Any]],
    image_ids: list[int] | None = None,
    category_ids: list[int] | None = None,
    *,
    as_one_class: bool = False,
    scoring: Scoring = STANDARD,
    say_missing: bool = False,
) -> dict[str, dict[str, Any]]:
    """Score results in COCO form: {"bbox": the twelve metrics, "per_class": {name: {"AP", "AP50"}}}, fractions 0..1.

    With another `scoring` than COCO's, "configured" has the twelve metrics under it, beside the standard ones.

    A metric is -1 where the annotations hold no such object (COCO's convention), but every metric is 0 without results.
    Raises DataError for a malformed file or result and for ids that the annotations lack.

    Args:
        annotations: COCO file of the ground truth.
        results: detections in COCO form, {image_id, category_id, bbox (xywh), score} each.
        image_ids: images to score; None scores all.
        category_ids: categories to score; None scores all.
        as_one_class: all these categories, and those of the results, count as ONE_CLASS.
        scoring: limits of detections, and whether boxes are clipped to their image.
        say_missing: log how many images with objects have no result, and repeated results.
    """
    coco = read_coco_file(annotations)
    chosen = coco.category_ids.tolist() if category_ids is None else list(category_ids)
    names = dict(zip(coco.category_ids.tolist(), coco.category_names))
    objects = ground_truth_entries(coco)
    if as_one_class:
        [one] = ONE_CLASS
        objects = [entry | {"category_id": one} for entry in objects if entry["category_id"] in set(chosen)]
        names, chosen = dict(ONE_CLASS), [one]
    detections = checked_results(results, coco, names)
    if say_missing:
        say_oddities(detections, coco)
    lowest = -1.0 if results else 0.0

    images = coco.image_ids.tolist() if image_ids is None else image_ids
    run = partial(_evaluated, coco, names, detections, images, sorted(chosen))
    standard = run(objects, STANDARD.max_detections)
    precision = standard.eval["precision"][..., 0, -1]  # (10 IoUs, 101 recalls, K): all areas, 100 detections
    per_class = {
        names[category]: {"AP": max(_mean(p), lowest), "AP50": max(_mean(p[0]), lowest)}
        for category, p in zip(standard.params.catIds, np.moveaxis(precision, -1, 0))
    }
    metrics: dict[str, dict[str, Any]] = {"bbox": _twelve(standard, lowest), "per_class": per_class}
    if scoring != STANDARD:
        entries = _clipped(objects, coco) if scoring.clip else objects
        metrics["configured"] = _twelve(run(entries, scoring.max_detections), lowest)
    return metrics


def _evaluated(
    coco: CocoFile, names: dict[int, str], detections: list[dict[str, Any]], images: list[int], categories: list[int],
    entries: list[dict[str, Any]], limits: Sequence[int],
) -> COCOeval:  # fmt: skip
    """COCOeval's counts for detections of annotations `entries`, with three limits of detections per image and class."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(_index(coco, names, entries), _index(coco, names, detections), "bbox")
        evaluation.params.imgIds, evaluation.params.catIds = images, categories
        evaluation.params.maxDets = list(limits)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def metric_names(limits: Sequence[int]) -> list[str]:
    """The names of the twelve metrics in COCO's order: COCO's own for its limits, else with the limit: AP@1000, AR1000."""
    if tuple(limits) == STANDARD.max_detections:
        return METRICS
    last = limits[-1]
    ap = [f"{name}@{last}" for name in METRICS[:6]]
    return [*ap, *(f"AR{limit}" for limit in limits), *(f"AR{size}@{last}" for size in "sml")]


def _twelve(evaluation: COCOeval, lowest: float) -> dict[str, float]:
    """The metrics of COCOeval.summarize, which itself gives -1 for another limit than 100."""
    precision, recall = (
        evaluation.eval["precision"],
        evaluation.eval["recall"],
    )  # (T, R, K, areas, limits), (T, K, areas, limits)
    ap = [
        precision[..., 0, -1],
        precision[0, ..., 0, -1],
        precision[5, ..., 0, -1],
        *(precision[..., a, -1] for a in (1, 2, 3)),
    ]
    ar = [*(recall[..., 0, m] for m in range(3)), *(recall[..., a, -1] for a in (1, 2, 3))]
    names = metric_names(evaluation.params.maxDets)
    return {name: max(_mean(values), lowest) for name, values in zip(names, [*ap, *ar])}


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


def _mean(precision: np.ndarray) -> float:
    """The mean over the valid entries of COCOeval; -1 without any."""
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else -1.0


def _index(coco: CocoFile, names: dict[int, str], entries: list[dict[str, Any]]) -> COCO:
    """A COCO object made in memory: `COCO.loadRes` rejects an empty list and, in some versions, a file without `info`."""
    index = COCO()
    index.dataset = {
        "images": [{"id": image} for image in coco.image_ids.tolist()],
        "categories": [{"id": category} for category in names],
        "annotations": entries,
    }
    index.createIndex()
    return index
