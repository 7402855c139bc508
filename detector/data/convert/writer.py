"""Building a COCO document from images and objects of another format; it states the assumed conventions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from detector.coco_format import is_name, join_within
from detector.data.image import SUFFIXES
from detector.errors import DataError
from detector.records.outlines import Outlines

MAX_BYTES = 2**22  # of one image's annotations: tens of thousands of objects
ALWAYS = [
    "file names are relative to the folder that was converted",
    "boxes are COCO's [x, y, width, height] in pixels of the image as its EXIF orientation shows it, and are not clipped",
    "category ids begin at 1, in the order of the classes; image ids begin at 1, in the order of the file names",
]


@dataclass
class SourceObject:
    """An object: the edges of its box in pixels, and perhaps more."""

    name: str
    xyxy: tuple[float, float, float, float]
    crowd: bool = False
    outline: list[list[float]] | dict[str, Any] | None = None
    """A `segmentation` of COCO in pixels."""
    keypoints: list[float] | None = None
    """x, y in pixels and visibility of each."""


@dataclass
class SourceImage:
    """An image and its objects."""

    file_name: str  # relative to the folder that is converted
    size: tuple[int, int]  # (h, w), upright
    boxes: list[SourceObject]


@dataclass
class ConversionNotes:
    """Observations to check, counted by kind, with the first place of each."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, where: object) -> None:
        """Count one more of the kind `what`."""
        self.counts[what] = self.counts.get(what, 0) + 1
        self.first.setdefault(what, str(where))

    def lines(self) -> list[str]:
        """A line for each kind."""
        return [f"{count} {what} (the first: {self.first[what]})" for what, count in self.counts.items()]


def coco_document(
    pictures: Iterable[SourceImage],
    classes: Sequence[str],
    source: str,
    conventions: Sequence[str],
    notes: ConversionNotes,
    keypoints: Sequence[str] = (),
) -> dict[str, Any]:
    """The COCO file of the pictures; `info` says where it is from, by which conventions, and what was found.

    `keypoints` are the names of those of every class, if objects have any.
    """
    images: list[dict] = []
    annotations: list[dict] = []
    seen: set[str] = set()
    label_of = {name: label for label, name in enumerate(classes, start=1)}
    for image_id, picture in enumerate(tqdm(pictures, desc="convert", unit="img", disable=None), start=1):
        if picture.file_name in seen:
            raise DataError(f"{source}: two annotations are of the image {picture.file_name}; remove one")
        seen.add(picture.file_name)
        height, width = picture.size
        images.append({"id": image_id, "file_name": picture.file_name, "width": width, "height": height})
        for box in picture.boxes:
            _note_suspicious_box(box, picture, notes)
            x1, y1, x2, y2 = box.xyxy
            w, h = rounded_value(x2 - x1), rounded_value(y2 - y1)
            annotations.append({
                "id": len(annotations) + 1, "image_id": image_id, "category_id": label_of[box.name],
                "bbox": [rounded_value(x1), rounded_value(y1), w, h], "area": rounded_value(w * h), "iscrowd": int(box.crowd),
                **_shapes(box, picture.size),
            })  # fmt: skip
    bare = [entry for entry in annotations if "segmentation" not in entry and not entry["iscrowd"]]
    for entry in bare if len(bare) < len(annotations) - sum(entry["iscrowd"] for entry in annotations) else ():
        notes.add(
            "objects have no outline, others have: masks can be learnt of these alone",
            images[entry["image_id"] - 1]["file_name"],
        )
    info = {"description": f"converted from {source}", "conventions": [*conventions, *ALWAYS]}
    named = {"keypoints": list(keypoints), "skeleton": []} if keypoints else {}
    categories = [{"id": number, "name": name, **named} for name, number in label_of.items()]
    if not images:
        raise DataError(f"{source}: no images found there ({' '.join(SUFFIXES)})")
    info["findings"] = notes.lines()
    return {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def _shapes(box: SourceObject, size: tuple[int, int]) -> dict[str, Any]:
    """Outline, its area, and keypoints, where there are any."""
    found: dict[str, Any] = {}
    if box.outline is not None:
        outline = box.outline
        if isinstance(outline, list):
            outline = [[rounded_value(x) for x in part] for part in outline]
        found |= {"segmentation": outline, "area": rounded_value(float(Outlines.of([outline], size).areas()[0]))}
    if box.keypoints is not None:
        visible = sum(v > 0 for v in box.keypoints[2::3])
        found |= {"keypoints": [rounded_value(x) for x in box.keypoints], "num_keypoints": visible}
    return found


def _note_suspicious_box(box: SourceObject, picture: SourceImage, notes: ConversionNotes) -> None:
    x1, y1, x2, y2 = box.xyxy
    height, width = picture.size
    if min(x1, y1, width - x2, height - y2) < -0.5:  # by more than rounding
        notes.add("boxes reach out of their image", picture.file_name)
    if x2 <= x1 or y2 <= y1:
        notes.add("boxes have no area", picture.file_name)


def rounded_value(x: float) -> float:
    """Round to a thousandth of a pixel, finer than any annotation, which removes floating-point noise."""
    x = round(float(x), 3)
    return int(x) if x.is_integer() else x


def document_summary(document: dict[str, Any]) -> list[str]:
    """The conventions and contents of a document, in lines."""
    counts = dict.fromkeys((category["id"] for category in document["categories"]), 0)
    for annotation in document["annotations"]:
        counts[annotation["category_id"]] += 1
    rows = [f"{category['id']:5} {counts[category['id']]:8}  {category['name']}" for category in document["categories"]]
    return [
        *(f"assumed: {line}" for line in document["info"]["conventions"]),
        *(f"found: {line}" for line in document["info"]["findings"]),
        *("   id  objects  name", *rows),
        f"{len(document['images'])} images, {len(document['annotations'])} objects, {len(rows)} classes",
    ]


def read_text(path: Path) -> str:
    """The text of an annotation file. Raises DataError for a missing, unreadable or far too large one."""
    try:
        if not path.is_file():  # reading a pipe could block
            raise DataError(f"{path}: no such file")
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: larger than {MAX_BYTES} bytes, not the annotations of an image")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: bytes that are no text
        raise DataError(f"{path}: cannot be read as text ({error})") from error


def images_below(folder: Path, below: str = "") -> list[str]:
    """Names of all images in `below`, relative to `folder`, with forward slashes; hidden files are left out."""
    top = folder / below
    files = [path for path in top.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    visible = [path for path in files if not any(part.startswith(".") for part in path.relative_to(top).parts)]
    return sorted(path.relative_to(folder).as_posix() for path in visible)


def path_within(folder: Path, name: str, where: object) -> Path:
    """`join_within` with the source `where` of the name in its message."""
    try:
        return join_within(folder, name)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def checked_classes(names: Sequence[str], where: object) -> list[str]:
    """The class names. Raises DataError for no names and for an invalid or repeated name."""
    for name in names:
        if not is_name(name):
            raise DataError(f"{where}: {name!r} is no name of a class")
        if list(names).count(name) > 1:
            raise DataError(f"{where}: the class {name!r} is named twice")
    if not names:
        raise DataError(f"{where}: names no classes; give them by --classes")
    return list(names)
