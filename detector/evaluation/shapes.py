"""AP of masks, of their boundaries, and of keypoints, beside that of boxes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.data.coco_reader import CocoFile
from detector.errors import DataError
from detector.evaluation.boundary import BoundaryEvaluation
from detector.evaluation.result_shapes import box_around
from detector.evaluation.scope import STANDARD, Evaluation, Scope, ten, twelve
from detector.recipe import Scoring

MASKS = partial(COCOeval, iouType="segm")
BOUNDARIES = partial(BoundaryEvaluation, iouType="segm")
KEYPOINT_LIMIT = [20]  # detections per image and class, COCO's
# thousandths, of a person's 17 points
COCO_SIGMAS = (26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89)

Entries = list[dict[str, Any]]
Summary = Callable[[COCOeval, float], dict[str, float]]


def shape_sections(
    scope: Scope, detections: Entries, objects: Entries, fields: Collection[str], scoring: Scoring, lowest: float
) -> Iterator[tuple[str, dict[str, float], COCOeval]]:
    """Title, metrics and counts of each of the `shapes` that are scored and lie among `fields`.

    Args:
        scope: what is scored; its file was read with these fields.
        detections: with `segmentation` (compressed run lengths) and `keypoints`, as checked_results gives them.
        objects: the annotations, of all rows of the file in their order or of some of them, by their `id` from 1.
        fields: of masks, keypoints.
        scoring: which are scored, and sigmas of keypoints.
        lowest: the least value of a metric.
    """
    runs: list[tuple[str, Entries, Entries, Sequence[int], Evaluation, Summary]] = []
    if "masks" in fields:
        masks = masked_objects(objects, scope.coco), _with_area_of_masks(detections)
        for title, of_masks in (("segm", MASKS), ("boundary", BOUNDARIES)):
            runs.append((title, *masks, STANDARD.max_detections, of_masks, twelve))
    if "keypoints" in fields:
        points = objects_with_points(objects, scope.coco)
        of_points = partial(_keypoint_evaluation, keypoint_sigmas(scope.coco, scoring.keypoint_sigmas))
        runs.append(("keypoints", points, _with_area_of_points(detections), KEYPOINT_LIMIT, of_points, ten))
    for title, truth, found, limits, evaluation, summary in (run for run in runs if run[0] in scoring.shapes):
        counts = scope.evaluated(found, truth, limits, evaluation)
        yield title, summary(counts, lowest), counts


def masked_objects(objects: Entries, coco: CocoFile) -> Entries:
    """The annotations with their masks, without their boxes, as COCO's `segm` counts them; `area` stays the annotation's."""
    assert coco.outlines is not None
    masks = coco.outlines.rle()
    return [_without_box(entry) | {"segmentation": masks[entry["id"] - 1]} for entry in objects]


def _with_area_of_masks(detections: Entries) -> Entries:
    """The detections without their boxes, so that sizes are those of the masks, as COCO means them; masks have own scores."""
    return [_without_box(entry) | {"area": entry["mask_area"], "score": entry["mask_score"]} for entry in detections]


def _without_box(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "bbox"}


def objects_with_points(objects: Entries, coco: CocoFile) -> Entries:
    """The annotations with their keypoints and how many are labelled."""
    assert coco.keypoints is not None
    points = coco.keypoints.reshape(len(coco.keypoints), -1)
    labelled = (coco.keypoints[..., 2] > 0).sum(axis=1)
    rows = [entry["id"] - 1 for entry in objects]
    return [
        entry | {"keypoints": points[row].tolist(), "num_keypoints": int(labelled[row])}
        for entry, row in zip(objects, rows)
    ]


def _with_area_of_points(detections: Entries) -> Entries:
    """The detections with the area of the box around their keypoints, as `COCO.loadRes` has it."""
    boxes = [box_around(entry["keypoints"]) for entry in detections]
    return [entry | {"area": w * h} for entry, (_, _, w, h) in zip(detections, boxes)]


def keypoint_sigmas(coco: CocoFile, given: Sequence[float] | None) -> np.ndarray:
    """(J,) how far each keypoint is off when people mark it, relative to the object's size: COCO's measure of likeness.

    Raises DataError if the file names no keypoints, or others than sigmas are given for.
    """
    assert coco.keypoints is not None
    number = coco.keypoints.shape[1]
    if not number:
        raise DataError(
            f"{coco.path}: no category names `keypoints`; name and annotate them, or score boxes alone: evaluate.shapes=[]"
        )
    if given is not None and len(given) != number:
        raise DataError(f"evaluate.keypoint_sigmas: {len(given)} numbers, and {coco.path} has {number} keypoints")
    known = np.array(COCO_SIGMAS) / 1000
    if given is not None:
        return np.array(given, dtype=np.float64)
    return known if number == len(known) else np.full(number, known.mean())


def _keypoint_evaluation(sigmas: np.ndarray, truth: COCO, found: COCO) -> COCOeval:
    counts = COCOeval(truth, found, "keypoints")
    counts.params.kpt_oks_sigmas = sigmas
    return counts
