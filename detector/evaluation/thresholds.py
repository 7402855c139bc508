"""How many detections of each class are right and wrong, by the score from which detections are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.data.coco_reader import read_coco_file
from detector.evaluation.coco import ground_truth_entries
from detector.evaluation.results import checked_results
from detector.evaluation.scope import BOXES, STANDARD, Scope

THRESHOLDS = np.linspace(0, 1, 101)
EVERY_AREA = [0.0, 1e10]


@dataclass(frozen=True)
class ThresholdCounts:
    """Of one class, at each of THRESHOLDS."""

    right: np.ndarray
    """(101,) detections of at least this score that match an object with IoU 0.5 or more, by COCO's rules."""
    wrong: np.ndarray
    """(101,) the other detections of at least this score; those in crowd regions count as neither."""
    objects: int
    """Objects to find, without crowd regions."""

    @property
    def precision(self) -> np.ndarray:
        """(101,) share of the detections that are right; NaN where there is none."""
        found = self.right + self.wrong
        return np.divide(self.right, found, out=np.full(len(found), np.nan), where=found > 0)

    @property
    def recall(self) -> np.ndarray:
        """(101,) share of the objects that are found; NaN without objects."""
        return self.right / self.objects if self.objects else np.full(len(self.right), np.nan)


def threshold_counts(
    annotations: str | Path, results: list[dict[str, Any]], category_ids: Sequence[int]
) -> dict[str, ThresholdCounts]:
    """The counts of each of these categories, by its name: boxes, the best 100 of an image and class.

    Raises DataError as `evaluate_results`.

    Args:
        annotations: COCO file of the ground truth.
        results: detections in COCO form.
        category_ids: of the file.
    """
    coco = read_coco_file(annotations)
    names = dict(zip(coco.category_ids.tolist(), coco.category_names))
    scope = Scope(coco, names, coco.image_ids.tolist(), sorted(category_ids))
    detections = checked_results(results, coco, names)
    counts = scope.evaluated(detections, ground_truth_entries(coco), STANDARD.max_detections, _at_half)
    of_class: dict[int, list[dict[str, Any]]] = {category: [] for category in scope.categories}
    for entry in counts.evalImgs:
        if entry is not None:  # an image with neither objects nor detections of the class
            of_class[entry["category_id"]].append(entry)
    return {names[category]: _counted(entries) for category, entries in of_class.items()}


def _at_half(truth: COCO, found: COCO) -> COCOeval:
    """COCOeval at one IoU for objects of any size."""
    evaluation = BOXES(truth, found)
    evaluation.params.iouThrs, evaluation.params.areaRng, evaluation.params.areaRngLbl = [0.5], [EVERY_AREA], ["all"]
    return evaluation


def _counted(entries: Sequence[dict[str, Any]]) -> ThresholdCounts:
    scores = np.concatenate([np.asarray(e["dtScores"], dtype=np.float64) for e in entries] or [np.zeros(0)])
    taken = np.concatenate([np.asarray(e["dtMatches"][0]) for e in entries] or [np.zeros(0)]) > 0
    ignored = np.concatenate([np.asarray(e["dtIgnore"][0]) for e in entries] or [np.zeros(0)]).astype(bool)
    objects = sum(int((np.asarray(e["gtIgnore"]) == 0).sum()) for e in entries)
    return ThresholdCounts(_at_least(scores[taken & ~ignored]), _at_least(scores[~taken & ~ignored]), objects)


def _at_least(scores: np.ndarray) -> np.ndarray:
    """(101,) how many scores reach each threshold."""
    return len(scores) - np.searchsorted(np.sort(scores), THRESHOLDS, side="left")
