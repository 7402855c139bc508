"""COCO's twelve metrics, computed by pycocotools from an annotation file and results in COCO form."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.coco_format import ONE_CLASS
from detector.data.coco_reader import CocoFile, read_coco_file
from detector.errors import DataError

METRICS = "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split()  # the order of COCOeval.stats


def evaluate_results(
    annotations: str | Path,
    results: list[dict[str, Any]],
    image_ids: list[int] | None = None,
    category_ids: list[int] | None = None,
    *,
    as_one_class: bool = False,
) -> dict[str, dict[str, Any]]:
    """Score results in COCO form: {"bbox": the twelve metrics, "per_class": {name: {"AP", "AP50"}}}, fractions 0..1.

    A metric is -1 where the annotations hold no such object (COCO's convention), but every metric is 0 without results.
    Raises DataError for a malformed file or result and for ids that the annotations lack.

    Args:
        annotations: COCO file of the ground truth.
        results: detections in COCO form, {image_id, category_id, bbox (xywh), score} each.
        image_ids: images to score; None scores all.
        category_ids: categories to score; None scores all.
        as_one_class: all these categories, and those of the results, count as ONE_CLASS.
    """
    coco = read_coco_file(annotations)
    chosen = coco.category_ids.tolist() if category_ids is None else list(category_ids)
    names = dict(zip(coco.category_ids.tolist(), coco.category_names))
    objects = ground_truth_entries(coco)
    if as_one_class:
        [one] = ONE_CLASS
        objects = [entry | {"category_id": one} for entry in objects if entry["category_id"] in set(chosen)]
        names, chosen = dict(ONE_CLASS), [one]
    detections = _read_results(results, coco, names)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(_index(coco, names, objects), _index(coco, names, detections), "bbox")
        evaluation.params.imgIds = coco.image_ids.tolist() if image_ids is None else image_ids
        evaluation.params.catIds = sorted(chosen)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    lowest = -1.0 if results else 0.0
    precision = evaluation.eval["precision"][..., 0, -1]  # (10 IoUs, 101 recalls, K): all areas, 100 detections
    per_class = {
        names[category]: {"AP": max(_mean(p), lowest), "AP50": max(_mean(p[0]), lowest)}
        for category, p in zip(evaluation.params.catIds, np.moveaxis(precision, -1, 0))
    }
    bbox = {name: max(float(value), lowest) for name, value in zip(METRICS, evaluation.stats)}
    return {"bbox": bbox, "per_class": per_class}


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


def ground_truth_entries(coco: CocoFile) -> list[dict[str, Any]]:
    """The annotations as COCOeval indexes them. They are numbered from 1, because COCOeval takes 0 for "unmatched"."""
    columns = (
        coco.image_ids[coco.image_rows].tolist(),
        coco.category_ids[coco.category_rows].tolist(),
        coco.xywh.tolist(),
        coco.areas.tolist(),
        coco.crowd.astype(int).tolist(),
    )
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd")
    return [{"id": number, **dict(zip(keys, row))} for number, row in enumerate(zip(*columns), start=1)]


def summary_table(metrics: dict[str, dict[str, Any]]) -> str:
    """The metrics of `evaluate_results`, and those of proposals if there are any, as aligned text."""
    tables = [[["", *names], ["bbox", *_row(metrics["bbox"], names)]] for names in (METRICS[:6], METRICS[6:])]
    classes = [[name, *_row(scores, ["AP", "AP50"])] for name, scores in metrics["per_class"].items()]
    tables.append([["class", "AP", "AP50"], *classes])
    texts = [_lined_up(rows) for rows in tables]
    return "\n\n".join(texts + ([recall_table(metrics["proposals"])] if "proposals" in metrics else []))


def recall_table(recall: dict[str, float]) -> str:
    """AR of proposals as aligned text."""
    rows = [[name, *_row(recall, [name + size for size in ("", *"sml")])] for name in ("AR100", "AR1000")]
    return _lined_up([["proposals", "all", "small", "medium", "large"], *rows])


def _lined_up(rows: list[list[str]]) -> str:
    width = max(len(row[0]) for row in rows)
    return "\n".join(row[0].ljust(width) + "".join(cell.rjust(10) for cell in row[1:]) for row in rows)


def _row(values: dict[str, float], names: Iterable[str]) -> list[str]:
    """Cells with six decimals; a dash where there are no objects."""
    return [f"{values[name]:.6f}" if values[name] >= 0 else "-" for name in names]


def _mean(precision: np.ndarray) -> float:
    """The mean over the valid entries of COCOeval; -1 without any."""
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else -1.0


def _index(coco: CocoFile, names: dict[int, str], entries: list[dict[str, Any]]) -> COCO:
    """A COCO object made in memory: `COCO.loadRes` rejects an empty list and, in some versions, a file without `info`."""
    index = COCO()
    index.dataset = {
        "images": [{"id": image} for image in coco.image_ids.tolist()],
        "categories": [{"id": category} for category in names],
        "annotations": entries,
    }
    index.createIndex()
    return index


def _read_results(results: list[dict[str, Any]], coco: CocoFile, names: dict[int, str]) -> list[dict[str, Any]]:
    """Checked results in the form that COCOeval indexes; the caller's list is not changed."""
    if not isinstance(results, list):
        raise DataError(f"results must be a list of COCO results, one per detection, not a {type(results).__name__}")
    entries = [_result(item, number) for number, item in enumerate(results)]
    for key, known in (("image_id", set(coco.image_ids.tolist())), ("category_id", set(names))):
        unknown = sorted({entry[key] for entry in entries} - known, key=lambda i: (isinstance(i, str), i))
        if unknown:
            more = f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""
            listed = ", ".join(f"{i!r:.80}" for i in unknown[:20]) + more
            raise DataError(f"results name {key} {listed}, which {coco.path} lacks; do they belong together?")
    return entries


def _result(item: Any, number: int) -> dict[str, Any]:
    """One checked result, numbered from 1."""
    keys = ("image_id", "category_id", "bbox")
    image, category, box = (item.get(key) if isinstance(item, dict) else None for key in keys)
    if not isinstance(image, (int, str)) or not isinstance(category, (int, str)):
        raise DataError(f"result {number} must be an object with image_id, category_id and bbox, not {item!r:.80}")
    where = f"result {number} (image {image!r:.80}): bbox"
    if not isinstance(box, list) or len(box) != 4:
        raise DataError(f"{where} must be [x, y, width, height], not {box!r:.80}")
    box = [_number(value, where) for value in box]
    if min(box[2:]) < 0:
        raise DataError(f"{where} {box} has a negative width or height; it must be [x, y, width, height]")
    score = _number(item.get("score"), f"score of result {number}")
    identity = {"id": number + 1, "image_id": image, "category_id": category}
    return identity | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0, "score": score}


def _number(value: Any, what: str) -> float:
    try:
        number = float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"{what} must be a finite number, not {value!r:.80}")
    return number
