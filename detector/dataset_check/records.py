"""A COCO file read entry by entry: what is wrong is found and left out, what is sound comes in flat arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detector.coco_format import is_box, stays_inside
from detector.data.coco_json import read_document
from detector.dataset_check.findings import Findings, Place, identity, short
from detector.errors import DataError

IDS = {"images": ("id", None), "annotations": ("image_id", "id"), "categories": (None, None)}


@dataclass
class Split:
    """The sound entries of a COCO file: n images, m annotations, K classes."""

    name: str
    annotations: Path
    folder: Path | None  # of the images; None if they are not to be looked at
    class_names: list[str]  # by ascending id, those of data.classes alone
    category_ids: list[int]
    file_names: list[str]
    image_ids: np.ndarray  # (n,)
    sizes: np.ndarray  # (n, 2) height and width
    annotation_ids: np.ndarray  # (m,)
    owner: np.ndarray  # (m,) index of the image
    labels: np.ndarray  # (m,) index of the class
    boxes: np.ndarray  # (m, 4) float64 corners as the file has them
    crowd: np.ndarray  # (m,) bool

    def place(self, image: int, **more: Any) -> Place:
        """An image of this split."""
        return Place(self.file_names[image], int(self.image_ids[image]), **more)

    def box_place(self, row: int, **more: Any) -> Place:
        """An annotation of this split."""
        return self.place(self.owner[row], annotation_id=int(self.annotation_ids[row]), **more)

    def inside(self) -> np.ndarray:
        """The boxes (m, 4) float64, clipped to their images."""
        return np.clip(self.boxes, 0, self.sizes[self.owner][:, [1, 0, 1, 0]])

    def objects(self) -> np.ndarray:
        """(m,) bool: what is trained on, no crowd region and of some area; as float32, like training."""
        inside = self.inside().astype(np.float32)
        return ~self.crowd & (inside[:, 2:] > inside[:, :2]).all(axis=1)


def read_split(
    name: str, annotations: Path, folder: Path | None, classes: list[str] | None, findings: Findings
) -> Split:
    """Raises DataError where the file is no COCO file at all; whatever is wrong with its entries goes to `findings`."""
    document = read_document(annotations)
    images, objects, categories = (
        Table(name, annotations, document, section, findings) for section in ("images", "annotations", "categories")
    )
    known, class_names, category_ids = _categories(categories, classes)
    every_image, pictures = _images(images)
    boxes = _annotations(objects, every_image, pictures["image_ids"], known, category_ids)
    return Split(name, annotations, folder, class_names, category_ids, **pictures, **boxes)


class Table:
    """One list of a COCO file, read column by column; `sound` says which entries had no fault so far."""

    def __init__(self, split: str, path: Path, document: Any, section: str, findings: Findings) -> None:
        entries = document.get(section) if isinstance(document, dict) else None
        if not isinstance(entries, list):
            wanted = "a COCO file is an object with the lists `images`, `annotations` and `categories`"
            raise DataError(f"{path}: `{section}` is missing or is not a list; {wanted}")
        self.split, self.section, self.findings = split, section, findings
        strange = [row for row, entry in enumerate(entries) if not isinstance(entry, dict)]
        findings.add("not an entry", split, strange, lambda i: Place(key=f"{section}[{i}]", note=short(entries[i])))
        self.rows = np.array([row for row, entry in enumerate(entries) if isinstance(entry, dict)], dtype=np.int64)
        self.entries = [entries[row] for row in self.rows] if strange else entries
        self.sound = np.ones(len(self.entries), dtype=bool)
        self.valid: dict[str, np.ndarray] = {}  # of each key that was read, which entries have a sound value

    def column(
        self, key: str, valid: Callable[[Any], bool], rule: str, *, default: Any = None, kind: str = "invalid value"
    ) -> list[Any]:
        """The values of one key, the invalid ones included; their entries are no longer sound."""
        values = [entry.get(key, default) for entry in self.entries]
        self.valid[key] = np.ones(len(values), dtype=bool)
        self.reject(np.array([not valid(value) for value in values], dtype=bool), key, kind, rule)
        return values

    def integers(self, key: str, *, least: int = -(2**53), default: int | None = None) -> np.ndarray:
        """The values of an integer key, int64; 0 where invalid."""

        def valid(value: Any) -> bool:
            return isinstance(value, int) and least <= value <= 2**53

        rule = "must be an integer" if least < 0 else f"must be an integer of at least {least}"
        return np.array([x if valid(x) else 0 for x in self.column(key, valid, rule, default=default)], dtype=np.int64)

    def reject(self, bad: np.ndarray, key: str, kind: str, rule: str = "") -> None:
        """Report these entries (bool, one each) and count them as sound no longer."""
        self.findings.add(kind, self.split, np.flatnonzero(bad), lambda row: self.place(row, key, rule))
        self.sound &= ~bad
        self.valid[key] &= ~bad

    def place(self, row: int, key: str, rule: str = "") -> Place:
        """A value of one entry."""
        entry, (image_key, annotation_key) = self.entries[row], IDS[self.section]
        value = f"is {short(entry[key])}" if key in entry else "is missing"
        name = entry.get("file_name")
        return Place(
            short(name) if isinstance(name, str) else None,
            identity(entry.get(image_key)),
            identity(entry.get(annotation_key)),
            f"{self.section}[{self.rows[row]}].{key}",
            f"{value}; {rule}" if rule else value,
        )

    def repeated(self, key: str, values: Iterable[Any]) -> np.ndarray:
        """Which entries have a sound value of this key that one before them has, too."""
        seen: set[Any] = set()
        pairs = zip(self.valid[key].tolist(), values)
        return np.array([sound and (x in seen or seen.add(x) is not None) for sound, x in pairs], dtype=bool)


def _categories(table: Table, classes: list[str] | None) -> tuple[np.ndarray, list[str], list[int]]:
    """All ids of the file, and of the chosen classes their names and ids, by ascending id."""
    ids = table.integers("id")
    names = table.column("name", lambda x: isinstance(x, str) and x != "", "must be a name")
    every = ids[table.valid["id"]]
    table.reject(table.repeated("id", ids.tolist()), "id", "repeated id")
    table.reject(table.repeated("name", names), "name", "repeated name")
    rows = [row for row in np.argsort(ids, kind="stable") if table.sound[row]]
    known = [str(names[row]) for row in rows]
    absent = [name for name in classes or [] if name not in known]
    table.findings.add("unknown class", table.split, absent, lambda name: Place(key="data.classes", note=short(name)))
    chosen = [row for row in rows if classes is None or names[row] in classes]
    table.findings.add(
        "alike categories", table.split, _alike([names[row] for row in chosen]), lambda pair: Place(note=pair)
    )
    return every, [names[row] for row in chosen], ids[chosen].tolist()


def _alike(names: list[str]) -> list[str]:
    """The pairs of names that only case or blanks tell apart."""
    first: dict[str, str] = {}
    return [f"{first[key]!r} and {name!r}" for name in names if first.setdefault(key := folded(name), name) != name]


def folded(name: str) -> str:
    """A name without case and blanks."""
    return "".join(name.casefold().split())


def _images(table: Table) -> tuple[np.ndarray, dict[str, Any]]:
    """All ids of the file, and the columns of the sound images."""
    ids = table.integers("id")
    names = table.column("file_name", lambda x: isinstance(x, str) and x != "", "must be a path")
    outside = np.array([isinstance(x, str) and x != "" and not stays_inside(x) for x in names], dtype=bool)
    table.reject(outside, "file_name", "outside folder")
    sizes = np.stack([table.integers("height", least=1), table.integers("width", least=1)], axis=1)
    every = ids[table.valid["id"]]
    table.reject(table.repeated("id", ids.tolist()), "id", "repeated id")
    sound = np.flatnonzero(table.sound)
    return every, {"file_names": [names[row] for row in sound], "image_ids": ids[sound], "sizes": sizes[sound]}


def _annotations(
    table: Table, every_image: np.ndarray, image_ids: np.ndarray, known: np.ndarray, category_ids: list[int]
) -> dict[str, np.ndarray]:
    """The columns of the sound annotations of sound images and chosen classes."""
    ids, image_of, category_of = table.integers("id"), table.integers("image_id"), table.integers("category_id")
    crowd = table.integers("iscrowd", default=0) != 0
    rule = "must be four finite numbers [x, y, width, height]"
    listed = table.column("bbox", is_box, rule, kind="invalid box")
    xywh = np.array([box if is_box(box) else (0, 0, 0, 0) for box in listed], dtype=np.float64).reshape(-1, 4)
    table.reject((xywh[:, 2:] < 0).any(axis=1), "bbox", "invalid box", "width and height must not be negative")
    table.reject(table.valid["image_id"] & ~np.isin(image_of, every_image), "image_id", "unknown image")
    table.reject(table.valid["category_id"] & ~np.isin(category_of, known), "category_id", "unknown category")
    again = np.flatnonzero(table.repeated("id", ids.tolist()))
    table.findings.add("repeated annotation id", table.split, again, lambda row: table.place(row, "id"))
    rows = np.flatnonzero(table.sound & np.isin(image_of, image_ids) & np.isin(category_of, category_ids))
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    return {
        "annotation_ids": ids[rows],
        "owner": _positions(image_ids, image_of[rows]),
        "labels": _positions(np.array(category_ids, dtype=np.int64), category_of[rows]),
        "boxes": boxes[rows],
        "crowd": crowd[rows],
    }


def _positions(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where in `ids` each of the wanted stands; all are there."""
    order = np.argsort(ids)
    return order[np.searchsorted(ids[order], wanted)]
