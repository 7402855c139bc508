"""Pascal VOC: an XML file for every image (Annotations), the images (JPEGImages), and lists of them (ImageSets/Main)."""

from __future__ import annotations

import difflib
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detector.coco_format import join_within
from detector.data.convert.voc_regions import add_outlines
from detector.data.convert.writer import (
    MAX_BYTES,
    ConversionNotes,
    SourceImage,
    SourceObject,
    checked_classes,
    coco_document,
    images_below,
    path_within,
)
from detector.data.convert.xml_reader import read_xml
from detector.data.image import MAX_PIXELS, read_size
from detector.errors import DataError

DIFFICULT = {  # treatment of objects that VOC's own evaluation ignores
    "crowd": "difficult objects are marked iscrowd: neither learnt, nor scored, nor a mistake to find",
    "keep": "difficult objects are kept like any other",
    "drop": "difficult objects are left out",
}
FLAGS = {"0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}
ORIGIN = {  # by the first pixel's number
    1: "corners are 1-based pixels, both inclusive (the VOC standard; --zero-based for labelImg's): the box is "
    "xmin - 1, ymin - 1, xmax, ymax",
    0: "corners are 0-based edges (--zero-based): the box is xmin, ymin, xmax, ymax as they stand",
}


def convert_voc(
    folder: Path, *, split: str | None = None, classes: Sequence[str] | None = None, zero_based: bool = False,
    difficult: str = "crowd", max_pixels: int = MAX_PIXELS,
) -> dict[str, Any]:  # fmt: skip
    """The COCO document of a VOC folder.

    `split`: of ImageSets/Main; None takes every XML file. `classes`: their names in order; None sorts the names of all XML
    files, whatever the split, so that splits agree. `difficult`: a key of DIFFICULT. Raises DataError with file and element.
    """
    places = _Places(folder)
    names = checked_classes(_all_names(places) if classes is None else classes, "--classes" if classes else folder)
    chosen = list(places.annotations) if split is None else _listed(folder, split, places)
    notes, origin = ConversionNotes(), 0 if zero_based else 1

    def pictures() -> Iterator[SourceImage]:
        for name in chosen:
            picture = _picture(places, name, names, origin, difficult, max_pixels, notes)
            if picture is None:
                file = places.annotations[name].relative_to(folder).as_posix()
                notes.add("XML files have no image: left out", file)
            else:
                yield picture
        for path in sorted(places.unused) if split is None else ():
            notes.add("images have no XML file of their own: left out", path.relative_to(folder).as_posix())

    conventions = [
        ORIGIN[origin],
        DIFFICULT[difficult],
        "class names are sorted" if classes is None else "class names are those of --classes, in that order",
        "the outline of an object is the region of SegmentationObject/NAME.png whose box agrees best, if there is one",
        "the image of an XML file has its name, or else the <filename> that it says; its size is the file's own",
        f"images of ImageSets/Main/{split}.txt" if split else "an image for every XML file",
    ]
    return coco_document(pictures(), names, f"Pascal VOC, {folder.name}", conventions, notes)


class _Places:
    """The files of a VOC folder, by their names without suffix."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder")
        self.folder = folder
        files = sorted(path for path in folder.rglob("*.xml") if path.is_file() and not path.name.startswith("."))
        named = next((d for d in (folder / "Annotations", folder / "annotations") if d.is_dir()), None)
        files = [path for path in files if named in path.parents] if named else files
        if not files:
            raise DataError(f"{named or folder}: no XML files in it; name a VOC folder")
        xml = named or _common(files)
        self.annotations = {path.relative_to(xml).with_suffix("").as_posix(): path for path in files}
        pictures = next((d for d in (folder / "JPEGImages", folder / "images") if d.is_dir()), None)
        self.pictures = pictures or _common([folder / name for name in images_below(folder)] or [folder / "none"])
        self.images: dict[str, list[str]] = {}
        for name in images_below(self.pictures):
            self.images.setdefault(Path(name).with_suffix("").as_posix(), []).append(name)
        self.unused = {self.pictures / name for names in self.images.values() for name in names}

    def image(self, name: str, tree: ET.Element) -> Path | None:
        """The image that belongs to an XML file, which is then used; None without one. Raises DataError for several."""
        path = self._find(name, tree)
        if path is not None:
            self.unused.discard(path)
        return path

    def _find(self, name: str, tree: ET.Element) -> Path | None:
        own, said, where = self.images.get(name, []), (tree.findtext("filename") or "").strip(), self.annotations[name]
        if len(own) == 1:
            return path_within(self.pictures, own[0], where)
        path = path_within(self.pictures, said, f"{where}: filename") if said else None
        if path is not None and path.is_file():
            return path
        if own:
            raise DataError(
                f"{where}: its image is not clear: {', '.join(own)} in {self.pictures} all have its name, and none is its "
                f"filename {said!r}; correct the filename, or remove the images that it does not mean"
            )
        return None


def _common(files: Sequence[Path]) -> Path:
    """The deepest folder that contains all these files."""
    return Path(os.path.commonpath([path.parent for path in files]))


def _parse(path: Path) -> ET.Element:
    return read_xml(path, "annotation", "a VOC annotation", MAX_BYTES)


def _all_names(places: _Places) -> list[str]:
    """The names of all objects, sorted."""
    objects = (found for path in places.annotations.values() for found in _objects(_parse(path), path))
    return sorted({_text(element, "name", where) for element, where in objects})


def _listed(folder: Path, split: str, places: _Places) -> list[str]:
    """The images of a split."""
    sets = folder / "ImageSets" / "Main"
    path = join_within(sets, f"{split}.txt")
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        there = ", ".join(sorted(file.stem for file in sets.glob("*.txt"))) or "none"
        raise DataError(f"{path}: no such list of images ({error}); there are: {there}") from error
    for number, words in enumerate(lines, start=1):
        if len(words) > 1:
            raise DataError(f"{path}, line {number}: expected the name of an image alone; is this the list of a class?")
        if words and words[0] not in places.annotations:
            raise DataError(f"{path}, line {number}: {words[0]!r} has no XML file")
    names = [words[0] for words in lines if words]
    return sorted(set(names))


def _objects(tree: ET.Element, path: Path) -> Iterator[tuple[ET.Element, str]]:
    """Every object, and where it stands."""
    return ((element, f"{path}: object {n}") for n, element in enumerate(tree.findall("object"), start=1))


def _text(element: ET.Element, tag: str, where: str) -> str:
    text = (element.findtext(tag) or "").strip()
    if not text:
        raise DataError(f"{where}: <{tag}> is missing or empty")
    return text


def _flag(element: ET.Element, tag: str, where: str) -> bool:
    """0, 1, false, no, true or yes in any case; without the element, no."""
    if element.find(tag) is None:
        return False
    text = _text(element, tag, where)
    if text.lower() not in FLAGS:
        raise DataError(f"{where}: <{tag}> is {text!r:.80}, expected 0 or 1")
    return FLAGS[text.lower()]


def _known(name: str, classes: Sequence[str], where: str) -> str:
    """The name, if it is one of the classes. Raises DataError that names the nearest."""
    if name in classes:
        return name
    nearest = difflib.get_close_matches(name, classes, n=1, cutoff=0.0)
    raise DataError(f"{where}: the class {name!r} is none of --classes; nearest: {', '.join(nearest)}")


def _number(element: ET.Element, tag: str, where: str) -> float:
    text = _text(element, tag, where)
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not abs(number) < 1e9:  # NaN fails, too
        raise DataError(f"{where}: <{tag}> is {text!r:.80}, expected a number of pixels")
    return number


def _picture(
    places: _Places, name: str, classes: Sequence[str], origin: int, difficult: str, max_pixels: int, notes: ConversionNotes
) -> SourceImage | None:  # fmt: skip
    """The image and objects of an XML file; None if it has no image."""
    where = places.annotations[name]
    tree = _parse(where)
    image = places.image(name, tree)
    if image is None:
        return None
    size = read_size(image, max_pixels, "--max-pixels")
    _compare_size(tree, size, where, image)
    boxes = []
    for element, place in _objects(tree, where):
        hard = _flag(element, "difficult", place)
        if hard and difficult == "drop":
            continue
        label = _known(_text(element, "name", place), classes, place)
        boxes.append(SourceObject(label, _corners(element, place, origin, notes), hard and difficult == "crowd"))
    add_outlines(boxes, places.folder, name, size, notes)
    return SourceImage(image.relative_to(places.folder).as_posix(), size, boxes)


def _compare_size(tree: ET.Element, size: tuple[int, int], where: Path, image: Path) -> None:
    """Raise DataError if <size> differs from the image. Some tools leave it out or write 0."""
    element, (height, width) = tree.find("size"), size
    if element is None:
        return
    said = tuple(_number(element, tag, f"{where}: size") for tag in ("width", "height"))
    if said not in ((width, height), (0, 0)):
        raise DataError(
            f"{where}: <size> says {said[0]:g} x {said[1]:g}, but {image} (upright by its EXIF orientation) is "
            f"{width} x {height}; correct the size and the boxes"
        )


def _corners(element: ET.Element, where: str, origin: int, notes: ConversionNotes) -> tuple[float, float, float, float]:
    corners = element.find("bndbox")
    if corners is None:
        raise DataError(f"{where}: has no <bndbox>")
    x1, y1, x2, y2 = (_number(corners, tag, f"{where}, bndbox") for tag in ("xmin", "ymin", "xmax", "ymax"))
    if x2 < x1 or y2 < y1:
        raise DataError(f"{where}, bndbox: ({x1:g}, {y1:g}) to ({x2:g}, {y2:g}) is upside down; exchange the corners")
    if origin == 1 and min(x1, y1) == 0:
        notes.add("boxes begin at pixel 0, which 1-based data never do; --zero-based may be right", where)
    return x1 - origin, y1 - origin, x2, y2
