"""Precision and recall of a class along its detections, and the score at which both are best together."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

RECALLS = np.linspace(0.0, 1.0, 101)  # at which COCO reads the precision


class Curve(NamedTuple):
    """One class at one IoU threshold, a point for each detection that found an object, best first."""

    recall: np.ndarray
    """(H,) rising."""
    precision: np.ndarray
    """(H,)."""
    scores: np.ndarray
    """(H,) falling."""

    def envelope(self) -> np.ndarray:
        """(H,) the best precision at this recall or a higher one."""
        return np.maximum.accumulate(self.precision[::-1])[::-1]


class Operating(NamedTuple):
    """A score from which detections are taken, and what that gives."""

    threshold: float
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """The harmonic mean of both; 0 where nothing is found."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def curve(scores: np.ndarray, hits: np.ndarray, objects: int) -> Curve:
    """The curve of detections by falling score (D,), those that found one of so many objects marked in `hits` (D,)."""
    rows = np.flatnonzero(hits)
    found = np.arange(1, len(rows) + 1)
    return Curve(found / max(objects, 1), found / (rows + 1), scores[rows])


def average_precision(scores: np.ndarray, hits: np.ndarray, objects: int) -> float:
    """COCO's AP at one IoU threshold: the mean of the best precision at 101 recalls. The arguments are those of `curve`."""
    found = curve(scores, hits, objects)
    return float(found.envelope() @ np.diff(reached(found.recall), prepend=0)) / len(RECALLS)


def reached(recall: np.ndarray) -> np.ndarray:
    """How many of RECALLS are not above each recall."""
    return np.searchsorted(RECALLS, recall, side="right")


def best_f1(found: Curve) -> Operating:
    """The score with the highest F1; (1, 0, 0) where no object is found."""
    if not len(found.scores):
        return Operating(1.0, 0.0, 0.0)
    # of equal scores all are taken: the last of them decides
    last = np.append(np.diff(found.scores) != 0, True)
    total = found.precision + found.recall
    row = int(np.argmax(np.where(last, 2 * found.precision * found.recall / total, -1)))
    return Operating(float(found.scores[row]), float(found.precision[row]), float(found.recall[row]))
