"""One reader of COCO annotation files for training, checking and evaluation: one set of rules, two policies.

RULES states for each key which values are valid. `images` need `id`, `file_name`, `width` and `height`; `categories` need
`id` and `name`; `annotations` need `id`, `image_id`, `category_id` and `bbox`. All ids are integers. Ids of images and
categories and names of categories are unique; ids of annotations may repeat, because nothing here looks them up.
`iscrowd` may be absent (0) and so may `area` (width x height of the box). Other keys are ignored.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detector.coco_format import is_box, is_name, stays_inside
from detector.data.coco_json import read_document
from detector.errors import DataError

SECTIONS = ("images", "annotations", "categories")
LARGEST_ID = 2**53  # integers up to here are exact as floating-point numbers, too
ABSENT = object()  # stands for an optional key that an entry lacks
REMEDIES = {  # kind of fault -> how to fix it
    "not an entry": "make it an object with the keys that COCO's format names, or remove it",
    "invalid value": "correct the value, or remove the entry",
    "invalid box": "correct or remove the box: [x, y, width, height], finite and not negative in size",
    "outside folder": "put the file into the image folder and name it relative to that",
    "repeated id": "give each entry an id of its own",
    "repeated name": "merge the two categories or rename one",
    "repeated annotation id": "give each annotation an id of its own: other COCO tools would lose one of the two",
    "unknown image": "add the image or remove the annotation",
    "unknown category": "add the category or remove the annotation",
}


def is_integer(value: Any) -> bool:
    """Whether this is an integer that int64 and float64 hold exactly; `true` and `false` are none."""
    return type(value) is int and -LARGEST_ID <= value <= LARGEST_ID


def is_flag(value: Any) -> bool:
    """Whether this is 0, 1, `false` or `true`."""
    return isinstance(value, int) and value in (0, 1)


def is_side(value: Any) -> bool:
    """Whether this can be the height or width of an image."""
    return is_integer(value) and value >= 1


def is_area(value: Any) -> bool:
    """Whether this is a finite number from 0, or absent. The comparison is exact for integers of any length."""
    return value is ABSENT or (type(value) in (int, float) and 0 <= value <= sys.float_info.max)


def is_ordered_box(value: list[float]) -> bool:
    """Whether width and height of [x, y, width, height] are not negative."""
    return value[2] >= 0 and value[3] >= 0


@dataclass(frozen=True)
class Rule:
    """What the values of one key must be."""

    section: str
    key: str
    is_valid: Callable[[Any], bool]
    message: str
    kind: str = "invalid value"
    """Key of REMEDIES."""
    default: Any = None
    """Value of entries without the key; None makes the key required."""


INTEGER = "it must be an integer (no quotes, no decimal point, at most 2^53)"
SIDE = "it must be an integer of at least 1"
RULES = (  # in the order in which they are checked; a later rule for the same key sees only values that passed
    Rule("categories", "id", is_integer, INTEGER),
    Rule("categories", "name", is_name, "it must be a name without control characters"),
    Rule("images", "id", is_integer, INTEGER),
    Rule("images", "file_name", is_name, "it must be a path without control characters"),
    Rule("images", "file_name", stays_inside, "it must be a path inside the image folder", "outside folder"),
    Rule("images", "height", is_side, SIDE),
    Rule("images", "width", is_side, SIDE),
    Rule("annotations", "id", is_integer, INTEGER),
    Rule("annotations", "image_id", is_integer, INTEGER),
    Rule("annotations", "category_id", is_integer, INTEGER),
    Rule("annotations", "iscrowd", is_flag, "it must be 0 or 1 (no quotes)", default=0),
    Rule("annotations", "bbox", is_box, "it must be four finite numbers [x, y, width, height]", "invalid box"),
    Rule("annotations", "bbox", is_ordered_box, "width and height must not be negative", "invalid box"),
    Rule("annotations", "area", is_area, "it must be a finite number, not negative", default=ABSENT),
)
UNIQUE = (  # section, key, message, kind
    ("categories", "id", "two categories share it", "repeated id"),
    ("categories", "name", "two categories share it", "repeated name"),
    ("images", "id", "two images share it", "repeated id"),
    ("annotations", "id", "two annotations share it", "repeated annotation id"),
)
HARMLESS = "repeated annotation id"  # reported, but the entry is kept and no policy stops at it
REFERENCES = (  # key of an annotation, the section whose ids it names, message, kind
    ("image_id", "images", "no such image", "unknown image"),
    ("category_id", "categories", "no such category", "unknown category"),
)


@dataclass(frozen=True)
class EntryFaults:
    """Entries of one section that break the same rule."""

    path: Path
    section: str
    kind: str
    key: str | None
    """None if the entry itself is at fault."""
    message: str
    entries: Sequence[Any]
    """The faulty entries."""
    rows: np.ndarray
    """Position of each in its section."""

    def where(self, i: int) -> str:
        """Section, position and key of the i-th faulty entry, such as images[3].id."""
        return f"{self.section}[{self.rows[i]}]" + (f".{self.key}" if self.key else "")

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class CocoFile:
    """The valid entries of a COCO file in flat arrays: n images, c categories, m annotations, in the file's order."""

    path: Path
    image_ids: np.ndarray
    """(n,) int64."""
    file_names: list[str]
    """n paths relative to the image folder."""
    sizes: np.ndarray
    """(n, 2) int64, height and width."""
    category_ids: np.ndarray
    """(c,) int64."""
    category_names: list[str]
    annotation_ids: np.ndarray
    """(m,) int64."""
    image_rows: np.ndarray
    """(m,) index of the image."""
    category_rows: np.ndarray
    """(m,) index of the category."""
    xywh: np.ndarray
    """(m, 4) float64 x, y, width, height as in the file."""
    areas: np.ndarray
    """(m,) float64; width x height where the file gives none."""
    crowd: np.ndarray
    """(m,) bool."""


def shown(value: Any) -> str:
    """A value as JSON, cut after 80 characters: "0" with its quotes, null, true."""
    return text if len(text := json.dumps(value, ensure_ascii=False)) <= 80 else text[:77] + "..."


def stop_at_fault(faults: EntryFaults) -> None:
    """The policy of training and evaluation: raise DataError with file, entry, id, key and value of the first fault."""
    if faults.kind == HARMLESS:
        return
    entry, more = faults.entries[0], len(faults) - 1
    if faults.key is None:
        found = f"{faults.where(0)} is {shown(entry)}"
    else:
        number = shown(entry["id"]) if "id" in entry else "missing"
        value = f"is {shown(entry[faults.key])}" if faults.key in entry else "is missing"
        found = f"{faults.section}[{faults.rows[0]}], id {number}: `{faults.key}` {value}"
    also = f" ({more} more like it); " if more else "; "
    raise DataError(f"{faults.path}: {found}; {faults.message}{also}{REMEDIES[faults.kind]}")


def read_coco_file(path: str | Path, report: Callable[[EntryFaults], None] = stop_at_fault) -> CocoFile:
    """Read a COCO file by RULES, UNIQUE and REFERENCES.

    `report` is the policy: it is called with each group of faults, and raises to stop or returns to go on. Faulty entries
    are left out, and so are the annotations of an image or category that is left out. Raises DataError for a file that
    cannot be read, that is not JSON, or that lacks a section.
    """
    path = Path(path)
    document = read_document(path)
    sections = {name: _Section(path, document, name, report) for name in SECTIONS}
    for name in ("images", "categories"):
        if not document[name]:
            raise DataError(f"{path}: `{name}` is empty; a COCO file lists its images and its categories")
    for name in ("categories", "images", "annotations"):
        section = sections[name]
        section.check([rule for rule in RULES if rule.section == name])
        for unique_section, key, message, kind in UNIQUE:
            if unique_section == name:
                section.reject(section.repeated(key), key, message, kind)
    images, categories, annotations = (sections[name] for name in ("images", "categories", "annotations"))
    for key, target, message, kind in REFERENCES:
        known = sections[target].integers("id")[sections[target].valid["id"]]  # those of faulty entries, too
        unknown = ~np.isin(annotations.integers(key), known)
        annotations.reject(annotations.valid[key] & unknown, key, message, kind)
    return _flat(path, images, categories, annotations)


class _Section:
    """One list of a COCO file, read column by column."""

    def __init__(self, path: Path, document: Any, name: str, report: Callable[[EntryFaults], None]) -> None:
        entries = document.get(name) if isinstance(document, dict) else None
        if not isinstance(entries, list):
            wanted = "a COCO file is an object with the lists `images`, `annotations` and `categories`"
            raise DataError(f"{path}: `{name}` is missing or is not a list; {wanted}")
        self.path, self.name, self.report = path, name, report
        self.entries, self.rows = entries, np.arange(len(entries))
        is_object = np.array([isinstance(entry, dict) for entry in entries], dtype=bool)
        if not is_object.all():
            self._report(~is_object, None, "it must be an object", "not an entry")
            self.entries = [entry for entry in entries if isinstance(entry, dict)]
            self.rows = np.flatnonzero(is_object)
        self.sound = np.ones(len(self.entries), dtype=bool)  # entries without a fault so far
        self.valid: dict[str, np.ndarray] = {}  # key -> entries whose value is valid by the rules so far
        self.columns: dict[str, list[Any]] = {}  # key -> values of all entries

    def check(self, rules: Iterable[Rule]) -> None:
        """Read the columns of these rules and reject the entries that break one."""
        for rule in rules:
            if rule.key not in self.columns:
                self.columns[rule.key] = [entry.get(rule.key, rule.default) for entry in self.entries]
                self.valid[rule.key] = np.ones(len(self.entries), dtype=bool)
            values, valid = self.columns[rule.key], self.valid[rule.key]
            if valid.all():
                bad = np.array([not rule.is_valid(value) for value in values], dtype=bool)
            else:
                bad = np.array([ok and not rule.is_valid(value) for ok, value in zip(valid, values)], dtype=bool)
            self.reject(bad, rule.key, rule.message, rule.kind)

    def reject(self, bad: np.ndarray, key: str, message: str, kind: str) -> None:
        """Report these entries, (entries,) bool, and count them as faulty."""
        if bad.any():
            self._report(bad, key, message, kind)
            if kind != HARMLESS:
                self.sound &= ~bad
            if not kind.startswith(("repeated", "unknown")):  # the value itself is valid, and can be referred to
                self.valid[key] &= ~bad

    def _report(self, bad: np.ndarray, key: str | None, message: str, kind: str) -> None:
        entries = [self.entries[row] for row in np.flatnonzero(bad)]
        self.report(EntryFaults(self.path, self.name, kind, key, message, entries, self.rows[bad]))

    def repeated(self, key: str) -> np.ndarray:
        """(entries,) bool: a valid value that an earlier entry has, too."""
        values = self.columns[key]
        if self.valid[key].all() and len(set(values)) == len(values):
            return np.zeros(len(values), dtype=bool)
        seen: set[Any] = set()
        pairs = zip(self.valid[key].tolist(), values)
        return np.array([ok and (value in seen or seen.add(value) is not None) for ok, value in pairs], dtype=bool)

    def integers(self, key: str) -> np.ndarray:
        """An integer column, int64 (entries,); 0 where the value is invalid."""
        values, valid = self.columns[key], self.valid[key]
        if valid.all():
            return np.array(values, dtype=np.int64)
        return np.array([value if ok else 0 for ok, value in zip(valid, values)], dtype=np.int64)


def _flat(path: Path, images: _Section, categories: _Section, annotations: _Section) -> CocoFile:
    """The sound entries of all sections."""
    sound_images, sound_categories = np.flatnonzero(images.sound), np.flatnonzero(categories.sound)
    image_ids, category_ids = images.integers("id")[sound_images], categories.integers("id")[sound_categories]
    image_of, category_of = annotations.integers("image_id"), annotations.integers("category_id")
    rows = np.flatnonzero(annotations.sound & np.isin(image_of, image_ids) & np.isin(category_of, category_ids))
    boxes, areas = annotations.columns["bbox"], annotations.columns["area"]
    if len(rows) < len(boxes):
        boxes, areas = [boxes[row] for row in rows], [areas[row] for row in rows]
    xywh = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    areas = np.fromiter((np.nan if area is ABSENT else area for area in areas), np.float64, len(areas))
    return CocoFile(
        path=path,
        image_ids=image_ids,
        file_names=[images.columns["file_name"][row] for row in sound_images],
        sizes=np.stack([images.integers(key)[sound_images] for key in ("height", "width")], axis=1),
        category_ids=category_ids,
        category_names=[categories.columns["name"][row] for row in sound_categories],
        annotation_ids=annotations.integers("id")[rows],
        image_rows=_positions(image_ids, image_of[rows]),
        category_rows=_positions(category_ids, category_of[rows]),
        xywh=xywh,
        areas=np.where(np.isnan(areas), xywh[:, 2] * xywh[:, 3], areas),
        crowd=annotations.integers("iscrowd")[rows] != 0,
    )


def _positions(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The index in `ids`, which are unique, of each of the wanted ids, which are all there."""
    order = np.argsort(ids)
    return order[np.searchsorted(ids[order], wanted)]
