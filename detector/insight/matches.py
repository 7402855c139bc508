"""Which detection found which object, as COCO's evaluation matched them, in flat arrays by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

SIZES = ("all", "small", "medium", "large")  # COCO's area ranges, in the order of COCOeval


@dataclass(frozen=True)
class ClassMatches:
    """The D detections of one class in all images, best first, and the G objects of the class that count."""

    images: np.ndarray
    """(D,) index of the image."""
    scores: np.ndarray
    """(D,) falling."""
    detections: np.ndarray
    """(D,) id of the entry."""
    objects: np.ndarray
    """(T, D) id of the object that each found at each IoU threshold; 0 for none."""
    counted: np.ndarray
    """(T, D) bool: neither in a crowd region nor of another size."""
    object_images: np.ndarray
    """(G,) index of the image."""
    object_ids: np.ndarray
    """(G,) id of the entry."""

    def hits(self, threshold: int = 0) -> np.ndarray:
        """(D,) bool: those that found an object at an IoU threshold, by its number (0: an IoU of 0.5)."""
        return self.counted[threshold] & (self.objects[threshold] > 0)

    def missed(self, threshold: int = 0) -> np.ndarray:
        """(G,) bool: objects that no detection found."""
        return ~np.isin(self.object_ids, self.objects[threshold])


def class_matches(counts: COCOeval, size: str = "all") -> list[ClassMatches]:
    """The matches of each class, in the order of `counts.params.catIds`, under COCO's limit of detections per image."""
    params = counts.params
    images, areas = len(params.imgIds), len(params.areaRng)
    area = SIZES.index(size)
    return [
        _of_class(counts.evalImgs[(k * areas + area) * images : (k * areas + area + 1) * images], len(params.iouThrs))
        for k in range(len(params.catIds))
    ]


def _of_class(entries: Sequence[dict[str, Any] | None], thresholds: int) -> ClassMatches:
    """`entries` are COCOeval's of one class and size, an image after the other; None for one with nothing of the class."""
    parts = [(i, entry) for i, entry in enumerate(entries) if entry is not None]
    scores = np.concatenate([[], *(entry["dtScores"] for _, entry in parts)])
    order = np.argsort(-scores, kind="mergesort")  # as COCOeval
    none = np.zeros((thresholds, 0))
    ignored = np.concatenate([none, *(entry["dtIgnore"] for _, entry in parts)], axis=1)
    objects = np.concatenate([none, *(entry["dtMatches"] for _, entry in parts)], axis=1)
    chosen = [(i, np.array(entry["gtIds"])[~np.asarray(entry["gtIgnore"], dtype=bool)]) for i, entry in parts]
    return ClassMatches(
        images=_repeated([(i, len(entry["dtIds"])) for i, entry in parts])[order],
        scores=scores[order],
        detections=_joined([entry["dtIds"] for _, entry in parts])[order],
        objects=objects[:, order].astype(np.int64),
        counted=ignored[:, order] == 0,
        object_images=_repeated([(i, len(ids)) for i, ids in chosen]),
        object_ids=_joined([ids for _, ids in chosen]),
    )


def _repeated(counts: Sequence[tuple[int, int]]) -> np.ndarray:
    """Each number as often as the count beside it."""
    pairs = np.array(counts, dtype=np.int64).reshape(-1, 2)
    return np.repeat(pairs[:, 0], pairs[:, 1])


def _joined(parts: Sequence[Any]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *parts]).astype(np.int64)
