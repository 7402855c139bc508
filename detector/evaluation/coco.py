"""COCO's twelve numbers, computed by pycocotools. Here boxes become xywh again and labels the file's category ids."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.coco_format import ONE_CLASS
from detector.errors import DataError

METRICS = "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split()  # the order of COCOeval.stats


@dataclass
class GroundTruth:
    """What a COCO annotation file says about boxes."""

    path: Path
    images: list[Any]  # ids
    categories: dict[Any, str]  # id -> name
    objects: list[dict[str, Any]]  # id (from 1), image_id, category_id, bbox (xywh), area, iscrowd


def evaluate_results(
    annotations: str | Path,
    results: list[dict[str, Any]],
    image_ids: list[int] | None = None,
    category_ids: list[int] | None = None,
    *,
    as_one_class: bool = False,
) -> dict[str, dict[str, Any]]:
    """Score results in COCO form: {"bbox": the twelve numbers, "per_class": {name: {"AP", "AP50"}}}, fractions 0..1.

    `image_ids` and `category_ids` restrict the evaluation, None means all. `as_one_class`: all categories are ONE_CLASS,
    and so are those of the results. A number is -1 where the annotations hold no such object (COCO's convention), but
    every number is 0 where there are no results at all. Raises DataError for a malformed file or entry and for ids that
    the annotations lack.
    """
    truth = read_ground_truth(annotations)
    if as_one_class:
        truth, category_ids = _as_one_class(truth, category_ids), None
    found = _read_results(results, truth)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
        evaluation = COCOeval(_index(truth, truth.objects), _index(truth, found), "bbox")
        evaluation.params.imgIds = truth.images if image_ids is None else image_ids
        evaluation.params.catIds = sorted(truth.categories if category_ids is None else category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    lowest = -1.0 if results else 0.0
    precision = evaluation.eval["precision"][..., 0, -1]  # (10 IoUs, 101 recalls, K): all areas, 100 detections
    per_class = {
        truth.categories[category]: {"AP": max(_mean(p), lowest), "AP50": max(_mean(p[0]), lowest)}
        for category, p in zip(evaluation.params.catIds, np.moveaxis(precision, -1, 0))
    }
    bbox = {name: max(float(value), lowest) for name, value in zip(METRICS, evaluation.stats)}
    return {"bbox": bbox, "per_class": per_class}


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; DataError names the file that is missing, unreadable or not JSON."""
    path = Path(path)
    try:
        if path.exists() and not (path.is_file() or path.is_fifo()):  # a device may have no end
            raise DataError(f"{path}: is no file; check the path")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:  # bad syntax, bad encoding, absurd nesting
        raise DataError(f"{path}: is not valid JSON ({error}); write or download it again") from error


def read_ground_truth(path: str | Path) -> GroundTruth:
    """Read a COCO annotation file; `info`, `area` (then width x height), `iscrowd` and ids of objects may be absent."""
    content = read_json(path)
    try:
        images = {image["id"]: None for image in content["images"]}
        categories = {category["id"]: str(category["name"]) for category in content["categories"]}
        annotations = list(content["annotations"])
    except (KeyError, TypeError) as error:
        needs = "the lists images (each with an id), categories (id and name) and annotations"
        raise DataError(f"{path}: is not a COCO annotation file, it needs {needs}") from error
    if len(set(categories.values())) < len(content["categories"]):
        raise DataError(f"{path}: two categories share an id or a name; rename or merge them")
    truth = GroundTruth(Path(path), list(images), categories, [])
    truth.objects = _entries(annotations, f"{path}: annotation", truth)
    for entry, item in zip(truth.objects, annotations):
        entry["area"] = _number(item.get("area", entry["area"]), f"{path}: area of annotation {item.get('id')!r:.40}")
        entry["iscrowd"] = int(bool(item.get("iscrowd")))
    return truth


def summary_table(metrics: dict[str, dict[str, Any]]) -> str:
    """The metrics of `evaluate_results`, and of the proposals where there are any, as lined-up text."""
    tables = [[["", *names], ["bbox", *_row(metrics["bbox"], names)]] for names in (METRICS[:6], METRICS[6:])]
    classes = [[name, *_row(scores, ["AP", "AP50"])] for name, scores in metrics["per_class"].items()]
    tables.append([["class", "AP", "AP50"], *classes])
    texts = [_lined_up(rows) for rows in tables]
    return "\n\n".join(texts + ([recall_table(metrics["proposals"])] if "proposals" in metrics else []))


def recall_table(recall: dict[str, float]) -> str:
    """AR of proposals, as lined-up text."""
    rows = [[name, *_row(recall, [name + size for size in ("", *"sml")])] for name in ("AR100", "AR1000")]
    return _lined_up([["proposals", "all", "small", "medium", "large"], *rows])


def _as_one_class(truth: GroundTruth, category_ids: list[int] | None) -> GroundTruth:
    """The objects of the chosen categories, which are told apart no more."""
    chosen = truth.categories if category_ids is None else category_ids
    [one] = ONE_CLASS
    objects = [entry | {"category_id": one} for entry in truth.objects if entry["category_id"] in chosen]
    return GroundTruth(truth.path, truth.images, dict(ONE_CLASS), objects)


def _lined_up(rows: list[list[str]]) -> str:
    width = max(len(row[0]) for row in rows)
    return "\n".join(row[0].ljust(width) + "".join(cell.rjust(10) for cell in row[1:]) for row in rows)


def _row(values: dict[str, float], names: Iterable[str]) -> list[str]:
    """Cells of six digits, a dash where there is no object to measure on."""
    return [f"{values[name]:.6f}" if values[name] >= 0 else "-" for name in names]


def _mean(precision: np.ndarray) -> float:
    """The mean over what COCOeval could measure, -1 where it could measure nothing."""
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else -1.0


def _index(truth: GroundTruth, entries: list[dict[str, Any]]) -> COCO:
    """A COCO object made in memory: `COCO.loadRes` cannot take an empty list and, in some versions, demands `info`."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in truth.images],
        "categories": [{"id": category} for category in truth.categories],
        "annotations": entries,
    }
    coco.createIndex()
    return coco


def _read_results(results: list[dict[str, Any]], truth: GroundTruth) -> list[dict[str, Any]]:
    """Results as COCOeval wants them; the caller's are left as they are."""
    if not isinstance(results, list):
        raise DataError(f"results must be a list of COCO results, one per detection, not a {type(results).__name__}")
    entries = _entries(results, "result", truth)
    for number, (entry, item) in enumerate(zip(entries, results)):
        entry["score"] = _number(item.get("score"), f"score of result {number}")
    return entries


def _entries(items: list[Any], what: str, truth: GroundTruth) -> list[dict[str, Any]]:
    """Boxes in the form that COCOeval indexes, checked; numbered from 1 because it takes the id 0 for "unmatched"."""
    entries = [_entry(item, number, what) for number, item in enumerate(items)]
    for key, known in (("image_id", set(truth.images)), ("category_id", set(truth.categories))):
        unknown = sorted({entry[key] for entry in entries} - known, key=lambda i: (isinstance(i, str), i))
        if unknown:
            more = f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""
            listed = ", ".join(f"{i!r:.80}" for i in unknown[:20]) + more
            raise DataError(f"{what}s name {key} {listed}, which {truth.path} lacks; do they belong together?")
    return entries


def _entry(item: Any, number: int, what: str) -> dict[str, Any]:
    image, category, box = (
        item.get(k) if isinstance(item, dict) else None for k in ("image_id", "category_id", "bbox")
    )
    if not isinstance(image, (int, str)) or not isinstance(category, (int, str)):
        raise DataError(f"{what} {number} must be an object with image_id, category_id and bbox, not {item!r:.80}")
    where = f"{what} {number} (image {image!r:.80}): bbox"
    if not isinstance(box, list) or len(box) != 4:
        raise DataError(f"{where} must be [x, y, width, height], not {box!r:.80}")
    box = [_number(value, where) for value in box]
    if min(box[2:]) < 0:
        raise DataError(f"{where} {box} has a negative width or height; it must be [x, y, width, height]")
    identity = {"id": number + 1, "image_id": image, "category_id": category}
    return identity | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}


def _number(value: Any, what: str) -> float:
    try:
        number = float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"{what} must be a finite number, not {value!r:.80}")
    return number
