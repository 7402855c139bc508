"""A folder of images and a COCO file become a data set. COCO's xywh boxes and sparse category ids end here."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from detector.coco_format import is_box, is_name, join_within, stays_inside
from detector.data.coco_json import read_document
from detector.data.flat_strings import FlatStrings
from detector.data.image import MAX_PIXELS, ImageError, read_image
from detector.data.proposal_file import ProposalFile
from detector.errors import DataError
from detector.structures import Target

Transform = Callable[[Tensor, Target], tuple[Tensor, Target]]


class CocoDataset(Dataset):
    """Image, objects and image id of every entry of a COCO file.

    `classes` picks some of the file's categories by name. `class_names` are the names that the training split fixed:
    this file must have the same, with whatever ids. Without `keep_empty`, images without an object are left out.
    `proposals` is a file of them (detector/data/proposal_file.py), which then come with every image's objects.
    Whatever is wrong with the file is a `DataError` here, not in the middle of an epoch.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        *,
        classes: list[str] | None = None,
        class_names: list[str] | None = None,
        keep_empty: bool = True,
        max_pixels: int = MAX_PIXELS,
        transform: Transform | None = None,
        proposals: str | Path | None = None,
    ) -> None:
        self.folder, self.annotation_file = Path(images), Path(annotations)
        self.max_pixels, self.transform = max_pixels, transform
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: no such image folder (for {self.annotation_file}); correct the path")
        document = read_document(self.annotation_file)
        sections = (_Section(self.annotation_file, document, name) for name in ("images", "annotations", "categories"))
        pictures, objects, categories = sections
        self.class_names, self.category_ids = _classes(categories, classes, class_names)
        names, self.image_ids, self.sizes = _pictures(pictures)  # list, (n,), (n, 2) h, w
        owner, labels = _membership(objects, self.image_ids, categories.integers("id"), self.category_ids)
        boxes, crowd = _xyxy(objects), objects.integers("iscrowd", default=0) != 0
        chosen = labels >= 0
        kept = self._keep_objects(*(column[chosen] for column in (owner, boxes, labels, crowd)), keep_empty)
        self.image_ids, self.sizes = self.image_ids[kept], self.sizes[kept]
        self.file_names = FlatStrings(name for name, keep in zip(names, kept) if keep)
        self.proposals = None if proposals is None else ProposalFile(proposals)
        if self.proposals is not None:
            self.proposals.check(self.image_ids, self.full_names(), self.sizes, self.annotation_file)

    def _keep_objects(
        self, owner: np.ndarray, boxes: np.ndarray, labels: np.ndarray, crowd: np.ndarray, keep_empty: bool
    ) -> np.ndarray:
        """Clip and file the objects by image, write the report, and say which images (n,) stay."""
        boxes, clipped = _clip(boxes, self.sizes[owner])
        solid = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        has_object = np.bincount(owner[solid & ~crowd], minlength=len(self.sizes)) > 0
        kept = has_object | keep_empty
        if not kept.any():
            raise DataError(f"{self.annotation_file}: no image is left; check `images`, `annotations` and data.classes")
        rows = np.flatnonzero(solid & kept[owner])
        rows = rows[np.argsort(owner[rows], kind="stable")]
        self._boxes, self._labels, self._crowd = boxes[rows], labels[rows], crowd[rows]
        self._start = np.searchsorted(owner[rows], [*np.flatnonzero(kept), len(kept)])  # where each image's rows begin
        self.report = (
            f"{self.annotation_file}: {kept.sum()} images, {(~self._crowd).sum()} objects of {len(self.class_names)} "
            f"classes, {self._crowd.sum()} crowd regions; {clipped.sum()} boxes clipped to their image, "
            f"{(~solid).sum()} without area dropped; {(~has_object).sum()} images without objects "
            f"{'kept' if keep_empty else 'left out'}"
        )
        return kept

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, i: int) -> tuple[Tensor, Target, int]:
        """Image uint8 (3, H, W), its objects and its id, after the transform if there is one."""
        image, target = self.image(i), self.target(i)
        if self.transform is not None:
            image, target = self.transform(image, target)
        return image, target, int(self.image_ids[i])

    def image(self, i: int) -> Tensor:
        """The decoded image, uint8 (3, H, W), without the transform."""
        path = join_within(self.folder, self.file_names[i])
        image = read_image(path, self.max_pixels)
        if tuple(image.shape[1:]) != tuple(self.sizes[i]):  # its boxes would be somewhere else
            (_, h, w), (height, width) = image.shape, self.sizes[i]
            raise ImageError(
                f"{path}: the image (upright by its EXIF orientation) is {w} x {h}, but {self.annotation_file} says "
                f"{width} x {height} for image id {self.image_ids[i]}; correct its width, height and boxes"
            )
        return image

    def target(self, i: int) -> Target:
        """The objects of one image, in its own pixels, without the transform."""
        i = range(len(self))[i]  # -1 is the last, and the end is an IndexError
        rows = slice(self._start[i], self._start[i + 1])
        boxes, labels, crowd = self._boxes[rows], self._labels[rows], self._crowd[rows]
        proposals = None if self.proposals is None else self.proposals[self.image_ids[i]]
        return Target(*(torch.from_numpy(x) for x in (boxes[~crowd], labels[~crowd], boxes[crowd])), proposals)

    def objects(self) -> tuple[np.ndarray, np.ndarray]:
        """The index of the image (B,) and the label (B,) of every object."""
        owner = np.repeat(np.arange(len(self)), np.diff(self._start))
        return owner[~self._crowd], self._labels[~self._crowd]

    def full_names(self) -> list[str]:
        """Folder and file name of every image, which tell the images of two splits apart."""
        return [f"{self.folder.name}/{name}" for name in self.file_names]

    def class_table(self) -> str:
        """Label, category id, number of objects and name of every class, a line each."""
        counts = np.bincount(self._labels[~self._crowd], minlength=len(self.class_names))
        rows = zip(self.category_ids, counts, self.class_names)
        lines = [f"{label:5} {number:5} {count:8}  {name}" for label, (number, count, name) in enumerate(rows)]
        return "\n".join(["label    id  objects  name", *lines])


class _Section:
    """One list of a COCO file, read column by column; a bad entry is an error that names file, entry and key."""

    def __init__(self, path: Path, document: Any, section: str) -> None:
        entries = document.get(section) if isinstance(document, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            wanted = "a COCO file is an object with the lists `images`, `annotations` and `categories`"
            raise DataError(f"{path}: `{section}` is missing or is not a list of objects; {wanted}")
        self.path, self.section, self.entries = path, section, entries

    def column(self, key: str, valid: Callable[[Any], bool], rule: str, default: Any = None) -> list[Any]:
        """The values of one key; all must be valid."""
        values = [entry.get(key, default) for entry in self.entries]
        self.reject([not valid(value) for value in values], key, rule)
        return values

    def integers(self, key: str, least: int = -(2**53), default: int | None = None) -> np.ndarray:
        """The values of an integer key, int64 (entries,)."""
        rule = "it must be an integer" if least < 0 else f"it must be an integer of at least {least}"
        values = self.column(key, lambda x: isinstance(x, int) and least <= x <= 2**53, rule, default)
        return np.array(values, dtype=np.int64)

    def reject(self, bad: Sequence[bool] | np.ndarray, key: str, rule: str) -> None:
        """Raise for the first bad entry, if there is one."""
        wrong = np.flatnonzero(bad)
        if len(wrong):
            entry = self.entries[wrong[0]]
            value = f"is {entry[key]!r:.80}" if key in entry else "is missing"
            more = f" ({len(wrong) - 1} more like it)" if len(wrong) > 1 else ""
            number = f"{entry['id']!r:.40}" if "id" in entry else "missing"
            where = f"{self.path}: {self.section}[{wrong[0]}], id {number}"
            raise DataError(f"{where}: `{key}` {value}; {rule}{more}")


def _classes(
    categories: _Section, classes: list[str] | None, class_names: list[str] | None
) -> tuple[list[str], list[int]]:
    """The names of the classes in label order, and the ids that this file gives them."""
    ids = categories.integers("id").tolist()
    names = categories.column("name", is_name, "it must be a name, without control characters")
    categories.reject(_repeated(ids), "id", "two categories share it: give each its own")
    categories.reject(_repeated(names), "name", "two categories share it: merge them or rename one")
    ordered = sorted(names, key=dict(zip(names, ids)).get)
    chosen = _chosen(categories.path, ordered, classes)
    if class_names is not None and set(chosen) != set(class_names):
        here, training = (sorted(set(a) - set(b)) for a, b in ((chosen, class_names), (class_names, chosen)))
        raise DataError(
            f"{categories.path}: `categories` differ from the training classes (only here: {here}; only in training: "
            f"{training}); give both files the same names, or choose the common ones by data.classes"
        )
    labelled = chosen if class_names is None else list(class_names)
    return labelled, [ids[names.index(name)] for name in labelled]


def _chosen(path: Path, names: list[str], classes: list[str] | None) -> list[str]:
    for name in classes or []:
        if name not in names:
            nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)
            raise DataError(
                f"{path}: data.classes names {name!r}, no category of this file; nearest: {', '.join(nearest)}"
            )
    chosen = names if classes is None else [name for name in names if name in classes]
    if not chosen:
        raise DataError(f"{path}: no classes to detect; `categories` or data.classes is empty")
    return chosen


def _pictures(images: _Section) -> tuple[list[str], np.ndarray, np.ndarray]:
    """File names, ids (n,) and sizes (n, 2) h, w of the images."""
    ids = images.integers("id")
    images.reject(_repeated(ids.tolist()), "id", "two images share it: give each its own")
    names = images.column("file_name", stays_inside, "it must be a path inside of the image folder, relative to it")
    return names, ids, np.stack([images.integers("height", 1), images.integers("width", 1)], axis=1)


def _membership(
    objects: _Section, image_ids: np.ndarray, known: np.ndarray, category_ids: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The index of every annotation's image, and its label (-1: a category that was not chosen)."""
    objects.integers("id")  # nothing below needs it, but pycocotools does
    image_of, category_of = objects.integers("image_id"), objects.integers("category_id")
    objects.reject(~np.isin(image_of, image_ids), "image_id", "no such image: add it or remove the annotation")
    objects.reject(~np.isin(category_of, known), "category_id", "no such category: add it or remove the annotation")
    index_of = {number: index for index, number in enumerate(image_ids.tolist())}
    label_of = {number: label for label, number in enumerate(category_ids)}
    owner = np.array([index_of[number] for number in image_of.tolist()], dtype=np.int64)
    return owner, np.array([label_of.get(number, -1) for number in category_of.tolist()], dtype=np.int64)


def _xyxy(objects: _Section) -> np.ndarray:
    """The boxes (B, 4) float64 as corners, not clipped yet."""
    rule = "it must be four finite numbers [x, y, width, height]"
    xywh = np.array(objects.column("bbox", is_box, rule), dtype=np.float64).reshape(-1, 4)
    objects.reject((xywh[:, 2:] < 0).any(axis=1), "bbox", "width and height [x, y, width, height] must not be negative")
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)


def _clip(boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (B, 4) float32 inside of their images (B, 2), and which of them (B,) stood out by more than rounding."""
    inside = np.clip(boxes, 0, sizes[:, [1, 0, 1, 0]])
    return inside.astype(np.float32), (np.abs(inside - boxes) > 1e-2).any(axis=1)


def _repeated(values: list[Any]) -> list[bool]:
    """Which of the values occurred before."""
    seen: set[Any] = set()
    return [value in seen or seen.add(value) is not None for value in values]
