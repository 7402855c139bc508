"""Label Studio's JSON export: a task for every image, its regions in percent of the image."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from detector.coco_format import is_name, stays_inside
from detector.data.coco_json import read_whole_document
from detector.data.convert.rotated import Corners, around_rotated
from detector.data.convert.writer import (
    ConversionNotes,
    SourceImage,
    SourceObject,
    checked_classes,
    coco_document,
    path_within,
)
from detector.data.image import MAX_PIXELS, SUFFIXES, read_size
from detector.errors import DataError

KINDS = ("rectanglelabels", "polygonlabels", "labels")  # regions that become objects; the last is of either form
UPLOADED = re.compile("[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded file
FAR = 100  # percent by which a region may leave its image; a value further out is no percentage
ONE_IMAGE = "give each image a task of its own"
CONVENTIONS = [
    "regions are percentages of the image; its size is the file's own, turned upright by its EXIF orientation",
    "rectangles become boxes, polygons outlines; other regions are left out",
    "the annotation of a task is its newest that was not skipped; tasks without one are left out",
    "a task whose annotation has no region is an image without objects",
]


def convert_label_studio(
    export: Path, folder: Path, *, classes: Sequence[str] | None = None, max_pixels: int = MAX_PIXELS
) -> dict[str, Any]:
    """The COCO document of an export. Raises DataError with the file, task and region.

    Args:
        export: the file, JSON and not JSON-MIN.
        folder: with the images.
        classes: their names in order; None: all labels, sorted.
        max_pixels: images with more pixels are refused.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    tasks, notes = read_whole_document(export), ConversionNotes()
    if not isinstance(tasks, list) or not all(isinstance(t, dict) and isinstance(t.get("data"), dict) for t in tasks):
        raise DataError(
            f"{export}: not a Label Studio export (a list of tasks with `data`); export it as JSON, not JSON-MIN"
        )
    chosen = [(task, where, _annotation(task, where, notes)) for task, where in _places(tasks, export)]
    regions = [(t, where, _regions(result, where, notes)) for t, where, result in chosen if result is not None]
    if not regions:
        raise DataError(f"{export}: no task has an annotation that counts; label some images, and export them again")
    labels = {_label(region, place) for _, _, found in regions for region, place in found}
    names = checked_classes(sorted(labels) if classes is None else classes, "--classes" if classes else export)

    def pictures() -> Iterator[SourceImage]:
        for task, where, found in regions:
            name = _image_name(task["data"], folder, where, notes)
            size = read_size(folder / name, max_pixels, "--max-pixels")
            yield SourceImage(name, size, [_object(region, place, size, names, notes) for region, place in found])

    return coco_document(pictures(), names, f"Label Studio, {export.name}", CONVENTIONS, notes)


def _places(tasks: Sequence[dict[str, Any]], export: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Every task, and where it stands."""
    return ((task, f"{export}, task {task.get('id', number)}") for number, task in enumerate(tasks, start=1))


def _annotation(task: Mapping[str, Any], where: str, notes: ConversionNotes) -> list[Any] | None:
    """The regions and other results of the annotation that counts; None without one."""
    every = task.get("annotations", task.get("completions"))  # the latter until 2020
    if not isinstance(every, list) or not all(isinstance(a, dict) and isinstance(a.get("result"), list) for a in every):
        raise DataError(f"{where}: `annotations` must be a list of objects with a list `result`; export it as JSON")
    kept = [annotation for annotation in every if not annotation.get("was_cancelled")]
    if not kept:
        notes.add("tasks were skipped: left out" if every else "tasks are not annotated: left out", where)
        return None
    if len(kept) > 1:
        notes.add("tasks have several annotations: the newest is taken", where)
    # times are ISO 8601 in UTC, which sort as text; without them the last counts
    newest = max(
        enumerate(kept), key=lambda pair: (str(pair[1].get("updated_at") or pair[1].get("created_at") or ""), pair[0])
    )
    return newest[1]["result"]


def _regions(result: Sequence[Any], where: str, notes: ConversionNotes) -> list[tuple[dict[str, Any], str]]:
    """The regions that become objects, and where each stands."""
    found = []
    labelled = {str(r.get("id")) for r in result if isinstance(r, dict) and r.get("type") == "labels"}
    for number, region in enumerate(result, start=1):
        place = f"{where}, region {number}"
        if not isinstance(region, dict) or not isinstance(region.get("type"), str):
            raise DataError(f"{place}: is no object with a `type`")
        if region["type"] in KINDS:
            if not isinstance(region.get("value"), dict):
                raise DataError(f"{place}: `value` is missing")
            if region.get("item_index"):
                raise DataError(f"{place}: is in a further image of its task; {ONE_IMAGE}")
            found.append((region, place))
        elif region["type"] in ("rectangle", "polygon") and str(region.get("id")) in labelled:
            continue  # it is there twice, the other time with its label
        else:
            notes.add(f"results are no rectangle or polygon with a label ({region['type'][:20]!r}): left out", place)
    shown = {str(region.get("to_name")) for region, _ in found}
    if len(shown) > 1:
        raise DataError(f"{where}: its regions are in several images ({', '.join(sorted(shown)):.80}); {ONE_IMAGE}")
    return found


def _label(region: Mapping[str, Any], place: str) -> str:
    labels = region["value"].get(region["type"])
    if not (isinstance(labels, list) and len(labels) == 1 and is_name(labels[0])):
        raise DataError(
            f"{place}: `{region['type']}` is {labels!r:.80}, expected the name of one class; correct the region"
        )
    return labels[0]


def _image_name(data: Mapping[str, Any], folder: Path, where: str, notes: ConversionNotes) -> str:
    """The image of a task, relative to the folder: by `file_name` of our own tasks, else by its address."""
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    addresses = [texts[key] for key in ("file_name", "image") if key in texts]
    addresses += [value for value in texts.values() if PurePosixPath(_path_of(value)).suffix.lower() in SUFFIXES]
    if not addresses:
        raise DataError(f"{where}: its `data` name no image ({', '.join(SUFFIXES)})")
    for address in addresses:
        parts = PurePosixPath(_path_of(address).replace("\\", "/")).parts
        for first in range(len(parts)):
            above, last = "/".join(parts[first:-1]), parts[-1]
            for name in (f"{above}/{last}".lstrip("/"), f"{above}/{UPLOADED.sub('', last, count=1)}".lstrip("/")):
                if stays_inside(name) and path_within(folder, name, where).is_file():
                    if first:
                        notes.add("images are found by the last part of their address", where)
                    return name
    raise DataError(f"{where}: its image {addresses[0]!r:.80} is not in {folder}; put it there under its name")


def _path_of(address: str) -> str:
    """The path in an address: of a local file (`?d=`), of a URL, or the text itself."""
    try:
        pieces = urlsplit(address)
        local = parse_qs(pieces.query).get("d")
    except ValueError:  # no address: http://[
        return address
    if local:
        return local[0]
    return unquote(pieces.path) if pieces.scheme or address.startswith("/data/") else address


def _object(
    region: Mapping[str, Any], place: str, size: tuple[int, int], names: Sequence[str], notes: ConversionNotes
) -> SourceObject:
    label = _label(region, place)
    if label not in names:
        raise DataError(f"{place}: the label {label!r:.80} is none of --classes")
    _compare_size(region, place, size)
    value, (height, width) = region["value"], size
    if "points" in value:
        points = value["points"]
        if (
            not isinstance(points, list)
            or len(points) < 3
            or not all(isinstance(p, list) and len(p) == 2 for p in points)
        ):
            raise DataError(f"{place}: `points` must be three or more pairs of percentages")
        outline = [_percent(v, place) * side / 100 for point in points for v, side in zip(point, (width, height))]
        xs, ys = outline[::2], outline[1::2]
        return SourceObject(label, (min(xs), min(ys), max(xs), max(ys)), outline=[outline])
    x, y, w, h = (_percent(value.get(key), place) for key in ("x", "y", "width", "height"))
    if w < 0 or h < 0:
        raise DataError(f"{place}: width and height must not be negative")
    box: Corners = (x * width / 100, y * height / 100, (x + w) * width / 100, (y + h) * height / 100)
    turned = _number(value.get("rotation", 0), "rotation", place)
    if turned % 360:
        notes.add("rectangles are rotated: the upright box around each is taken", place)
        box = around_rotated(box, turned, box[:2])
    return SourceObject(label, box)


def _compare_size(region: Mapping[str, Any], place: str, size: tuple[int, int]) -> None:
    """Raise DataError where the image was labelled in another size or orientation."""
    said = tuple(region.get(key) for key in ("original_height", "original_width"))
    if said != (None, None) and said != size:
        raise DataError(
            f"{place}: was drawn on an image of {said[1]!r:.20} x {said[0]!r:.20}, the file is {size[1]} x {size[0]} (upright by "
            "its EXIF orientation); put the image there that was labelled"
        )
    if _number(region.get("image_rotation") or 0, "image_rotation", place) % 360:
        raise DataError(
            f"{place}: the image was turned by {region['image_rotation']} degrees; turn it back in Label Studio"
        )


def _percent(value: Any, place: str) -> float:
    number = _number(value, "a coordinate", place)
    if not -FAR <= number <= 100 + FAR:
        raise DataError(f"{place}: {number:g} is no percentage of the image; are these pixels?")
    return number


def _number(value: Any, what: str, place: str) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e9:  # NaN fails, too
        raise DataError(f"{place}: {what} is {value!r:.80}, expected a number")
    return float(value)
