"""One reader of COCO annotation files for training, checking and evaluation: one set of rules, two policies."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.coco_json import read_document
from detector.data.coco_rules import ABSENT, HARMLESS, REFERENCES, REMEDIES, RULES, SECTIONS, UNIQUE, Rule, shown
from detector.data.coco_shapes import Shapes
from detector.errors import DataError
from detector.records.keypoints import Pose
from detector.records.outlines import Outlines


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
    outlines: Outlines | None = None
    """Of the m annotations, if they were asked for; a crowd region without one has its box."""
    keypoints: np.ndarray | None = None
    """(m, J, 3) float64 x, y, visibility if they were asked for; zeros beyond those of its category."""
    poses: list[Pose] | None = None
    """Names and lines of the keypoints of each of the c categories."""


def stop_at_fault(faults: EntryFaults) -> None:
    """The policy of training and evaluation: raise DataError with file, entry, id, key and value of the first fault."""
    if faults.kind in HARMLESS:
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


def read_coco_file(
    path: str | Path,
    report: Callable[[EntryFaults], None] = stop_at_fault,
    fields: Collection[str] = (),
    *,
    harmless: Collection[str] = HARMLESS,
) -> CocoFile:
    """Read a COCO file by RULES, UNIQUE and REFERENCES, and the shapes that `fields` of a target need (coco_shapes.py).

    `report` is the policy: it is called with each group of faults, and raises to stop or returns to go on. Faulty entries
    are left out unless the fault is `harmless`, and so are the annotations of an image or category that is left out.
    Raises DataError for a file that cannot be read, that is not JSON, or that lacks a section.
    """
    path, shapes = Path(path), Shapes(fields)
    document = read_document(path, shapes.collect)
    sections = {name: _Section(path, document, name, report, harmless) for name in SECTIONS}
    for name in ("images", "categories"):
        if not document[name]:
            raise DataError(f"{path}: `{name}` is empty; a COCO file lists its images and its categories")
    for name in ("categories", "images", "annotations"):
        section = sections[name]
        section.check([rule for rule in (*RULES, *shapes.rules) if rule.section == name])
        for unique_section, key, message, kind in UNIQUE:
            if unique_section == name:
                section.reject(section.repeated(key), key, message, kind)
    images, categories, annotations = (sections[name] for name in ("images", "categories", "annotations"))
    for key, target, message, kind in REFERENCES:
        known = sections[target].integers("id")[sections[target].valid["id"]]  # those of faulty entries, too
        unknown = ~np.isin(annotations.integers(key), known)
        annotations.reject(annotations.valid[key] & unknown, key, message, kind)
    return _flat(path, images, categories, annotations, shapes)


class _Section:
    """One list of a COCO file, read column by column."""

    def __init__(
        self, path: Path, document: Any, name: str, report: Callable[[EntryFaults], None], harmless: Collection[str]
    ) -> None:
        entries = document.get(name) if isinstance(document, dict) else None
        if not isinstance(entries, list):
            wanted = "a COCO file is an object with the lists `images`, `annotations` and `categories`"
            raise DataError(f"{path}: `{name}` is missing or is not a list; {wanted}")
        self.path, self.name, self.report, self.harmless = path, name, report, harmless
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
            if kind not in self.harmless:
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


def _flat(path: Path, images: _Section, categories: _Section, annotations: _Section, shapes: Shapes) -> CocoFile:
    """The sound entries of all sections, once the shapes of the annotations fit their images and categories."""
    shapes.check(images, categories, annotations)
    sound_images, sound_categories = np.flatnonzero(images.sound), np.flatnonzero(categories.sound)
    image_ids, category_ids = images.integers("id")[sound_images], categories.integers("id")[sound_categories]
    image_of, category_of = annotations.integers("image_id"), annotations.integers("category_id")
    rows = np.flatnonzero(annotations.sound & np.isin(image_of, image_ids) & np.isin(category_of, category_ids))
    boxes, areas = annotations.columns["bbox"], annotations.columns["area"]
    if len(rows) < len(boxes):
        boxes, areas = [boxes[row] for row in rows], [areas[row] for row in rows]
    sizes = np.stack([images.integers(key)[sound_images] for key in ("height", "width")], axis=1)
    owners = _positions(image_ids, image_of[rows])
    xywh = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    areas = np.fromiter((np.nan if area is ABSENT else area for area in areas), np.float64, len(areas))
    return CocoFile(
        path=path,
        image_ids=image_ids,
        file_names=[images.columns["file_name"][row] for row in sound_images],
        sizes=sizes,
        category_ids=category_ids,
        category_names=[categories.columns["name"][row] for row in sound_categories],
        annotation_ids=annotations.integers("id")[rows],
        image_rows=owners,
        category_rows=_positions(category_ids, category_of[rows]),
        xywh=xywh,
        areas=np.where(np.isnan(areas), xywh[:, 2] * xywh[:, 3], areas),
        crowd=annotations.integers("iscrowd")[rows] != 0,
        **shapes.flat(annotations, categories, rows, sound_categories, sizes[owners], xywh),
    )


def _positions(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The index in `ids`, which are unique, of each of the wanted ids, which are all there."""
    order = np.argsort(ids)
    return order[np.searchsorted(ids[order], wanted)]
