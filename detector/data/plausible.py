"""Boxes that are valid but look like a mistake: fractions, corners, boxes of images of another size, equal boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MOST = 0.98  # share of boxes that counts as all of them
BEYOND = 0.05  # of a side: a box that reaches further out of its image is no rounding error
LEAST_FRACTIONS = 0.01  # share of boxes of at most a pixel at the corner of the image that is no accident
LEAST_BEYOND = 0.1  # share of such boxes that is no accident
LEAST_OBJECTS = 50  # different boxes, from which "none reaches there" means something
LEAST_EQUAL = 5  # boxes of a class
REMEDIES = {  # kind -> what to do
    "boxes like fractions": "COCO's boxes are pixels: multiply x and width by the image's width, y and height by its height",
    "boxes like corners": "COCO's boxes are [x, y, width, height]: subtract x1 from x2 and y1 from y2",
    "boxes like another size": "check the order (x, y of the upper left corner, width, height), the unit and the size",
    "equal boxes": "a class whose boxes are all equal teaches nothing but this box: draw them, or correct the export",
}


class Doubt(NamedTuple):
    """Boxes that look like a mistake."""

    kind: str
    """Key of REMEDIES."""
    note: str
    """What was seen, with its numbers."""


def implausible_boxes(
    boxes: np.ndarray, labels: np.ndarray, sizes: np.ndarray, class_names: Sequence[str]
) -> list[Doubt]:
    """What is doubtful about the boxes of a split.

    Args:
        boxes: (B, 4) corners as in the file, not clipped.
        labels: (B,) index of the class.
        sizes: (B, 2) height and width of each box's image.
        class_names: of all classes.
    """
    if not len(boxes):
        return []
    doubts = _fractions(boxes, sizes) or _corners(boxes, sizes) or _other_size(boxes, sizes)
    return doubts + _equal(boxes, labels, class_names)


def _as_written(boxes: np.ndarray) -> np.ndarray:
    """The four numbers of the file, x, y, width and height if it is right."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _fractions(boxes: np.ndarray, sizes: np.ndarray) -> list[Doubt]:
    inside = (_as_written(boxes) <= 1 + 1e-6).all(axis=1) & (sizes > 2).all(axis=1)
    if not inside.any() or inside.mean() < LEAST_FRACTIONS:
        return []
    return [Doubt("boxes like fractions", f"{inside.sum()} of {len(boxes)} boxes have four numbers of at most 1")]


def _reach(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(B, 2) how far each box reaches, in widths and heights of its image."""
    return boxes[:, 2:] / sizes[:, ::-1]


def _beyond(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(B,) bool: the box reaches clearly out of its image."""
    out = (_reach(boxes, sizes) > 1 + BEYOND) | (boxes[:, :2] < -BEYOND * sizes[:, ::-1])
    return np.any(out, axis=1)


def _corners(boxes: np.ndarray, sizes: np.ndarray) -> list[Doubt]:
    """As [x, y, width, height] boxes leave their images, as [x1, y1, x2, y2] none does."""
    beyond = _beyond(boxes, sizes)
    second = _as_written(boxes)[:, 2:]
    fits = (
        (boxes[:, :2] >= 0).all(axis=1)
        & (second > boxes[:, :2]).all(axis=1)
        & (second <= sizes[:, ::-1] + 1).all(axis=1)
    )
    if beyond.mean() < LEAST_BEYOND or fits.mean() < MOST:
        return []
    note = f"{beyond.sum()} of {len(boxes)} boxes leave their image, none as [x1, y1, x2, y2]"
    return [Doubt("boxes like corners", note)]


def _other_size(boxes: np.ndarray, sizes: np.ndarray) -> list[Doubt]:
    reach, beyond = _reach(boxes, sizes), _beyond(boxes, sizes)
    wide, high = reach.max(axis=0)
    note = ""
    if beyond.mean() >= LEAST_BEYOND:
        note = f"{beyond.sum()} of {len(boxes)} boxes leave their image"
        note += f", up to {wide:.2f} widths and {high:.2f} heights" if max(wide, high) > 1 else ""
        if _beyond(boxes, sizes[:, ::-1]).mean() <= 1 - MOST:
            note += "; all fit if width and height change places"
    elif max(wide, high) < 0.55 and len(np.unique(boxes, axis=0)) >= LEAST_OBJECTS:
        note = f"no box of {len(boxes)} reaches beyond {wide:.0%} of the width and {high:.0%} of the height"
    return [Doubt("boxes like another size", note)] if note else []


def _equal(boxes: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> list[Doubt]:
    doubts = []
    for label in np.flatnonzero(np.bincount(labels) >= LEAST_EQUAL).tolist():
        own = boxes[labels == label]
        if len(np.unique(own.round(2), axis=0)) == 1:
            x1, y1, x2, y2 = own[0]
            box = f"[{x1:g}, {y1:g}, {x2 - x1:g}, {y2 - y1:g}]"
            doubts.append(Doubt("equal boxes", f"all {len(own)} boxes of {class_names[label]!r} are {box}"))
    return doubts
