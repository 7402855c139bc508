"""The detections of a run, judged: which are right, what kind of error the others are, which objects nobody found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from detector.data.tracing import borders
from detector.errors import DataError
from detector.evaluation.coco import Scored
from detector.insight.analysis import missed_losses
from detector.insight.errors import HIT, KINDS, errors_of, iou_matrix, rows_by_image
from detector.insight.funnel import STEPS, Loss
from detector.insight.verdict import RANGES

COLUMNS = ("right", *KINDS, "unfound")  # of the counts; unfound objects include those of the kind Miss
WRONG = slice(1, len(KINDS))  # the columns of false positives
DECIMALS = 2  # of a pixel


@dataclass(frozen=True)
class Choice:
    """What is counted."""

    score: float = 0.5
    """The least of a detection."""
    label: int = -1
    """Of the class; -1 for all."""
    size: int = -1
    """Number of COCO's small, medium, large; -1 for all."""


class Judged:
    """One run on a split, by its masks where it gives any.

    Args:
        name: of the run.
        scored: detections with their counts.
        losses: where each object is lost if it is missed, by the id of its entry; None if that is not known.
    """

    def __init__(self, name: str, scored: Scored, losses: Mapping[int, Loss] | None):
        self.name, self.scored = name, scored
        self.shape = "segm" if "segm" in scored.counts else "bbox"
        counts, boxes = scored.counts[self.shape], errors_of(scored.counts["bbox"])
        errors = self.errors = boxes if self.shape == "bbox" else errors_of(counts)
        box_found = set() if self.shape == "bbox" else set(boxes.object_ids[boxes.found()].tolist())
        lost = {} if losses is None else missed_losses(errors, losses, box_found)
        self.lost = {i: list(STEPS)[loss.step] for i, (loss, _) in lost.items()}
        self.truth, self.found = counts.cocoGt.anns, counts.cocoDt.anns  # entries by id
        self.image_ids = [int(i) for i in counts.params.imgIds]
        self.names = [scored.scope.names[i] for i in counts.params.catIds]
        self.object_sizes = size_numbers(errors.object_areas)
        areas = np.array([self.found[i]["area"] for i in errors.ids.tolist()], dtype=np.float64)
        hits = errors.kinds == HIT
        self.sizes = size_numbers(areas)  # (D,) as COCO: that of the object which a detection found, or else its own
        self.sizes[hits] = self.object_sizes[errors.targets[hits]]
        images = len(self.image_ids)
        self._rows = rows_by_image(errors.images, images), rows_by_image(errors.object_images, images)
        self._xywh = (
            {entry["id"]: entry["bbox"] for entry in scored.objects},
            {e["id"]: e["bbox"] for e in scored.detections},
        )

    def counts(self, choice: Choice) -> np.ndarray:
        """(images, COLUMNS) how many of each there are among what is chosen."""
        errors = self.errors.above(choice.score)
        chosen = _chosen(errors.labels, self.sizes[: len(errors.labels)], choice)
        objects = _chosen(errors.object_labels, self.object_sizes, choice)
        table = np.zeros((len(self.image_ids), len(COLUMNS)), dtype=np.int64)
        np.add.at(table, (errors.images[chosen], errors.kinds[chosen] - HIT), 1)
        for name, rows in (("Miss", errors.missed()), ("unfound", ~errors.found())):
            np.add.at(table[:, COLUMNS.index(name)], errors.object_images[rows & objects], 1)
        return table

    def objects_of(self, image: int) -> list[dict[str, Any]]:
        """The objects of an image: class, box xywh, size, outlines."""
        return [
            self._place(0, self.errors.object_ids[row], self.errors.object_labels[row], self.object_sizes[row])
            for row in self._rows[1][image]
        ]

    def lost_of(self, image: int) -> list[str | None]:
        """The step that lost each of these objects; None for one that is found."""
        return [self.lost.get(int(self.errors.object_ids[row])) for row in self._rows[1][image]]

    def detections_of(self, image: int) -> list[dict[str, Any]]:
        """The detections of an image, best first: place, score, kind, and the object that each found or comes nearest to."""
        errors, key = self.errors, "segmentation" if self.shape == "segm" else "bbox"
        rows, objects = self._rows[0][image], self._rows[1][image].tolist()
        truth = [self.truth[errors.object_ids[row]][key] for row in objects]
        iou = iou_matrix([self.found[errors.ids[row]][key] for row in rows], truth)
        out = []
        for number, row in enumerate(rows.tolist()):
            target = objects.index(errors.targets[row]) if errors.targets[row] >= 0 else -1
            facts = {
                "score": float(errors.scores[row]),
                "kind": COLUMNS[errors.kinds[row] - HIT],
                "object": target,
                "iou": round(float(iou[number, target]), 3) if target >= 0 else 0,
            }
            out.append(self._place(1, errors.ids[row], errors.labels[row], self.sizes[row]) | facts)
        return out

    def _place(self, found: int, number: int, label: int, size: int) -> dict[str, Any]:
        mask = (self.truth, self.found)[found][number].get("segmentation") if self.shape == "segm" else None
        return {
            "label": int(label),
            "box": [round(value, DECIMALS) for value in self._xywh[found][number]],
            "size": int(size),
            "outlines": [] if mask is None else outlines_of(mask),
        }


def size_numbers(areas: np.ndarray) -> np.ndarray:
    """Numbers of COCO's small, medium and large of areas in pixels."""
    return np.digitize(areas, [low for low, _ in RANGES.values()][1:])


def outlines_of(mask: Mapping[str, Any]) -> list[list[int]]:
    """The borders of run lengths along the edges of pixels, each x, y, x, y, ...; those of holes as well."""
    x, y, w, h = (int(value) for value in coco_mask.toBbox(mask))
    outer, holes = borders(coco_mask.decode(mask)[y : y + h, x : x + w])
    return [(loop + (x, y)).astype(int).ravel().tolist() for loop in outer + holes]


def check_same_truth(runs: Sequence[Judged]) -> None:
    """Raise DataError for runs that were not scored on the same images, objects and classes."""
    first = runs[0]
    for other in runs[1:]:
        if _truth(first) != _truth(other):
            raise DataError(
                f"{other.name} and {first.name} are scored on different images, objects or classes (data.val); browse runs with "
                "the same val, or name one run"
            )


def _truth(run: Judged) -> tuple[Any, ...]:
    errors = run.errors
    return run.image_ids, run.names, errors.object_ids.tolist(), errors.object_labels.tolist(), run.scored.objects


def _chosen(labels: np.ndarray, sizes: np.ndarray, choice: Choice) -> np.ndarray:
    chosen = np.ones(len(labels), dtype=bool)
    if choice.label >= 0:
        chosen &= labels == choice.label
    if choice.size >= 0:
        chosen &= sizes == choice.size
    return chosen
