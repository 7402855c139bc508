"""Results in COCO form: reading, checking, and the image that each one is of."""

from __future__ import annotations

import difflib
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.coco_reader import CocoFile
from detector.data.coco_rules import shown
from detector.data.image_names import match_names
from detector.errors import DataError

log = logging.getLogger("detector")


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; DataError names the file that is missing, unreadable or not JSON."""
    path = Path(path)
    try:
        if path.exists() and not (path.is_file() or path.is_fifo()):  # reading a device may never end
            raise DataError(f"{path}: is not a file; check the path")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:  # bad syntax, bad encoding, absurd nesting
        raise DataError(f"{path}: is not valid JSON ({error}); write or download it again") from error


def checked_results(results: list[dict[str, Any]], coco: CocoFile, names: dict[int, str]) -> list[dict[str, Any]]:
    """Checked results in the form that COCOeval indexes; the caller's list is not changed.

    Results with `file_name` belong to the image with that name, whatever number their `image_id` is.
    """
    if not isinstance(results, list):
        raise DataError(f"results must be a list of COCO results, one per detection, not a {type(results).__name__}")
    entries = [_result(item, number) for number, item in enumerate(results)]
    _take_ids_by_name(results, entries, coco)
    _take_categories_by_name(results, entries, names, coco)
    for key, known in (("image_id", set(coco.image_ids.tolist())), ("category_id", set(names))):
        unknown = sorted({entry[key] for entry in entries} - known, key=lambda i: (isinstance(i, str), i))
        if unknown:
            more = f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""
            listed = ", ".join(f"{i!r:.80}" for i in unknown[:20]) + more
            raise DataError(f"results name {key} {listed}, which {coco.path} lacks; do they belong together?")
    return entries


def _take_categories_by_name(
    results: Sequence[Any], entries: Sequence[dict[str, Any]], names: dict[int, str], coco: CocoFile
) -> None:
    """Give the entries of results with a `category_name` the id of that category; log how many ids changed."""
    ids = {name: number for number, name in names.items()}
    changed: set[str] = set()
    for number, (item, entry) in enumerate(zip(results, entries)):
        name = item.get("category_name")
        if name is None:
            continue
        if name not in ids:
            near = difflib.get_close_matches(str(name), ids, n=1, cutoff=0.0)
            raise DataError(
                f"result {number}: its `category_name` is {name!r:.80}, which {coco.path} lacks (nearest: {', '.join(near)}); "
                "name the categories of both files alike, or remove `category_name` to go by `category_id`"
            )
        if entry["category_id"] != ids[name]:
            entry["category_id"] = ids[name]
            changed.add(name)
    if changed:
        log.warning(
            "results: %d categories have other ids than in %s; they are matched by their names", len(changed), coco.path
        )


def say_oddities(entries: Sequence[dict[str, Any]], coco: CocoFile) -> None:
    """Log how many images with objects have no result, and how many results are there twice."""
    twice = len(entries) - len({(e["image_id"], e["category_id"], *e["bbox"]) for e in entries})
    if twice:
        log.warning("note: %d results repeat another one's image, category and box, and count as mistakes", twice)
    owners = coco.image_ids[coco.image_rows[~coco.crowd]]
    missing = owners[~np.isin(owners, list({entry["image_id"] for entry in entries}))]
    if len(missing):
        log.warning(
            "note: %d of %d images with objects have no result, all %d objects there count as missed: were they skipped?",
            len(np.unique(missing)), len(np.unique(owners)), len(missing),
        )  # fmt: skip


def _take_ids_by_name(results: Sequence[Any], entries: Sequence[dict[str, Any]], coco: CocoFile) -> None:
    """Give the entries of results with a `file_name` the id of that image; log how many ids changed."""
    named = [number for number, item in enumerate(results) if item.get("file_name") is not None]
    if not named:
        return
    if len(named) < len(results):
        without = next(number for number, item in enumerate(results) if item.get("file_name") is None)
        raise DataError(
            f"result {without} has no `file_name`, but result {named[0]} has one; give it to all or to none"
        )
    name_of: dict[Any, str] = {}
    for number, (item, entry) in enumerate(zip(results, entries)):
        name, image = item["file_name"], entry["image_id"]
        if not isinstance(name, str):
            raise DataError(f"result {number}: `file_name` must be a string, not {name!r:.80}")
        if name_of.setdefault(image, name) != name:
            raise DataError(
                f"result {number}: image id {image!r:.80} is {name!r:.80} here and {name_of[image]!r:.80} in an earlier "
                "result; number the images of the results anew, or remove `file_name`"
            )
    ids = match_names(name_of.values(), coco)
    changed = sum(ids[name] != image for image, name in name_of.items())
    for item, entry in zip(results, entries):
        entry["image_id"] = ids[item["file_name"]]
    if changed:
        log.warning(
            "results: %d of %d images have other ids than in %s; they are matched by their file names",
            changed, len(name_of), coco.path,
        )  # fmt: skip


def _result(item: Any, number: int) -> dict[str, Any]:
    """One checked result, numbered from 1."""
    if not isinstance(item, dict):
        raise DataError(
            f"result {number} must be an object with image_id, category_id, bbox and score, not {item!r:.80}"
        )
    image, category, box = (item.get(key) for key in ("image_id", "category_id", "bbox"))
    for key, value in (("image_id", image), ("category_id", category)):
        if not isinstance(value, (int, str)) or isinstance(value, bool):
            found = f"is {shown(value)}" if key in item else "is missing"
            raise DataError(
                f"result {number}: `{key}` {found}; it must be an id of the annotation file (no decimal point)"
            )
    where = f"result {number} (image {image!r:.80}): bbox"
    identity: dict[str, Any] = {"id": number + 1, "image_id": image, "category_id": category, "iscrowd": 0}
    identity["score"] = _number(item.get("score"), f"score of result {number}")
    if box is None and any(item.get(key) is not None for key in ("segmentation", "keypoints")):
        return identity  # take_shapes adds a box
    if not isinstance(box, list) or len(box) != 4:
        raise DataError(f"{where} must be [x, y, width, height], not {box!r:.80}")
    box = [_number(value, where) for value in box]
    if min(box[2:]) < 0:
        raise DataError(f"{where} {box} has a negative width or height; it must be [x, y, width, height]")
    return identity | {"bbox": box, "area": box[2] * box[3]}


def _number(value: Any, what: str) -> float:
    try:
        number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"{what} must be a finite number, not {value!r:.80}")
    return number
