"""CVAT's own XML, "CVAT for images 1.1": an element for every image, its shapes in pixels."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as run_lengths

from detector.coco_format import is_name
from detector.data.convert.rotated import Corners, around_rotated
from detector.data.convert.writer import (
    ConversionNotes,
    SourceImage,
    SourceObject,
    checked_classes,
    coco_document,
    path_within,
)
from detector.data.convert.xml_reader import read_xml
from detector.data.image import MAX_PIXELS, read_size
from detector.errors import DataError

MAX_FILE = 2**30  # bytes
KIND = "a CVAT export (CVAT for images 1.1; one in COCO form is read as it is)"
SHAPES = ("box", "polygon", "mask")  # which become objects
CONVENTIONS = [
    "boxes, polygons and masks are in pixels of the image; its size is the file's own",
    "polygons and masks become outlines; other shapes are left out",
    "an image without shapes is an image without objects",
]


def convert_cvat(
    export: Path, folder: Path, *, classes: Sequence[str] | None = None, max_pixels: int = MAX_PIXELS
) -> dict[str, Any]:
    """The COCO document of an export. Raises DataError with the file, image and shape. The arguments are those of
    `convert_label_studio`; without `classes` all labels of the task count, in its order, where the file has them.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    tree, notes = read_xml(export, "annotations", KIND, MAX_FILE), ConversionNotes()
    if tree.find("track") is not None:
        raise DataError(f"{export}: has tracks of a video; export it as CVAT for images 1.1")
    images = list(tree.iter("image"))
    listed = _class_names(tree, images, export) if classes is None else classes
    names = checked_classes(listed, "--classes" if classes else export)

    def pictures() -> Iterator[SourceImage]:
        for number, element in enumerate(images, start=1):
            yield _picture(
                element, f"{export}, image {element.get('name') or number!r:.80}", folder, names, max_pixels, notes
            )

    return coco_document(pictures(), names, f"CVAT, {export.name}", CONVENTIONS, notes)


def _class_names(tree: ET.Element, images: Sequence[ET.Element], export: Path) -> list[str]:
    """The labels of the task, or those of all shapes, sorted, where the file does not list the former."""
    listed = [element.text or "" for element in tree.findall("meta//labels/label/name")]
    used = {shape.get("label") or "" for image in images for shape in image if shape.tag in SHAPES}
    names = list(dict.fromkeys(listed)) or sorted(used)
    if unknown := sorted(used - set(names)):
        raise DataError(
            f"{export}: shapes have the label {unknown[0]!r:.80}, which the task does not list; give --classes"
        )
    return names


def _picture(
    element: ET.Element, where: str, folder: Path, names: Sequence[str], max_pixels: int, notes: ConversionNotes
) -> SourceImage:
    name = (element.get("name") or "").replace("\\", "/")
    if not is_name(name) or not path_within(folder, name, where).is_file():
        raise DataError(f"{where}: is not in {folder}; put it there under this name")
    size = read_size(folder / name, max_pixels, "--max-pixels")
    said = tuple(_number(element, key, where) for key in ("height", "width"))
    if said != size:
        raise DataError(
            f"{where}: was labelled at {said[1]:g} x {said[0]:g}, the file is {size[1]} x {size[0]} (upright by its EXIF "
            "orientation); put the image there that was labelled"
        )
    boxes = []
    for number, shape in enumerate(element, start=1):
        place = f"{where}, shape {number}"
        if shape.tag not in SHAPES:
            notes.add(f"shapes are no box, polygon or mask ({shape.tag[:20]!r}): left out", place)
            continue
        if shape.get("label") not in names:
            raise DataError(f"{place}: the label {shape.get('label')!r:.80} is none of --classes")
        boxes.append(_object(shape, place, size, notes))
    if not boxes:
        notes.add("images have no shapes: taken as images without objects", where)
    return SourceImage(name, size, boxes)


def _object(shape: ET.Element, place: str, size: tuple[int, int], notes: ConversionNotes) -> SourceObject:
    label = str(shape.get("label"))
    if shape.tag == "box":
        x1, y1, x2, y2 = (_number(shape, key, place) for key in ("xtl", "ytl", "xbr", "ybr"))
        if x2 < x1 or y2 < y1:
            raise DataError(f"{place}: ({x1:g}, {y1:g}) to ({x2:g}, {y2:g}) is upside down; exchange the corners")
        box: Corners = (x1, y1, x2, y2)
        turned = _number(shape, "rotation", place) if "rotation" in shape.attrib else 0.0
        if turned % 360:
            notes.add("boxes are rotated: the upright box around each is taken", place)
            box = around_rotated(box, turned, ((x1 + x2) / 2, (y1 + y2) / 2))
        return SourceObject(label, box)
    if shape.tag == "polygon":
        outline = [value for pair in _points(shape, place) for value in pair]
        xs, ys = outline[::2], outline[1::2]
        return SourceObject(label, (min(xs), min(ys), max(xs), max(ys)), outline=[outline])
    bitmap = _bitmap(shape, place, size)
    rows, columns = (np.flatnonzero(bitmap.any(axis=axis)) for axis in (1, 0))
    encoded = run_lengths.encode(np.asfortranarray(bitmap))
    tight = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return SourceObject(label, tight, outline={"size": list(size), "counts": encoded["counts"].decode()})


def _points(shape: ET.Element, place: str) -> list[tuple[float, float]]:
    """x,y;x,y;x,y"""
    text = shape.get("points") or ""
    try:
        points = [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split(";"))]
    except ValueError:
        points = []
    if len(points) < 3 or not all(abs(value) < 1e9 for point in points for value in point):  # NaN fails, too
        raise DataError(f"{place}: `points` are {text!r:.80}, expected three or more pairs x,y;x,y")
    return points


def _bitmap(shape: ET.Element, place: str, size: tuple[int, int]) -> np.ndarray:
    """(h, w) uint8 of a mask: runs row by row within its box, of background and object in turn."""
    left, top, width, height = (_number(shape, key, place) for key in ("left", "top", "width", "height"))
    inside = min(left, top) >= 0 and min(width, height) >= 1 and left + width <= size[1] and top + height <= size[0]
    whole = all(value.is_integer() for value in (left, top, width, height))
    words = (shape.get("rle") or "").replace(" ", "").split(",")
    runs = [int(word) for word in words if word.isdecimal() and len(word) < 10]
    if not (inside and whole and len(runs) == len(words) and sum(runs) == width * height and sum(runs[1::2]) > 0):
        raise DataError(f"{place}: `rle` does not fill a box within the image; export it again")
    pixels = np.repeat(np.arange(len(runs)) % 2, runs).reshape(int(height), int(width)).astype(np.uint8)
    bitmap = np.zeros(size, dtype=np.uint8)
    bitmap[int(top) : int(top + height), int(left) : int(left + width)] = pixels
    return bitmap


def _number(element: ET.Element, key: str, place: str) -> float:
    text = element.get(key)
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not abs(number) < 1e9:  # NaN fails, too
        raise DataError(f"{place}: `{key}` is {text!r:.80}, expected a number")
    return number
