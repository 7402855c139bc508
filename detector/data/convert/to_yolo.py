"""YOLO: images/SPLIT/NAME.jpg, labels/SPLIT/NAME.txt with a line for each object, and data.yaml, as Ultralytics reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from detector.data.convert.from_coco import (
    SourceSplit,
    export_summary,
    place_images,
    read_splits,
    reserve,
    write_described,
)
from detector.data.convert.writer import ConversionNotes, SourceImage, SourceObject
from detector.data.convert.yolo import label_file
from detector.data.image import SUFFIXES
from detector.data.tracing import borders, one_polygon
from detector.records.outlines import Outlines

DIGITS = 9  # of a fraction: a ten-thousandth of a pixel in an image 100,000 pixels wide


def write_yolo(
    folder: Path,
    paths: Sequence[Path],
    names: Sequence[str],
    *,
    images: Path | None = None,
    placement: str = "copy",
    outlines: bool = False,
) -> list[str]:
    """Write the splits of COCO files into a folder; returns lines about what was written and what could not be.

    Args:
        folder: empty.
        paths: COCO files.
        names: of the splits, one for each file.
        images: folder of the images, which are put beside the labels; None: labels alone.
        placement: key of PLACEMENTS.
        outlines: write them instead of boxes; the format has one polygon for an object, so parts are joined by lines.
    """
    notes = ConversionNotes()
    splits, classes = read_splits(paths, names, notes, crowds=False, outlines=outlines)
    label_of = {name: label for label, name in enumerate(classes)}
    taken: dict[str, str] = {}
    texts, targets = {}, {}
    for split in splits:
        for picture in split.pictures:
            place = f"images/{split.name}/{picture.file_name}"
            texts[folder / reserve(taken, label_file(place), picture)] = _lines(picture, label_of, notes)
            targets[folder / place] = picture
            if Path(place).suffix.lower() not in SUFFIXES:
                notes.add(f"images have a suffix that is not one of {' '.join(SUFFIXES)}", picture.file_name)
    texts[folder / "data.yaml"] = _settings(splits, classes)
    write_described(texts)
    if images is not None:
        place_images(images, targets, placement)
    return export_summary(splits, classes, notes)


def _lines(picture: SourceImage, label_of: dict[str, int], notes: ConversionNotes) -> str:
    numbers = [
        _fractions(box, picture.size) if box.outline is None else _polygon(box.outline, picture, notes)
        for box in picture.boxes
    ]
    return "".join(f"{label_of[box.name]} {text}\n" for box, text in zip(picture.boxes, numbers) if text)


def _polygon(outline: Any, picture: SourceImage, notes: ConversionNotes) -> str:
    """The points of an outline as fractions of the image's size."""
    shape = Outlines.of([outline], picture.size)
    parts = [part for part in shape.parts(0) if len(part) >= 3]
    if isinstance(outline, dict):
        parts, holes = borders(shape.bitmaps(picture.size)[0].numpy())
        if holes:
            notes.add("outlines have holes, which the format has not: they are filled", picture.file_name)
    if not parts:
        notes.add("outlines are empty: left out", picture.file_name)
        return ""
    if len(parts) > 1:
        notes.add("outlines have several parts: joined by lines", picture.file_name)
    height, width = picture.size
    points = (one_polygon(parts) / [width, height]).clip(0, 1)
    return " ".join(f"{value:.{DIGITS}f}" for value in points.ravel().tolist())


def _fractions(box: SourceObject, size: tuple[int, int]) -> str:
    """Centre x, centre y, width and height as fractions of the image's size."""
    (x1, y1, x2, y2), (height, width) = box.xyxy, size
    values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    return " ".join(f"{value:.{DIGITS}f}" for value in values)


def _settings(splits: Sequence[SourceSplit], classes: Sequence[str]) -> str:
    """data.yaml. It has no `path`: without one, folders are relative to this file wherever it is moved."""
    content = {split.name: f"images/{split.name}" for split in splits} | {"names": dict(enumerate(classes))}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
