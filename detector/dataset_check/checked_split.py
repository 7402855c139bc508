"""The valid entries of one split's COCO file; all faults of the file go to the findings."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.box_arrays import clip_to_images, corners, have_area
from detector.data.coco_reader import CocoFile, EntryFaults, read_coco_file
from detector.data.coco_rules import HARMLESS, shown
from detector.dataset_check.findings import UNUSED_OUTLINE, FaultPlace, Findings, identity, one_line
from detector.records.keypoints import Pose
from detector.records.outlines import Outlines

ID_KEYS = {
    "images": ("id", None),
    "annotations": ("image_id", "id"),
    "categories": (None, None),
}  # of image, annotation


@dataclass
class CheckedSplit:
    """The valid entries of a COCO file: n images, m annotations of chosen classes, K classes."""

    name: str
    annotations: Path
    folder: Path | None
    """Image folder; None if images are not checked."""
    class_names: list[str]
    """By ascending id, those of data.classes alone."""
    category_ids: list[int]
    file_names: list[str]
    image_ids: np.ndarray
    """(n,)."""
    sizes: np.ndarray
    """(n, 2), height and width."""
    annotation_ids: np.ndarray
    """(m,)."""
    owner: np.ndarray
    """(m,) index of the image."""
    labels: np.ndarray
    """(m,) index of the class."""
    boxes: np.ndarray
    """(m, 4) float64 corners as in the file."""
    crowd: np.ndarray
    """(m,) bool."""
    areas: np.ndarray
    """(m,) `area` of the file, or that of the box."""
    outlines: Outlines
    """(m), empty for those without a valid one."""
    keypoints: np.ndarray
    """(m, J, 3) x, y, visibility, zeros for those without valid ones."""
    poses: list[Pose]
    """What they mean, by class."""

    def image_place(self, image: int, **more: Any) -> FaultPlace:
        """The place of an image."""
        return FaultPlace(self.file_names[image], int(self.image_ids[image]), **more)

    def box_place(self, row: int, **more: Any) -> FaultPlace:
        """The place of an annotation."""
        return self.image_place(self.owner[row], annotation_id=int(self.annotation_ids[row]), **more)

    def clipped_boxes(self) -> np.ndarray:
        """The boxes (m, 4) float64, clipped to their images."""
        return clip_to_images(self.boxes, self.sizes[self.owner])

    def objects(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What training learns: boxes (B, 4) clipped, labels (B,), height and width of each one's image (B, 2)."""
        rows = np.flatnonzero(self.is_object())
        return self.clipped_boxes()[rows], self.labels[rows], self.sizes[self.owner[rows]]

    def is_object(self) -> np.ndarray:
        """(m,) bool: training learns it; it is no crowd region and has an area."""
        return ~self.crowd & have_area(self.clipped_boxes())


def read_split(
    name: str, annotations: Path, folder: Path | None, classes: list[str] | None, findings: Findings,
    fields: Collection[str] = (),
) -> CheckedSplit:  # fmt: skip
    """Read a split and add the faults of its entries to `findings`. Raises DataError where the file is no COCO file.

    `fields` are those of a target that the model reads. Outlines are read whether it does or not; then none must be there.
    """
    unused = set() if {"masks", "outlines"} & set(fields) else {"invalid outline", "no outline"}
    unread = set() if "keypoints" in fields else {"invalid keypoints"}  # for pictures alone

    def collect(faults: EntryFaults) -> None:
        if faults.kind in unread:
            return
        kind = UNUSED_OUTLINE if faults.kind in unused else faults.kind
        if not (faults.kind in unused and faults.kind == "no outline"):
            findings.add(kind, name, range(len(faults)), lambda i: _entry_place(faults, i))

    read = {*fields, "outlines", "keypoints"}
    coco = read_coco_file(annotations, collect, read, harmless=HARMLESS | unused | unread)
    assert coco.outlines is not None and coco.keypoints is not None and coco.poses is not None  # they were asked for
    chosen = _chosen_categories(coco, name, classes, findings)
    labels = np.full(len(coco.category_ids), -1, dtype=np.int64)
    labels[chosen] = np.arange(len(chosen))
    labels = labels[coco.category_rows]
    rows = np.flatnonzero(labels >= 0)
    return CheckedSplit(
        name=name,
        annotations=annotations,
        folder=folder,
        class_names=[coco.category_names[row] for row in chosen],
        category_ids=coco.category_ids[chosen].tolist(),
        file_names=coco.file_names,
        image_ids=coco.image_ids,
        sizes=coco.sizes,
        annotation_ids=coco.annotation_ids[rows],
        owner=coco.image_rows[rows],
        labels=labels[rows],
        boxes=corners(coco.xywh[rows]),
        crowd=coco.crowd[rows],
        areas=coco.areas[rows],
        outlines=coco.outlines[rows],
        keypoints=coco.keypoints[rows],
        poses=[coco.poses[row] for row in chosen],
    )


def _entry_place(faults: EntryFaults, i: int) -> FaultPlace:
    """The place of the i-th faulty entry."""
    entry, where = faults.entries[i], faults.where(i)
    if faults.key is None:
        return FaultPlace(key=where, note=f"is {shown(entry)}; {faults.message}")
    image_key, annotation_key = ID_KEYS[faults.section]
    value = f"is {shown(entry[faults.key])}" if faults.key in entry else "is missing"
    name = entry.get("file_name")
    return FaultPlace(
        one_line(name) if isinstance(name, str) else None,
        identity(entry.get(image_key)),
        identity(entry.get(annotation_key)),
        where,
        f"{value}; {faults.message}",
    )


def _chosen_categories(coco: CocoFile, split: str, classes: list[str] | None, findings: Findings) -> np.ndarray:
    """Rows of the chosen categories by ascending id."""
    names = coco.category_names
    absent = [name for name in classes or [] if name not in names]
    findings.add("unknown class", split, absent, lambda name: FaultPlace(key="data.classes", note=one_line(name)))
    rows = [row for row in np.argsort(coco.category_ids, kind="stable") if classes is None or names[row] in classes]
    pairs = _similar_names([names[row] for row in rows])
    findings.add("alike categories", split, pairs, lambda pair: FaultPlace(note=pair))
    return np.array(rows, dtype=np.int64)


def _similar_names(names: list[str]) -> list[str]:
    """The pairs of names that differ only in case or blanks."""
    first: dict[str, str] = {}
    return [
        f"{first[key]!r} and {name!r}" for name in names if first.setdefault(key := normalized_name(name), name) != name
    ]


def normalized_name(name: str) -> str:
    """A name without case and blanks."""
    return "".join(name.casefold().split())
