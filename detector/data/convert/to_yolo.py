"""YOLO: images/SPLIT/NAME.jpg, labels/SPLIT/NAME.txt with a line for each object, and data.yaml, as Ultralytics reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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

DIGITS = 9  # of a fraction: a ten-thousandth of a pixel in an image 100,000 pixels wide


def write_yolo(
    folder: Path, paths: Sequence[Path], names: Sequence[str], *, images: Path | None = None, placement: str = "copy"
) -> list[str]:
    """Write the splits of COCO files into a folder; returns lines about what was written and what could not be.

    Args:
        folder: empty.
        paths: COCO files.
        names: of the splits, one for each file.
        images: folder of the images, which are put beside the labels; None: labels alone.
        placement: key of PLACEMENTS.
    """
    notes = ConversionNotes()
    splits, classes = read_splits(paths, names, notes, crowds=False)
    label_of = {name: label for label, name in enumerate(classes)}
    taken: dict[str, str] = {}
    texts, targets = {}, {}
    for split in splits:
        for picture in split.pictures:
            place = f"images/{split.name}/{picture.file_name}"
            texts[folder / reserve(taken, label_file(place), picture)] = _lines(picture, label_of)
            targets[folder / place] = picture
            if Path(place).suffix.lower() not in SUFFIXES:
                notes.add(f"images have a suffix that is not one of {' '.join(SUFFIXES)}", picture.file_name)
    texts[folder / "data.yaml"] = _settings(splits, classes)
    write_described(texts)
    if images is not None:
        place_images(images, targets, placement)
    return export_summary(splits, classes, notes)


def _lines(picture: SourceImage, label_of: dict[str, int]) -> str:
    return "".join(f"{label_of[box.name]} {_fractions(box, picture.size)}\n" for box in picture.boxes)


def _fractions(box: SourceObject, size: tuple[int, int]) -> str:
    """Centre x, centre y, width and height as fractions of the image's size."""
    (x1, y1, x2, y2), (height, width) = box.xyxy, size
    values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    return " ".join(f"{value:.{DIGITS}f}" for value in values)


def _settings(splits: Sequence[SourceSplit], classes: Sequence[str]) -> str:
    """data.yaml. It has no `path`: without one, folders are relative to this file wherever it is moved."""
    content = {split.name: f"images/{split.name}" for split in splits} | {"names": dict(enumerate(classes))}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
