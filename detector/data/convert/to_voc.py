"""Pascal VOC: Annotations/NAME.xml, JPEGImages/NAME.jpg and ImageSets/Main/SPLIT.txt."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from detector.data.convert.from_coco import export_summary, place_images, read_splits, reserve, write_described
from detector.data.convert.writer import ConversionNotes, SourceImage, SourceObject, rounded_value


def write_voc(
    folder: Path, paths: Sequence[Path], names: Sequence[str], *, images: Path | None = None, placement: str = "copy",
    whole_pixels: bool = False,
) -> list[str]:  # fmt: skip
    """The same as `write_yolo`; with `whole_pixels` corners are rounded to integers."""
    notes, texts, targets = ConversionNotes(), {}, {}
    splits, classes = read_splits(paths, names, notes, crowds=True)
    taken: dict[str, str] = {}
    for split in splits:
        listed = []
        for picture in split.pictures:
            name = Path(picture.file_name).with_suffix("").as_posix()
            where = folder / reserve(taken, f"Annotations/{name}.xml", picture)
            texts[where] = _xml(picture, whole_pixels, notes)
            targets[folder / "JPEGImages" / picture.file_name] = picture
            if name.split() == [name]:
                listed.append(name)
            else:
                notes.add("images with a space in their name: not in ImageSets, whose lines end there", name)
        texts[folder / "ImageSets" / "Main" / f"{split.name}.txt"] = "".join(f"{name}\n" for name in listed)
    write_described(texts)
    if images is not None:
        place_images(images, targets, placement)
    return export_summary(splits, classes, notes)


def _xml(picture: SourceImage, whole_pixels: bool, notes: ConversionNotes) -> str:
    height, width = picture.size
    root = ET.Element("annotation")
    _add(root, folder="JPEGImages", filename=Path(picture.file_name).name)
    _add(ET.SubElement(root, "size"), width=width, height=height, depth=3)
    _add(root, segmented=0)
    for box in picture.boxes:
        element = ET.SubElement(root, "object")
        _add(element, name=box.name, pose="Unspecified", truncated=0, difficult=int(box.crowd))
        corners = _corners(box, whole_pixels, notes, picture.file_name)
        _add(ET.SubElement(element, "bndbox"), **corners)
    ET.indent(root, "\t")
    return ET.tostring(root, encoding="unicode") + "\n"


def _add(element: ET.Element, **texts: object) -> None:
    for tag, text in texts.items():
        ET.SubElement(element, tag).text = str(text)


def _corners(box: SourceObject, whole_pixels: bool, notes: ConversionNotes, where: str) -> dict[str, float]:
    """1-based pixels, both inclusive: the edges x1..x2 are the pixels x1 + 1..x2."""
    x1, y1, x2, y2 = (round(value) for value in box.xyxy) if whole_pixels else box.xyxy
    if min(x2 - x1, y2 - y1) < 1:
        notes.add("boxes are thinner than a pixel: widened to one", where)
        x1, y1 = min(x1, max(x2 - 1, 0)), min(y1, max(y2 - 1, 0))  # to the left, where the image has no end
        x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
    values = [rounded_value(value) for value in (x1 + 1, y1 + 1, x2, y2)]
    if not all(isinstance(value, int) for value in values):
        notes.add("boxes have fractions of a pixel; --whole-pixels rounds them for tools that fail", where)
    return dict(zip(("xmin", "ymin", "xmax", "ymax"), values))
