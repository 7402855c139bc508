"""The images of an annotation file by their file names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from detector.data.coco_reader import CocoFile
from detector.data.near_names import NearNames
from detector.errors import DataError


def match_names(names: Iterable[str], coco: CocoFile) -> dict[str, int]:
    """The image id in a COCO file of each file name.

    A name means the image with the same `file_name`. Names may be relative to another folder: without an equal name it means
    the only image whose `file_name` ends with it, or with which it ends, in whole parts of the path. Raises DataError for a
    name that fits no image or several, and for two names that fit the same image.
    """
    ids: dict[str, list[int]] = defaultdict(list)
    by_last_part: dict[str, set[str]] = defaultdict(set)
    for file_name, image_id in zip(coco.file_names, coco.image_ids.tolist()):
        ids[file_name].append(image_id)
        by_last_part[PurePosixPath(file_name).name].add(file_name)
    found: dict[str, int] = {}
    name_of: dict[int, str] = {}
    for name in dict.fromkeys(names):
        found[name] = _only_id(name, coco, ids, by_last_part)
        other = name_of.setdefault(found[name], name)
        if other != name:
            raise DataError(
                f"{coco.path}: the file names {other!r} and {name!r} both fit the image {found[name]}; name the images "
                "relative to the same folder as the annotations"
            )
    return found


def _only_id(name: str, coco: CocoFile, ids: dict[str, list[int]], by_last_part: dict[str, set[str]]) -> int:
    alike = [name] if name in ids else sorted(n for n in by_last_part[PurePosixPath(name).name] if _ends_with(n, name))
    found = [image_id for other in alike for image_id in ids[other]]
    if len(found) == 1:
        return found[0]
    if not found:
        twin = NearNames(ids).twin(name)
        there = f"; it has {twin.name!r}, which differs by {' and '.join(twin.differences)}" if twin else ""
        raise DataError(
            f"{coco.path}: has no image with the file name {name!r}{there}; is this the annotation file of these images?"
        )
    raise DataError(
        f"{coco.path}: the file name {name!r} fits the images {', '.join(map(repr, alike[:3]))} (ids "
        f"{', '.join(map(str, found[:3]))}); name the images relative to the same folder as the annotations"
    )


def _ends_with(a: str, b: str) -> bool:
    """Whether the shorter of two paths is the end of the longer one, in whole parts."""
    first, second = PurePosixPath(a).parts, PurePosixPath(b).parts
    shorter = min(len(first), len(second))
    return first[-shorter:] == second[-shorter:]
