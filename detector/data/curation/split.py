"""Division of one COCO file into several, by share and class; groups of images stay together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detector.data.curation.stratify import EMPTY, IMAGES, Counts, stratify
from detector.data.curation.whole_file import WholeFile
from detector.errors import DataError

CLASSES = 100  # shown in a table
NAMES = 20  # shown in a line


@dataclass(frozen=True)
class Division:
    """Which split each image of a file belongs to."""

    whole: WholeFile
    shares: Mapping[str, float]
    """Split -> the share that was asked for; they sum to 1."""
    split_of: np.ndarray
    """(n,) index of each image's split."""

    def document(self, split: str) -> dict[str, Any]:
        """The document with the images of one split, and everything else as it was."""
        document, chosen = self.whole.document, self.split_of == list(self.shares).index(split)
        rows = np.flatnonzero(chosen[self.whole.coco.image_rows])
        return document | {
            "images": [document["images"][row] for row in np.flatnonzero(chosen)],
            "annotations": [document["annotations"][row] for row in rows],
        }


def divide(whole: WholeFile, groups: Sequence[Sequence[int]], shares: Mapping[str, float], seed: int) -> Division:
    """Divide the images by groups of rows. Raises DataError where a split would be empty.

    The division depends on image ids, classes and groups, not on the order of the entries in the file.
    """
    ids = whole.coco.image_ids
    groups = sorted(groups, key=lambda rows: min(ids[rows]))
    counts = _image_counts(whole)
    units = [_sum([counts[row] for row in rows]) for rows in groups]
    split_of = np.empty(len(ids), dtype=np.int64)
    for rows, split in zip(groups, stratify(units, list(shares.values()), seed)):
        split_of[list(rows)] = split
    for index, (name, share) in enumerate(shares.items()):
        if not (split_of == index).any():
            raise DataError(
                f"{whole.coco.path}: {len(ids)} images in {len(groups)} groups: none is left for {name}, a share of {share:g}; "
                f"give it a larger share, or make smaller groups"
            )
    return Division(whole, shares, split_of)


def _image_counts(whole: WholeFile) -> list[Counts]:
    """How many objects of each label an image has."""
    coco, objects = whole.coco, whole.is_object()
    label = np.argsort(whole.label_order())  # (c,) of each category row
    counts: list[dict[int, int]] = [{} for _ in coco.image_ids]
    for row, kind in zip(coco.image_rows[objects].tolist(), label[coco.category_rows[objects]].tolist()):
        counts[row][kind] = counts[row].get(kind, 0) + 1
    return [{IMAGES: 1} | (own or {EMPTY: 1}) for own in counts]


def _sum(counts: Sequence[Counts]) -> Counts:
    total: dict[int, int] = {}
    for one in counts:
        for kind, count in one.items():
            total[kind] = total.get(kind, 0) + count
    return total


def share_rows(division: Division) -> list[list[str]]:
    """The rows of a table: what there is of each kind, and for each split count, share and deviation in points."""
    rows = [["", "all", *(cell for name in division.shares for cell in (name, "share", "off by"))]]
    kinds, more = _kinds(division.whole)
    for name, weights in kinds:
        total = int(weights.sum())
        parts = np.bincount(division.split_of, weights, len(division.shares))
        row = [name, str(total)]
        for part, share in zip(parts.tolist(), division.shares.values()):
            exact = 100 * part / total if total else 0.0
            row += [str(int(part)), *((f"{exact:.1f} %", f"{exact - 100 * share:+.1f}") if total else ("-", "-"))]
        rows.append(row)
    return rows + ([[f"... {more} rarer classes", *[""] * (len(rows[0]) - 1)]] if more else [])


def _kinds(whole: WholeFile) -> tuple[list[tuple[str, np.ndarray]], int]:
    """What a table counts: its name, and how much of it each image (n,) has; and how many classes are left out."""
    coco, objects, n = whole.coco, whole.is_object(), len(whole.coco.image_ids)
    per_image = np.bincount(coco.image_rows[objects], minlength=n)
    classes = whole.label_order().tolist()
    frequency = np.bincount(coco.category_rows[objects], minlength=len(classes))
    classes = sorted(classes, key=lambda row: -frequency[row])  # stable: of equals, the lower id first
    kinds = [
        ("images", np.ones(n)),
        ("images without objects", per_image == 0),
        ("objects", per_image),
        ("crowd regions", np.bincount(coco.image_rows[coco.crowd], minlength=n)),
    ]
    for row in classes[:CLASSES]:
        own = objects & (coco.category_rows == row)
        kinds.append((coco.category_names[row], np.bincount(coco.image_rows[own], minlength=n)))
    return kinds, len(classes[CLASSES:])


def rare_class_lines(division: Division) -> list[str]:
    """The classes that cannot be in every split, or are not."""
    coco, objects = division.whole.coco, division.whole.is_object()
    names, shares = np.array(coco.category_names, dtype=object), list(division.shares)
    n = len(coco.image_ids)
    pairs = np.unique(coco.category_rows[objects] * n + coco.image_rows[objects])  # (p,) class with image
    kinds, rows = pairs // n, pairs % n
    images = np.bincount(kinds, minlength=len(names))
    lines = [_named("have no objects", names[images == 0]), _named("have a single image", names[images == 1])]
    for index, split in enumerate(shares):
        here = np.bincount(kinds[division.split_of[rows] == index], minlength=len(names))
        lines.append(_named(f"have several images, but none in {split}", names[(images > 1) & (here == 0)]))
    return [line for line in lines if line]


def _named(what: str, names: np.ndarray) -> str:
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return f"{len(names)} classes {what}: {', '.join(sorted(names)[:NAMES])}{more}" if len(names) else ""
