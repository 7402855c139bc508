"""labelme: a JSON file for every image, with its shapes in pixels."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detector.coco_format import is_name
from detector.data.convert.writer import (
    ConversionNotes,
    SourceImage,
    SourceObject,
    checked_classes,
    coco_document,
    path_within,
)
from detector.data.image import MAX_PIXELS, read_size
from detector.errors import DataError

MAX_FILE = 2**28  # bytes; labelme may store the image in the file
CIRCLE = 64  # corners of the polygon of a circle
SHAPES = {"polygon": 3, "rectangle": 2, "circle": 2}  # and how many points they have at least
CONVENTIONS = [
    "polygons, rectangles and circles become outlines; other shapes are left out",
    "shapes of one label and one group_id are the parts of one object",
    "the image of a JSON file is its imagePath, relative to the file; its size is the file's own",
]


def convert_labelme(
    folder: Path, *, classes: Sequence[str] | None = None, max_pixels: int = MAX_PIXELS
) -> dict[str, Any]:
    """The COCO document of a folder of labelme files. Raises DataError with file and shape.

    `classes`: their names in order, or None for all labels, sorted. Images with more pixels than `max_pixels` are refused.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    read = {path: _read(path) for path in sorted(folder.rglob("*.json")) if not path.name.startswith(".")}
    files = {path: content for path, content in read.items() if content is not None}
    if not files:
        raise DataError(f"{folder}: no labelme files in it (JSON with `shapes` and `imagePath`)")
    labels = {s["label"] for path, content in files.items() for s in _shapes(path, content) if _is_outline(s)}
    names = checked_classes(sorted(labels) if classes is None else classes, "--classes" if classes else folder)
    notes = ConversionNotes()
    for path in sorted(set(read) - set(files)):
        notes.add("JSON files are not labelme's: left out", path.relative_to(folder).as_posix())

    def pictures() -> Iterator[SourceImage]:
        for path, content in files.items():
            yield _picture(folder, path, content, names, max_pixels, notes)

    return coco_document(pictures(), names, f"labelme, {folder.name}", CONVENTIONS, notes)


def _read(path: Path) -> dict[str, Any] | None:
    """The content of a labelme file without the image that it may hold; None of another JSON file."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_FILE:
            raise DataError(f"{path}: not a file, or larger than {MAX_FILE} bytes")
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(content, dict) or "shapes" not in content or "imagePath" not in content:
        return None
    return {key: content[key] for key in ("shapes", "imagePath")}


def _shapes(path: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    """The shapes of a file, each with a valid label and points."""
    if not isinstance(content["shapes"], list):
        raise DataError(f"{path}: `shapes` is not a list")
    for number, shape in enumerate(content["shapes"], start=1):
        points = shape.get("points") if isinstance(shape, dict) else None
        if not isinstance(shape, dict) or not is_name(shape.get("label")):
            raise DataError(f"{path}, shape {number}: `label` must be a name without control characters")
        if not isinstance(points, list) or not all(map(_is_point, points)):
            raise DataError(f"{path}, shape {number}: `points` must be pairs of finite numbers")
    return content["shapes"]


def _kind(shape: dict[str, Any]) -> Any:
    return shape.get("shape_type") or "polygon"


def _is_outline(shape: dict[str, Any]) -> bool:
    """Whether a shape is of a known kind and has enough points for it."""
    return isinstance(_kind(shape), str) and len(shape["points"]) >= SHAPES.get(_kind(shape), math.inf)


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(x) in (int, float) and abs(x) < 1e9 for x in value)


def _picture(
    folder: Path, path: Path, content: dict[str, Any], names: Sequence[str], max_pixels: int, notes: ConversionNotes
) -> SourceImage:  # fmt: skip
    said = content["imagePath"]
    if not isinstance(said, str):
        raise DataError(f"{path}: `imagePath` is not a path")
    place = path.parent.relative_to(folder) / said.replace("\\", "/")
    image = path_within(folder, place.as_posix(), f"{path}: imagePath")
    if not image.is_file():  # saved on another machine: the image lies beside its file
        image = path_within(folder, (place.parent / Path(said.replace("\\", "/")).name).as_posix(), path)
    if not image.is_file():
        raise DataError(
            f"{path}: its image {image.name!r:.80} is not beside it; put it there (labelme may have stored it within the file, "
            "as imageData: save that as an image)"
        )
    size = read_size(image, max_pixels, "--max-pixels")
    groups: dict[Any, list[list[float]]] = {}
    for number, shape in enumerate(_shapes(path, content), start=1):
        where, kind = f"{path}, shape {number}", _kind(shape)
        if not _is_outline(shape):
            notes.add(f"shapes are no polygon, rectangle or circle ({str(kind)[:20]}): left out", where)
            continue
        if shape["label"] not in names:
            raise DataError(f"{where}: the label {shape['label']!r:.80} is none of --classes")
        group = shape.get("group_id")
        key = (shape["label"], number if type(group) is not int else f"group {group}")
        groups.setdefault(key, []).append(_outline(kind, shape["points"]))
    boxes = [SourceObject(label, _box(parts), outline=parts) for (label, _), parts in groups.items()]
    return SourceImage(image.relative_to(folder).as_posix(), size, boxes)


def _outline(kind: str, points: list[list[float]]) -> list[float]:
    """The corners x1, y1, x2, y2, ... of a shape."""
    if kind == "polygon":
        return [value for point in points for value in point]
    if kind == "rectangle":  # two opposite corners, in newer files all four
        (x1, y1), (x2, y2) = map(min, zip(*points)), map(max, zip(*points))
        return [x1, y1, x2, y1, x2, y2, x1, y2]
    (x1, y1), (x2, y2) = points[:2]
    radius = math.hypot(x2 - x1, y2 - y1)  # the first point is the centre, the second one lies on the circle
    angles = [2 * math.pi * i / CIRCLE for i in range(CIRCLE)]
    return [value for a in angles for value in (x1 + radius * math.cos(a), y1 + radius * math.sin(a))]


def _box(parts: list[list[float]]) -> tuple[float, float, float, float]:
    xs, ys = ([value for part in parts for value in part[axis::2]] for axis in (0, 1))
    return min(xs), min(ys), max(xs), max(ys)
