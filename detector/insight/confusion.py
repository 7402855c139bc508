"""What objects are taken for, and how far scores can be believed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from detector.insight.errors import CLS, HIT, Errors

BINS = 10


def confusion_matrix(errors: Errors, kept: np.ndarray) -> np.ndarray:
    """(K+1, K+1) counts: the class of an object in rows, what it was taken for in columns, background last.

    Of the detections (D,) that are `kept`, each object goes to that which found it, else to the best of another class with an
    IoU of 0.5; what is left of the detections was found in the background, what is left of the objects was taken for it.
    """
    k = errors.classes
    matrix = np.zeros((k + 1, k + 1), dtype=np.int64)
    taken = np.zeros(len(errors.object_ids), dtype=bool)
    hits, rest = kept & (errors.kinds == HIT), np.flatnonzero(kept & (errors.kinds != HIT))
    taken[errors.targets[hits]] = True
    np.add.at(matrix, (errors.labels[hits], errors.labels[hits]), 1)
    for row in rest:  # by falling score
        target = errors.targets[row]
        if errors.kinds[row] == CLS and not taken[target]:
            taken[target] = True
            matrix[errors.object_labels[target], errors.labels[row]] += 1
        else:
            matrix[k, errors.labels[row]] += 1
    matrix[:k, k] += np.bincount(errors.object_labels[~taken], minlength=k)
    return matrix


class Calibration(NamedTuple):
    """Detections in bins by score (BINS,), at an IoU of 0.5."""

    scores: np.ndarray
    """Mean score of each bin; NaN where it is empty."""
    precision: np.ndarray
    """Share of right detections in each bin; NaN where it is empty."""
    counts: np.ndarray
    """Detections in each bin."""

    @property
    def error(self) -> float:
        """The expected calibration error (Guo et al. 2017, arXiv 1706.04599, eq. 3): the mean distance of both; NaN if empty."""
        total = self.counts.sum()
        gaps = np.nan_to_num(np.abs(self.scores - self.precision))
        return float((gaps * self.counts).sum() / total) if total else float("nan")


def calibration(scores: np.ndarray, right: np.ndarray) -> Calibration:
    """Of detections with scores (D,) in 0..1, those marked in `right` (D,) correct."""
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean_score, precision = (
            np.bincount(bins, weights=values, minlength=BINS) / counts for values in (scores, right)
        )
    return Calibration(mean_score, precision, counts)
