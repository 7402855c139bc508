"""Several COCO files as one: classes are joined by name, ids stay where they are free, and nothing else is lost."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from detector.data.convert.writer import ConversionNotes
from detector.data.curation.whole_file import WholeFile
from detector.errors import DataError

APART = ("images", "annotations", "categories", "licenses")  # merged entry by entry
MEANING = ("keypoints", "skeleton")  # of a category: what the numbers of its annotations mean


def merge_files(
    files: Sequence[WholeFile], folders: Sequence[str], *, rename: Mapping[str, str], drop: Sequence[str], join_images: bool
) -> tuple[dict[str, Any], ConversionNotes]:  # fmt: skip
    """The merged document, and what changed on the way.

    Raises DataError for a class that no file has, and for an image in two files that may not be joined.

    Args:
        files: in order; where two differ in anything that only one can keep, the first wins.
        folders: of each file's images, relative to the folder of the merged file's images; "" for that folder itself.
        rename: old class name -> new one; names that become equal are joined.
        drop: classes that are left out with their annotations.
        join_images: an image in two files becomes one with the annotations of both.
    """
    _check_names(files, rename, drop)
    notes = ConversionNotes()
    new_names = [_new_names(whole, rename, drop) for whole in files]
    categories = _merge_categories(files, new_names, notes)
    if not categories:
        raise DataError(f"{files[0].coco.path}: --drop leaves no class; drop fewer")
    licenses, license_ids = _merge_licenses(files)
    images, image_ids = _merge_images(files, folders, license_ids, join_images, notes)
    category_ids = {entry["name"]: entry["id"] for entry in categories}
    labels = [[None if name is None else category_ids[name] for name in names] for names in new_names]
    annotations = _merge_annotations(files, image_ids, labels, notes)
    merged = {"images": images, "annotations": annotations, "categories": categories}
    merged |= {"licenses": licenses} if any("licenses" in whole.document for whole in files) else {}
    return _other_sections(files, notes) | merged, notes


class _FreeIds:
    """Keeps an id the first time that it is asked for; then gives the smallest positive ones that nobody asks for."""

    def __init__(self, wanted: Iterable[int]) -> None:
        wanted = set(wanted)
        self._unused = (number for number in itertools.count(1) if number not in wanted)
        self._given: set[int] = set()

    def take(self, wanted: int) -> int:
        number = next(self._unused) if wanted in self._given else wanted
        self._given.add(number)
        return number


def _check_names(files: Sequence[WholeFile], rename: Mapping[str, str], drop: Sequence[str]) -> None:
    known = sorted({name for whole in files for name in whole.coco.category_names})
    for option, names in (("--rename", rename), ("--drop", drop)):
        for name in names:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
                raise DataError(f"{option}: no file has the class {name!r}; nearest: {', '.join(nearest) or 'none'}")
    for name in set(rename) & set(drop):
        raise DataError(f"{name!r}: a class is either renamed or dropped; remove one of the two")


def _new_names(whole: WholeFile, rename: Mapping[str, str], drop: Sequence[str]) -> list[str | None]:
    """The new name of each category row, None for a dropped one."""
    return [None if name in drop else rename.get(name, name) for name in whole.coco.category_names]


def _merge_categories(
    files: Sequence[WholeFile], new_names: Sequence[Sequence[str | None]], notes: ConversionNotes
) -> list[dict[str, Any]]:
    rows = [
        (whole, entry, number, name)
        for whole, names in zip(files, new_names)
        for entry, number, name in zip(whole.document["categories"], whole.coco.category_ids.tolist(), names)
        if name is not None
    ]
    ids, merged = _FreeIds(number for _, _, number, _ in rows), {}
    for whole, entry, number, name in rows:
        if name not in merged:
            merged[name] = entry | {"id": ids.take(number), "name": name}
            if merged[name]["id"] != number:
                notes.add("classes got another id", f"{name} of {whole.coco.path}")
            continue
        for key in sorted(entry.keys() - {"id", "name"}):
            if entry[key] != merged[name].setdefault(key, entry[key]):
                if key in MEANING:
                    raise DataError(f"{whole.coco.path}: the class {name!r} has other `{key}` than before; rename it")
                notes.add(f"classes differ in `{key}`: the first file's is kept", f"{name} of {whole.coco.path}")
    return list(merged.values())


def _merge_licenses(files: Sequence[WholeFile]) -> tuple[list[Any], list[dict[Any, int]]]:
    """The licences, equal ones once, and for each file its id -> the new id."""
    listed = [whole.document.get("licenses") for whole in files]
    known = [[entry for entry in own if _has_id(entry)] if isinstance(own, list) else [] for own in listed]
    ids, merged = _FreeIds(entry["id"] for own in known for entry in own), list[Any]()
    maps: list[dict[Any, int]] = []
    for own in known:
        maps.append({})
        for entry in own:
            content = {key: value for key, value in entry.items() if key != "id"}
            equal = next((there for there in merged if {k: v for k, v in there.items() if k != "id"} == content), None)
            if equal is None:
                equal = entry | {"id": ids.take(entry["id"])}
                merged.append(equal)
            maps[-1][entry["id"]] = equal["id"]
    odd = [entry for own in listed if isinstance(own, list) for entry in own if not _has_id(entry)]
    return merged + odd, maps


def _has_id(entry: Any) -> bool:
    return isinstance(entry, dict) and type(entry.get("id")) is int


def _merge_images(
    files: Sequence[WholeFile], folders: Sequence[str], license_ids: Sequence[Mapping[Any, int]], join: bool,
    notes: ConversionNotes,
) -> tuple[list[dict[str, Any]], list[list[int]]]:  # fmt: skip
    """The images, and for each file the new id of every row."""
    ids = _FreeIds(number for whole in files for number in whole.coco.image_ids.tolist())
    merged: list[dict[str, Any]] = []
    earlier: dict[PurePosixPath, dict[str, Any]] = {}  # images of earlier files; one file may list an image twice
    new_ids: list[list[int]] = []
    for whole, folder, licences in zip(files, folders, license_ids):
        path, own = whole.coco.path, [_moved(entry, folder, licences) for entry in whole.document["images"]]
        for entry, number in zip(own, whole.coco.image_ids.tolist()):
            same = earlier.get(PurePosixPath(entry["file_name"]))
            if same is None:
                entry["id"] = ids.take(number)
                merged.append(entry)
                if entry["id"] != number:
                    notes.add("images got another id", f"{entry['file_name']} of {path}")
            else:
                _join(same, entry, path, join)
                notes.add("images are in two files: joined", entry["file_name"])
        new_ids.append([entry["id"] for entry in own])
        earlier = {PurePosixPath(entry["file_name"]): entry for entry in own} | earlier
    return merged, new_ids


def _moved(entry: dict[str, Any], folder: str, licences: Mapping[Any, int]) -> dict[str, Any]:
    """An image entry with its name relative to the common folder, and the new id of its licence."""
    moved = entry | {"file_name": f"{folder}/{entry['file_name']}" if folder else entry["file_name"]}
    if type(entry.get("license")) is int:
        moved["license"] = licences.get(entry["license"], entry["license"])
    return moved


def _join(first: dict[str, Any], other: dict[str, Any], path: Path, join: bool) -> None:
    """Give the first entry what only the other one has, and the other one its id."""
    where = f"{path}: images, id {other['id']}: {other['file_name']!r}"
    if not join:
        raise DataError(
            f"{where} is in an earlier file, too; --join-images makes them one image with the annotations of both, "
            f"--images tells apart equal names in different folders"
        )
    sizes = [(entry["width"], entry["height"]) for entry in (first, other)]
    if sizes[0] != sizes[1]:
        raise DataError(f"{where}: has the size {sizes[1]}, in an earlier file {sizes[0]}; correct one of them")
    other["id"] = first["id"]
    first |= {key: value for key, value in other.items() if key not in first}


def _merge_annotations(
    files: Sequence[WholeFile], image_ids: Sequence[Sequence[int]], category_ids: Sequence[Sequence[int | None]],
    notes: ConversionNotes,
) -> list[dict[str, Any]]:  # fmt: skip
    """The annotations of the classes that are kept; of a joined image those that two files have are kept once."""
    ids = _FreeIds(number for whole in files for number in whole.coco.annotation_ids.tolist())
    merged: list[dict[str, Any]] = []
    earlier: set[tuple] = set()
    for whole, images, categories in zip(files, image_ids, category_ids):
        coco, own = whole.coco, []
        rows = zip(
            coco.annotation_ids.tolist(), coco.image_rows.tolist(), coco.category_rows.tolist(), coco.crowd.tolist()
        )
        for entry, (number, image, category, crowd) in zip(whole.document["annotations"], rows):
            key = (images[image], categories[category], *entry["bbox"], crowd)
            if categories[category] is None:
                notes.add("annotations are of a dropped class", f"{coco.path}, id {number}")
            elif key in earlier:
                notes.add("annotations are equal to one of an earlier file: kept once", f"{coco.path}, id {number}")
            else:
                own.append(key)
                moved = {"id": ids.take(number), "image_id": images[image], "category_id": categories[category]}
                merged.append(entry | moved)
        earlier.update(own)
    return merged


def _other_sections(files: Sequence[WholeFile], notes: ConversionNotes) -> dict[str, Any]:
    """`info` and any section that COCO does not name, each of the first file that has it."""
    merged: dict[str, Any] = {}
    for whole in files:
        for key in [key for key in whole.document if key not in APART]:
            if merged.setdefault(key, whole.document[key]) != whole.document[key]:
                notes.add(f"files have another `{key}`: the first one's is kept", whole.coco.path)
    return merged
