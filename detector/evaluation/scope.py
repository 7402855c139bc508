"""COCOeval over some images and categories of a file, and the means of what it counts."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.data.coco_reader import CocoFile
from detector.recipe import Scoring

METRICS = "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split()  # the order of COCOeval.stats
KEYPOINT_METRICS = "AP AP50 AP75 APm APl AR AR50 AR75 ARm ARl".split()
STANDARD = Scoring()  # COCO's
BOXES = partial(COCOeval, iouType="bbox")
Evaluation = Callable[[COCO, COCO], COCOeval]


@dataclass(frozen=True)
class Scope:
    """The images and categories that are scored."""

    coco: CocoFile
    names: dict[int, str]
    """Of all categories, by id."""
    images: Sequence[int]
    categories: Sequence[int]
    """Rising ids."""

    def evaluated(
        self, detections: list[dict[str, Any]], objects: list[dict[str, Any]], limits: Sequence[int],
        evaluation: Evaluation = BOXES,
    ) -> COCOeval:  # fmt: skip
        """COCOeval's counts for detections of objects, with rising limits of detections per image and class."""
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            counts = evaluation(self._index(objects), self._index(detections))
            counts.params.imgIds, counts.params.catIds = list(self.images), list(self.categories)
            counts.params.maxDets = list(limits)
            counts.evaluate()
            counts.accumulate()
        return counts

    def _index(self, entries: list[dict[str, Any]]) -> COCO:
        """A COCO object made in memory: `COCO.loadRes` rejects an empty list and, in some versions, a file without `info`."""
        sides = zip(self.coco.image_ids.tolist(), self.coco.sizes.tolist())
        index = COCO()
        index.dataset = {
            "images": [{"id": image, "height": h, "width": w} for image, (h, w) in sides],
            "categories": [{"id": category} for category in self.names],
            "annotations": entries,
        }
        index.createIndex()
        return index

    def per_class(self, counts: COCOeval, lowest: float) -> dict[str, dict[str, float]]:
        """AP and AP50 of each category's name."""
        precision = counts.eval["precision"][..., 0, -1]  # (10 IoUs, 101 recalls, K): all areas, the last limit
        return {
            self.names[category]: {"AP": max(mean(p), lowest), "AP50": max(mean(p[0]), lowest)}
            for category, p in zip(counts.params.catIds, np.moveaxis(precision, -1, 0))
        }


def twelve(counts: COCOeval, lowest: float) -> dict[str, float]:
    """The metrics of COCOeval.summarize for boxes and masks, which itself gives -1 for another limit than 100."""
    # precision (T, R, K, areas, limits), recall (T, K, areas, limits)
    precision, recall = counts.eval["precision"], counts.eval["recall"]
    ap = [
        precision[..., 0, -1],
        precision[0, ..., 0, -1],
        precision[5, ..., 0, -1],
        *(precision[..., a, -1] for a in (1, 2, 3)),
    ]
    ar = [*(recall[..., 0, m] for m in range(3)), *(recall[..., a, -1] for a in (1, 2, 3))]
    names = metric_names(counts.params.maxDets)
    return {name: max(mean(values), lowest) for name, values in zip(names, [*ap, *ar])}


def ten(counts: COCOeval, lowest: float) -> dict[str, float]:
    """The metrics of COCOeval.summarize for keypoints: areas are all, medium and large, at one limit of detections."""
    found = []
    for values in (counts.eval["precision"][..., -1], counts.eval["recall"][..., -1]):  # (T, ..., K, areas)
        found += [values[..., 0], values[0, ..., 0], values[5, ..., 0], values[..., 1], values[..., 2]]
    return {name: max(mean(values), lowest) for name, values in zip(KEYPOINT_METRICS, found)}


def metric_names(limits: Sequence[int]) -> list[str]:
    """The names of the twelve metrics in COCO's order: COCO's own for its limits, else with the limit: AP@1000, AR1000."""
    if tuple(limits) == STANDARD.max_detections:
        return METRICS
    last = limits[-1]
    ap = [f"{name}@{last}" for name in METRICS[:6]]
    return [*ap, *(f"AR{limit}" for limit in limits), *(f"AR{size}@{last}" for size in "sml")]


def mean(values: np.ndarray) -> float:
    """The mean over the valid entries of COCOeval; -1 without any."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else -1.0
