"""Checks of valid annotations: boxes, classes and images without objects."""

from __future__ import annotations

import numpy as np

from detector.data.box_arrays import have_area, were_clipped
from detector.data.plausible import implausible_boxes
from detector.dataset_check.checked_split import CheckedSplit
from detector.dataset_check.findings import FaultPlace, Findings

SAME = 0.9  # IoU of duplicate boxes: boxes of two objects, or by two annotators, seldom agree so well


def check_annotations(split: CheckedSplit, findings: Findings, *, keep_empty: bool) -> None:
    """Check boxes, classes and images of one split. `keep_empty`: training uses images without objects."""
    clipped = split.clipped_boxes()
    solid, beyond = have_area(clipped), were_clipped(split.boxes, clipped)
    find = findings.add
    find(
        "box without area", split.name, np.flatnonzero(~solid), lambda row: split.box_place(row, note=_xywh(split, row))
    )
    find(
        "box outside image",
        split.name,
        np.flatnonzero(solid & beyond),
        lambda row: split.box_place(row, note=f"{_xywh(split, row)} in {_size(split, row)}"),
    )
    for doubt in implausible_boxes(split.boxes, split.labels, split.sizes[split.owner], split.class_names):
        find(doubt.kind, split.name, [doubt.note], lambda note: FaultPlace(note=note))
    _check_pairs(split, findings)
    counts = np.bincount(split.labels[split.is_object()], minlength=len(split.class_names))
    names = [name for name, count in zip(split.class_names, counts) if not count]
    find("unused category", split.name, names, lambda name: FaultPlace(note=repr(name)))
    empty = images_without_objects(split)
    find("image without objects", split.name, empty, split.image_place)
    trainable = len(split.sizes) - (0 if keep_empty else len(empty))
    if not split.class_names or not trainable:
        find("no images", split.name, [split.annotations], lambda path: FaultPlace(str(path)))


def images_without_objects(split: CheckedSplit) -> np.ndarray:
    """The indices of those images."""
    counts = np.bincount(split.owner[split.is_object()], minlength=len(split.sizes))
    return np.flatnonzero(counts == 0)


def _check_pairs(split: CheckedSplit, findings: Findings) -> None:
    first, second = _pairs(split)
    alike = split.labels[first] == split.labels[second]
    for kind, chosen in (("duplicate box", alike), ("box of two classes", ~alike)):
        later, index = np.unique(second[chosen], return_index=True)  # each box is found once
        twin = dict(zip(later.tolist(), first[chosen][index].tolist()))
        findings.add(kind, split.name, later.tolist(), lambda row, twin=twin: _twins(split, row, twin[row]))


def _twins(split: CheckedSplit, row: int, twin: int) -> FaultPlace:
    ids, names = split.annotation_ids, [split.class_names[split.labels[i]] for i in (row, twin)]
    return split.box_place(row, note=f"{names[0]}, like annotation {ids[twin]}, {names[1]}")


def _pairs(split: CheckedSplit) -> tuple[np.ndarray, np.ndarray]:
    """Rows (p,), (p,), the earlier first, of the objects of one image whose IoU is at least SAME.

    Sorted by image and area, such boxes lie close together: those of equal IoU have areas within that ratio.
    """
    rows = np.flatnonzero(split.is_object())
    boxes, owner = split.clipped_boxes(), split.owner
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    rows = rows[np.lexsort((area[rows], owner[rows]))]
    found, at, step = [], np.arange(len(rows)), 0
    while len(at):
        step += 1
        at = at[at + step < len(rows)]
        a, b = rows[at], rows[at + step]
        near = (owner[a] == owner[b]) & (area[a] >= SAME * area[b])
        at, a, b = at[near], a[near], b[near]  # sorted by area: later boxes are larger still
        same = _iou(boxes[a], boxes[b]) >= SAME
        found.append(np.sort(np.stack([a[same], b[same]]), axis=0))
    first, second = np.concatenate([np.zeros((2, 0), dtype=np.int64), *found], axis=1)
    return first, second


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes (p, 4) with boxes (p, 4), row by row."""
    side = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared = side.clip(min=0).prod(axis=1)
    return shared / ((a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - shared)


def _xywh(split: CheckedSplit, row: int) -> str:
    x1, y1, x2, y2 = split.boxes[row]
    return f"[{x1:g}, {y1:g}, {x2 - x1:g}, {y2 - y1:g}]"


def _size(split: CheckedSplit, row: int) -> str:
    height, width = split.sizes[split.owner[row]]
    return f"{width} x {height}"
