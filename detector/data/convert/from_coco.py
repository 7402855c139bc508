"""The content of COCO files for formats that hold a class and a box for each object; what they cannot hold is counted."""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from detector.coco_format import join_within
from detector.data.box_arrays import clip_to_images, corners, have_area, were_clipped
from detector.data.convert.writer import ConversionNotes, SourceImage, SourceObject
from detector.data.curation.whole_file import WholeFile, read_whole_file
from detector.data.image import read_size
from detector.errors import DataError

CARRIED = {  # keys of entries that are kept, or follow from what is kept
    "images": {"id", "file_name", "width", "height"},
    "annotations": {"id", "image_id", "category_id", "bbox", "area", "iscrowd"},
}
PLACEMENTS: dict[str, Callable[[Path, Path], object]] = {"copy": shutil.copyfile, "link": os.link}


@dataclass(frozen=True)
class SourceSplit:
    """The images of one COCO file."""

    name: str
    pictures: list[SourceImage]


def read_splits(
    paths: Sequence[Path], names: Sequence[str], notes: ConversionNotes, *, crowds: bool, outlines: bool = False
) -> tuple[list[SourceSplit], list[str]]:
    """The splits, and the class names by ascending category id of the first file.

    Boxes are clipped to their images, as in training; those without area are left out, and crowd
    regions where the format has no `crowds`. Raises DataError for a class that the
    first file lacks, for names of splits that no file could have, and with `outlines` for an object without one.
    """
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*", name) or names.count(name) > 1:
            raise DataError(
                f"{name!r}: a split needs a name of its own, of letters and digits; give the names by --split"
            )
    files = [read_whole_file(path, ["outlines"] if outlines else []) for path in paths]
    classes = [files[0].coco.category_names[row] for row in files[0].label_order()]
    for whole in files:
        for name in whole.coco.category_names:
            if name not in classes:
                nearest = difflib.get_close_matches(name, classes, n=1, cutoff=0.0)
                raise DataError(
                    f"{whole.coco.path}: {files[0].coco.path} has no class {name!r}; nearest: {', '.join(nearest)}; "
                    f"`detector merge` renames and drops classes"
                )
    return [SourceSplit(name, _pictures(whole, notes, crowds)) for name, whole in zip(names, files)], classes


def _pictures(whole: WholeFile, notes: ConversionNotes, crowds: bool) -> list[SourceImage]:
    coco = whole.coco
    sizes, boxes = coco.sizes[coco.image_rows], corners(coco.xywh)
    clipped = clip_to_images(boxes, sizes)
    pictures = [SourceImage(name, tuple(size), []) for name, size in zip(coco.file_names, coco.sizes.tolist())]
    facts = zip(
        clipped.tolist(), were_clipped(boxes, clipped).tolist(), have_area(clipped).tolist(), coco.crowd.tolist()
    )
    places = zip(coco.annotation_ids.tolist(), coco.image_rows.tolist(), coco.category_rows.tolist())
    outlines = [None] * len(boxes) if coco.outlines is None else coco.outlines.segmentations()
    for (xyxy, moved, solid, crowd), (number, image, category), outline in zip(facts, places, outlines):
        where = f"{coco.path}, id {number}"
        if not solid:
            notes.add("boxes have no area inside their image: left out", where)
            continue
        if crowd and not crowds:
            notes.add("crowd regions: left out, the format has none", where)
            continue
        if moved:
            notes.add("boxes were clipped to their image", where)
        pictures[image].boxes.append(SourceObject(coco.category_names[category], tuple(xyxy), crowd, outline))
    for section, keys in CARRIED.items():
        carried = keys if coco.outlines is None else {*keys, "segmentation"}
        for entry in whole.document[section]:
            for key in [
                key for key, value in entry.items() if key not in carried and value not in (None, 0, "", [], {})
            ]:
                notes.add(f"{section} have `{key}`: left out", f"{coco.path}, id {entry.get('id')}")
    return pictures


def reserve(names: dict[str, str], target: str, picture: SourceImage) -> str:
    """The name of the file that describes an image. Raises DataError where another image has it."""
    if target in names:
        raise DataError(
            f"{picture.file_name!r} and {names[target]!r} would both be described by {target}: rename one of the two, or "
            f"`detector merge --join-images` where it is one image"
        )
    names[target] = picture.file_name
    return target


def place_images(source: Path, targets: Mapping[Path, SourceImage], how: str) -> None:
    """Copy or hard-link the images, by the paths that they get. Raises DataError for an image of another size than stated."""
    for target, picture in tqdm(targets.items(), desc=f"{how} images", unit="img", disable=None):
        path = join_within(source, picture.file_name)
        size = read_size(path)
        if size != picture.size:
            raise DataError(
                f"{path}: is {size[1]} x {size[0]}, the annotations say {picture.size[1]} x {picture.size[0]}"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            PLACEMENTS[how](path.resolve(), target)
        except OSError as error:
            other = "; --copy-images works on every file system" if how == "link" else ""
            raise DataError(f"{path}: cannot be put into the new folder ({error.strerror}){other}") from error


def write_described(files: Mapping[Path, str]) -> None:
    """Write the texts of many small files into folders that are made."""
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def export_summary(splits: Sequence[SourceSplit], classes: Sequence[str], notes: ConversionNotes) -> list[str]:
    """What was written, in lines."""
    lines = [f"{s.name}: {len(s.pictures)} images, {sum(len(p.boxes) for p in s.pictures)} objects" for s in splits]
    return [*notes.lines(), *lines, f"{len(classes)} classes: {', '.join(classes)}"]
