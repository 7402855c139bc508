"""The kinds of errors, each by what it costs: TIDE (Bolya et al. 2020, arXiv 2008.08115, sec. 2.2 and 2.3).

A false positive is one of five kinds by its IoU with the objects of its image, an object that nothing comes near is missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from detector.insight.curves import average_precision
from detector.insight.matches import class_matches

KINDS = {  # of false positives, in the order of their numbers, and of objects
    "Cls": "right place, wrong class",
    "Loc": "right class, too far off (IoU 0.1 to 0.5)",
    "Both": "wrong class and too far off",
    "Dupe": "an object that is found already",
    "Bkg": "nothing there (IoU below 0.1)",
    "Miss": "object that no detection comes near",
}
HIT = -1  # of a detection that found its object
CLS, LOC, BOTH, DUPE, BKG = range(5)
FOREGROUND, BACKGROUND = 0.5, 0.1  # IoU


@dataclass(frozen=True)
class Errors:
    """The D detections that count, by falling score, and the G objects that count, at an IoU of 0.5."""

    classes: int
    images: np.ndarray
    """(D,) index of the image."""
    labels: np.ndarray
    """(D,)."""
    scores: np.ndarray
    """(D,)."""
    ids: np.ndarray
    """(D,) of the entries."""
    kinds: np.ndarray
    """(D,) HIT or the number of one of KINDS."""
    targets: np.ndarray
    """(D,) row of the object that each found or comes nearest to; -1 for none."""
    object_images: np.ndarray
    """(G,)."""
    object_labels: np.ndarray
    """(G,)."""
    object_ids: np.ndarray
    """(G,) of the entries."""
    object_areas: np.ndarray
    """(G,) in pixels, as annotated."""

    def found(self) -> np.ndarray:
        """(G,) bool: objects that a detection found."""
        return self._marked(self.kinds == HIT)

    def missed(self) -> np.ndarray:
        """(G,) bool: objects of the kind Miss, without those that a Cls or Loc error would find if it were corrected."""
        return ~self.found() & ~self._marked((self.kinds == CLS) | (self.kinds == LOC))

    def count(self, kind: str) -> int:
        """How many errors of a kind there are."""
        return int(self.missed().sum() if kind == "Miss" else (self.kinds == list(KINDS).index(kind)).sum())

    def _marked(self, rows: np.ndarray) -> np.ndarray:
        marked = np.zeros(len(self.object_ids), dtype=bool)
        marked[self.targets[rows & (self.targets >= 0)]] = True
        return marked

    def above(self, score: float) -> Errors:
        """These errors without the detections below a score.

        COCO gives an object to the best detection first: leaving out the others changes no match and no kind.
        """
        rows = slice(int(np.searchsorted(-self.scores, -score, side="right")))
        shorter = {
            name: getattr(self, name)[rows] for name in ("images", "labels", "scores", "ids", "kinds", "targets")
        }
        return replace(self, **shorter)

    def ap50(self) -> float:
        """The mean of the classes' AP at an IoU of 0.5; NaN without objects."""
        return self._mean_ap(self.kinds == HIT, self.labels, np.ones(len(self.labels), dtype=bool), self._objects())

    def lost(self, kind: str, *, area: tuple[float, float] = (0, np.inf)) -> float:
        """What errors of a kind cost: AP50 with these alone repaired, less AP50 as it is.

        Of the detections of wrong class or place that come near an object which is not found, the best is corrected, as in the
        authors' program; any other false positive is removed; a missed object is not counted. `area` chooses missed objects by
        theirs, its end left out.
        """
        number, hits, labels = list(KINDS).index(kind), self.kinds == HIT, self.labels
        kept, objects = self.kinds != number, self._objects()
        if kind == "Miss":
            low, high = area
            gone = self.missed() & (low <= self.object_areas) & (self.object_areas < high)
            objects = objects - np.bincount(self.object_labels[gone], minlength=self.classes)
        elif number in (CLS, LOC):
            near = np.flatnonzero(np.isin(self.kinds, (CLS, LOC)))
            near = near[~self.found()[self.targets[near]]]
            _, first = np.unique(self.targets[near], return_index=True)  # the best: they fall by score
            mended = near[first][self.kinds[near[first]] == number]
            hits, kept, labels = hits.copy(), kept.copy(), labels.copy()
            hits[mended] = kept[mended] = True
            labels[mended] = self.object_labels[self.targets[mended]]
        return self._mean_ap(hits, labels, kept, objects) - self.ap50()

    def lost_to_false_positives(self) -> float:
        """AP50 without any false positive, less AP50 as it is."""
        return self._mean_ap(self.kinds == HIT, self.labels, self.kinds == HIT, self._objects()) - self.ap50()

    def lost_to_misses(self) -> float:
        """AP50 where no object counts that is not found, less AP50 as it is."""
        objects = np.bincount(self.object_labels[self.found()], minlength=self.classes)
        return (
            self._mean_ap(self.kinds == HIT, self.labels, np.ones_like(self.kinds, dtype=bool), objects) - self.ap50()
        )

    def _objects(self) -> np.ndarray:
        return np.bincount(self.object_labels, minlength=self.classes)

    def _mean_ap(self, hits: np.ndarray, labels: np.ndarray, kept: np.ndarray, objects: np.ndarray) -> float:
        """Over the classes that have objects, or had some and have detections (their AP is 0)."""
        rows = np.flatnonzero(kept)
        rows = rows[np.argsort(labels[rows], kind="stable")]
        by_class = np.split(rows, np.bincount(labels[rows], minlength=self.classes).cumsum()[:-1])
        had = self._objects() > 0
        aps = [
            average_precision(self.scores[of], hits[of], int(count))
            for of, count, any_ in zip(by_class, objects, had)
            if any_ and (count or len(of))
        ]
        return float(np.mean(aps)) if aps else float("nan")


def kinds_of_image(
    iou: np.ndarray, labels: np.ndarray, object_labels: np.ndarray, found: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Kinds and targets (D,) of the detections of one image, by their IoU (D, G) with its objects.

    `found` (D,) is the row of the object that each one found, -1 for a false positive. The order of the questions is that of
    the authors' program: is it in the right class but too far off, in the right place but of the wrong class, or a duplicate?
    """
    kinds, targets = np.where(found >= 0, HIT, BKG), found.copy()
    if not iou.shape[1]:
        return kinds, targets
    same = labels[:, None] == object_labels
    own, other, taken = (
        np.where(mask, iou, -1) for mask in (same, ~same, same & np.isin(np.arange(iou.shape[1]), found))
    )
    loc = (own.max(axis=1) >= BACKGROUND) & (own.max(axis=1) < FOREGROUND)
    cls, dupe = (values.max(axis=1) >= FOREGROUND for values in (other, taken))
    both = iou.max(axis=1) >= BACKGROUND
    nearest = [other, own, iou, taken]
    for kind, mask in ((BOTH, both), (DUPE, dupe), (CLS, cls), (LOC, loc)):  # the last that is true decides
        rows = mask & (found < 0)
        kinds[rows] = kind
        targets[rows] = nearest[kind][rows].argmax(axis=1)
    return kinds, targets


def errors_of(counts: COCOeval) -> Errors:
    """The errors behind COCO's counts of boxes or masks at an IoU of 0.5."""
    matches = class_matches(counts)
    joined = {
        name: np.concatenate([np.zeros(0, dtype=np.int64), *(getattr(m, name) for m in matches)])
        for name in ("images", "scores", "detections", "object_images", "object_ids")
    }  # fmt: skip
    labels = np.repeat(np.arange(len(matches)), [len(m.images) for m in matches])
    object_labels = np.repeat(np.arange(len(matches)), [len(m.object_ids) for m in matches])
    row_of = {number: row for row, number in enumerate(joined["object_ids"].tolist())}
    matched = np.concatenate([np.zeros(0, dtype=np.int64), *(m.objects[0] for m in matches)])
    counted = np.concatenate([np.zeros(0, dtype=bool), *(m.counted[0] for m in matches)])
    order = np.argsort(-joined["scores"], kind="stable")
    order = order[counted[order]]
    found = np.array([row_of.get(number, -1) for number in matched[order].tolist()], dtype=np.int64)
    images, labels, ids = joined["images"][order], labels[order], joined["detections"][order]
    kinds, targets = np.full(len(order), BKG), np.full(len(order), -1)
    for rows, objects, iou in _by_image(counts, images, ids, joined["object_images"], joined["object_ids"]):
        place = {row: i for i, row in enumerate(objects.tolist())}
        here = np.array([place.get(row, -1) for row in found[rows].tolist()], dtype=np.int64)
        kinds[rows], nearest = kinds_of_image(iou, labels[rows], object_labels[objects], here)
        targets[rows] = np.where(nearest >= 0, np.append(objects, -1)[nearest], -1)
    areas = {entry["id"]: entry["area"] for entry in counts.cocoGt.dataset["annotations"]}
    return Errors(
        len(matches), images, labels, joined["scores"][order], ids, kinds, targets, joined["object_images"], object_labels,
        joined["object_ids"], np.array([areas[number] for number in joined["object_ids"].tolist()], dtype=np.float64),
    )  # fmt: skip


def _by_image(
    counts: COCOeval, images: np.ndarray, ids: np.ndarray, object_images: np.ndarray, object_ids: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of every image with detections: their rows, the rows of its objects, and the IoU of all pairs."""
    key = "segmentation" if counts.params.iouType == "segm" else "bbox"
    detections, objects = counts.cocoDt.anns, counts.cocoGt.anns
    number = len(counts.params.imgIds)
    rows_of, objects_of = rows_by_image(images, number), rows_by_image(object_images, number)
    for rows, own in zip(rows_of, objects_of):
        if len(rows):
            found = [detections[i][key] for i in ids[rows].tolist()]
            truth = [objects[i][key] for i in object_ids[own].tolist()]
            yield rows, own, iou_matrix(found, truth)


def iou_matrix(found: Sequence[Any], truth: Sequence[Any]) -> np.ndarray:
    """(D, G) IoU of boxes xywh or of run lengths."""
    if not found or not truth:
        return np.zeros((len(found), len(truth)))
    return np.reshape(coco_mask.iou(list(found), list(truth), [0] * len(truth)), (len(found), len(truth)))


def rows_by_image(images: np.ndarray, number: int) -> list[np.ndarray]:
    """The rows of each of the images, in their order."""
    order = np.argsort(images, kind="stable")
    return np.split(order, np.bincount(images, minlength=number).cumsum()[:-1])
