"""Outlines and keypoints of a COCO file, which are read only for the fields of a target that a model asks for.

`segmentation` is a list of polygons [x1, y1, x2, y2, ...], or run lengths {"size": [height, width], "counts": list or
compressed string} of the size of the image. An object must have one; a crowd region without one has its box. `keypoints`
are x, y, visibility (0 not labelled, 1 hidden, 2 visible) of each name in `keypoints` of the category; an annotation may
lack them. `skeleton` of a category lists pairs of keypoints, numbered from 1.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from detector.coco_format import is_name
from detector.data.coco_rules import ABSENT, Rule
from detector.records.keypoints import Pose
from detector.records.outlines import Outlines
from detector.records.raster import runs_of_counts

LIMIT = 1e9  # of coordinates, as of boxes
PIXELS = 2**31 - 1  # of run lengths
OUTLINE_RULE = 'it must be polygons [[x1, y1, x2, y2, ...], ...] or run lengths {"size", "counts"} that fill their size'
KEYPOINTS_RULE = "it must be x, y and 0, 1 or 2 for each keypoint that its category names"


class Collected:
    """Stands for a valid outline, which has its place among all."""

    __slots__ = ("place", "size")

    def __init__(self, place: int, size: tuple[int, int] | None) -> None:
        self.place, self.size = place, size  # (h, w) of run lengths

    def __str__(self) -> str:
        return "polygons" if self.size is None else f"run lengths of the size {list(self.size)}"


class OutlineCollector:
    """Valid outlines in flat arrays: kept as Python's lists, those of a large file would take gigabytes."""

    def __init__(self) -> None:
        self.numbers, self.part_ends, self.object_ends = array("d"), array("q", [0]), array("q", [0])
        self.runs, self.run_ends = array("i"), array("q", [0])

    def __call__(self, entry: dict[str, Any]) -> dict[str, Any]:
        """The entry with a valid `segmentation` moved into the arrays."""
        value = entry.get("segmentation")
        size = None
        if isinstance(value, list) and value and all(map(is_polygon, value)):
            for part in value:
                self.numbers.extend(part)
                self.part_ends.append(len(self.numbers) // 2)
        elif isinstance(value, dict) and (found := valid_runs(value)) is not None:
            self.runs.extend(found.tolist())
            size = tuple(value["size"])
        else:
            return entry
        entry["segmentation"] = Collected(len(self.object_ends) - 1, size)
        self.object_ends.append(len(self.part_ends) - 1)
        self.run_ends.append(len(self.runs))
        return entry

    def add_boxes(self, xywh: np.ndarray) -> range:
        """Boxes (n, 4) as polygons; returns their places."""
        first = len(self.object_ends) - 1
        for x, y, w, h in xywh.tolist():
            self({"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]})
        return range(first, len(self.object_ends) - 1)

    def outlines(self, places: np.ndarray, sizes: np.ndarray) -> Outlines:
        """Those at the places (m,), empty where that is -1, in images of sizes (m, 2)."""
        empty = len(self.object_ends) - 1
        self.object_ends.append(self.object_ends[-1])
        self.run_ends.append(self.run_ends[-1])
        made = Outlines(
            points=_tensor(self.numbers, torch.float64).view(-1, 2),
            part_ends=_tensor(self.part_ends, torch.int64),
            object_ends=_tensor(self.object_ends, torch.int64),
            runs=_tensor(self.runs, torch.int32),
            run_ends=_tensor(self.run_ends, torch.int64),
            sizes=torch.zeros(empty + 1, 2, dtype=torch.int32),
        )
        chosen = made[torch.from_numpy(np.where(places < 0, empty, places))]
        return replace(chosen, sizes=torch.from_numpy(sizes.astype(np.int32)))


def _tensor(values: array, dtype: torch.dtype) -> torch.Tensor:
    """The same memory; torch takes none of no length."""
    return torch.frombuffer(values, dtype=dtype) if values else torch.zeros(0, dtype=dtype)


def is_polygon(value: Any) -> bool:
    """Whether this is a list of an even number of finite numbers."""
    try:
        return (
            type(value) is list
            and len(value) % 2 == 0
            and set(map(type, value)) <= {int, float}
            and all(map(math.isfinite, value))
            and (not value or (min(value) > -LIMIT and max(value) < LIMIT))
        )
    except OverflowError:  # an integer beyond any float
        return False


def valid_runs(value: dict[str, Any]) -> np.ndarray | None:
    """The run lengths of a `segmentation`; None unless they fill its size."""
    size, counts = value.get("size"), value.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        return None
    pixels = size[0] * size[1]
    if not isinstance(counts, str) and not (
        isinstance(counts, list) and all(type(run) is int and 0 <= run <= pixels for run in counts)
    ):
        return None
    try:
        runs = runs_of_counts(counts)
    except ValueError:
        return None
    filled = pixels <= PIXELS and (runs >= 0).all() and (runs <= pixels).all() and runs.sum() == pixels
    return runs if filled else None


def is_collected(value: Any) -> bool:
    """Whether an outline was valid, or is absent."""
    return isinstance(value, Collected) or value is ABSENT or value == []


def is_keypoints(value: Any) -> bool:
    """Whether this is a flat list of x, y, visibility, or absent."""
    if value is ABSENT:
        return True
    numbers = (
        type(value) is list and len(value) % 3 == 0 and all(type(x) in (int, float) and abs(x) < LIMIT for x in value)
    )
    return numbers and all(v in (0, 1, 2) for v in value[2::3])


def are_names(value: Any) -> bool:
    """Whether this is a list of names, each once, or absent."""
    return value is ABSENT or (isinstance(value, list) and all(map(is_name, value)) and len(set(value)) == len(value))


def are_pairs(value: Any) -> bool:
    """Whether this is a list of pairs of integers from 1, or absent."""
    return value is ABSENT or (
        isinstance(value, list)
        and all(isinstance(p, list) and len(p) == 2 and all(type(j) is int and j > 0 for j in p) for p in value)
    )


OUTLINE_RULES = (
    Rule("annotations", "segmentation", is_collected, OUTLINE_RULE, "invalid outline", default=ABSENT),
)  # fmt: skip
KEYPOINT_RULES = (
    Rule("categories", "keypoints", are_names, "it must be a list of different names", "invalid keypoints", ABSENT),
    Rule("categories", "skeleton", are_pairs, "it must be a list of pairs of numbers from 1", "invalid keypoints", ABSENT),
    Rule("annotations", "keypoints", is_keypoints, KEYPOINTS_RULE, "invalid keypoints", default=ABSENT),
)  # fmt: skip


class Shapes:
    """What is read of outlines and keypoints for the given fields of a target."""

    def __init__(self, fields: Collection[str]) -> None:
        self.outlines = OutlineCollector() if {"masks", "outlines"} & set(fields) else None
        self.keypoints = "keypoints" in fields
        self.rules = (*(OUTLINE_RULES if self.outlines else ()), *(KEYPOINT_RULES if self.keypoints else ()))

    @property
    def collect(self) -> Callable[[dict[str, Any]], Any] | None:
        """What is called with every object of the file while it is parsed."""
        return self.outlines

    def check(self, images: Any, categories: Any, annotations: Any) -> None:
        """Reject the annotations whose shapes do not fit their image or category; all three are sections of the file."""
        if self.outlines is not None:
            values, valid = annotations.columns["segmentation"], annotations.valid["segmentation"]
            none = np.array([not isinstance(value, Collected) for value in values], dtype=bool)
            lacking = none & valid & (annotations.integers("iscrowd") == 0) & annotations.valid["iscrowd"]
            message = "masks are learnt or pasted, so every object needs an outline"
            annotations.reject(lacking, "segmentation", message, "no outline")
            size_of = _by_id(images, zip(images.integers("height").tolist(), images.integers("width").tolist()))
            owners = annotations.columns["image_id"]
            other = [
                isinstance(value, Collected)
                and value.size is not None
                and ok
                and value.size != size_of.get(owner, value.size)
                for value, owner, ok in zip(values, owners, annotations.valid["image_id"])
            ]
            message = "run lengths must have the size of their image, [height, width]"
            annotations.reject(np.array(other, dtype=bool), "segmentation", message, "invalid outline")
        if self.keypoints:
            counts = _by_id(categories, (len(pose.names) for pose in _poses(categories)))
            pairs = zip(
                annotations.columns["keypoints"], annotations.columns["category_id"], annotations.valid["category_id"]
            )
            wrong = [
                ok and isinstance(value, list) and len(value) not in (0, 3 * counts.get(category, len(value) // 3))
                for value, category, ok in pairs
            ]
            wrong = np.array(wrong, dtype=bool) & annotations.valid["keypoints"]
            annotations.reject(wrong, "keypoints", KEYPOINTS_RULE, "invalid keypoints")

    def flat(
        self, annotations: Any, categories: Any, rows: np.ndarray, category_rows: np.ndarray, sizes: np.ndarray,
        xywh: np.ndarray,
    ) -> dict[str, Any]:  # fmt: skip
        """Fields of a CocoFile for rows (m,) of the annotations, in images of sizes (m, 2) and with boxes (m, 4)."""
        found: dict[str, Any] = {}
        if self.outlines is not None:
            values = annotations.columns["segmentation"]
            places = np.array([getattr(values[row], "place", -1) for row in rows], dtype=np.int64)
            places[~annotations.valid["segmentation"][rows]] = -1
            bare = (places < 0) & (annotations.integers("iscrowd")[rows] != 0)
            places[bare] = self.outlines.add_boxes(xywh[bare])
            found["outlines"] = self.outlines.outlines(places, sizes)
        if self.keypoints:
            poses = _poses(categories)
            found["poses"] = [poses[row] for row in category_rows]
            values = annotations.columns["keypoints"]
            keypoints = np.zeros((len(rows), max((len(pose.names) for pose in poses), default=0), 3))
            for i, row in enumerate(rows):
                if isinstance(values[row], list) and annotations.valid["keypoints"][row]:
                    keypoints[i, : len(values[row]) // 3] = np.reshape(values[row], (-1, 3))
            found["keypoints"] = keypoints
        return found


def _by_id(section: Any, values: Iterable[Any]) -> dict[int, Any]:
    """The value of each entry by its id, of those that are valid."""
    return {i: value for i, value, ok in zip(section.columns["id"], values, section.sound) if ok}


def _poses(categories: Any) -> list[Pose]:
    """Of every category; none where its names are invalid. Lines to keypoints that there are not are left out."""
    poses = []
    columns = (categories.columns[key] for key in ("keypoints", "skeleton"))
    for names, pairs, *ok in zip(*columns, categories.valid["keypoints"], categories.valid["skeleton"]):
        known: Sequence[str] = names if ok[0] and names is not ABSENT else []
        lines = pairs if ok[1] and pairs is not ABSENT else []
        poses.append(Pose(list(known), [(a - 1, b - 1) for a, b in lines if max(a, b) <= len(known)]))
    return poses
