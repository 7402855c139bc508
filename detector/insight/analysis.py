"""What the scores of boxes or masks are made of: intervals, classes, errors, confusions, trust in scores, lost objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from detector.evaluation.coco import Scored
from detector.evaluation.scope import mean
from detector.insight.bootstrap import SAMPLES, Interval, Resampled, resample
from detector.insight.confusion import Calibration, calibration, confusion_matrix
from detector.insight.curves import Curve, Operating, best_f1, curve
from detector.insight.errors import HIT, KINDS, Errors, errors_of
from detector.insight.funnel import MASK, Loss, funnel
from detector.insight.matches import class_matches

SHAPES = {"bbox": "boxes", "segm": "masks"}


@dataclass(frozen=True)
class ClassScores:
    """What one class scored."""

    name: str
    objects: int
    ap: Interval
    ap50: float
    recall: float
    """AR of at most 100 detections per image; NaN without objects, as the others."""
    best: Operating
    """Where F1 is highest, at an IoU of 0.5."""
    curve: Curve
    """At an IoU of 0.5."""


@dataclass(frozen=True)
class Analysis:
    """Boxes or masks of one split."""

    kind: str
    """bbox or segm."""
    metrics: Mapping[str, float]
    """COCO's twelve."""
    image_ids: list[int]
    """Those that the errors number."""
    resampled: Resampled
    errors: Errors
    classes: list[ClassScores]
    kept: np.ndarray
    """(D,) bool: detections at or above the best score of their class, by which pictures and confusions are made."""
    confusion: np.ndarray
    """(K+1, K+1), see `confusion_matrix`."""
    calibration: Calibration
    costs: dict[str, float]
    """AP50 that each of KINDS costs."""
    funnel: dict[int, Counter[str]] | None
    """Missed objects by the step that lost them; None where no step was followed."""

    def missed(self) -> int:
        """How many objects no detection found, whatever its score."""
        return int((~self.errors.found()).sum())

    def objects(self) -> int:
        """How many objects count."""
        return len(self.errors.object_ids)


def analyse(scored: Scored, losses: Mapping[int, Loss] | None = None, samples: int = SAMPLES) -> dict[str, Analysis]:
    """The analysis of boxes and, where they are scored, of masks.

    Args:
        scored: detections with their counts.
        losses: where each object is lost if it is missed, by the id of its entry.
        samples: of the bootstrap.
    """
    boxes = errors_of(scored.counts["bbox"])
    box_found = set(boxes.object_ids[boxes.found()].tolist())
    out = {}
    for kind in (kind for kind in SHAPES if kind in scored.counts):
        errors = boxes if kind == "bbox" else errors_of(scored.counts[kind])
        missed = None if losses is None else missed_losses(errors, losses, box_found if kind == "segm" else set())
        lost = None if missed is None else list(missed.values())
        out[kind] = _analysed(scored, kind, errors, lost, samples)
    return out


def missed_losses(
    errors: Errors, losses: Mapping[int, Loss], box_found: set[int]
) -> dict[int, tuple[Loss, float]]:  # fmt: skip
    """The loss and the area of every missed object, by its id; one whose box is found has a poor mask."""
    missed = ~errors.found()
    pairs = zip(errors.object_ids[missed].tolist(), errors.object_areas[missed].tolist())
    return {i: (losses[i]._replace(step=MASK) if i in box_found else losses[i], area) for i, area in pairs}


def _analysed(
    scored: Scored, kind: str, errors: Errors, lost: list[tuple[Loss, float]] | None, samples: int
) -> Analysis:  # fmt: skip
    counts = scored.counts[kind]
    resampled = resample(counts, samples)
    classes = _classes(scored, counts, resampled)
    thresholds = np.array([one.best.threshold for one in classes])
    kept = errors.scores >= thresholds[errors.labels] if len(classes) else np.zeros(0, dtype=bool)
    return Analysis(
        kind=kind,
        metrics=scored.metrics[kind],
        image_ids=[int(i) for i in counts.params.imgIds],
        resampled=resampled,
        errors=errors,
        classes=classes,
        kept=kept,
        confusion=confusion_matrix(errors, kept),
        calibration=calibration(errors.scores, errors.kinds == HIT),
        costs={name: errors.lost(name) for name in KINDS},
        funnel=None if lost is None else funnel(lost),
    )


def _classes(scored: Scored, counts: Any, resampled: Resampled) -> list[ClassScores]:
    out = []
    for label, (category, found) in enumerate(zip(counts.params.catIds, class_matches(counts))):
        along = curve(found.scores[found.counted[0]], found.hits()[found.counted[0]], len(found.object_ids))
        precision, recall = counts.eval["precision"][0, :, label, 0, -1], counts.eval["recall"][:, label, 0, -1]
        numbers = resampled.of_class(label), _known(mean(precision)), _known(mean(recall))
        out.append(ClassScores(scored.scope.names[category], len(found.object_ids), *numbers, best_f1(along), along))
    return out


def _known(value: float) -> float:
    """NaN for COCO's -1."""
    return value if value >= 0 else float("nan")
