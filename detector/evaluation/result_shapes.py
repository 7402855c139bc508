"""Masks and keypoints of results in COCO form: checked, and in the one form that is scored."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from pycocotools import mask as coco_mask

from detector.coco_format import is_coordinates
from detector.data.coco_reader import CocoFile
from detector.data.coco_shapes import is_polygon, valid_runs
from detector.errors import DataError
from detector.records.outlines import Outlines

KEY_OF = {"masks": "segmentation", "keypoints": "keypoints"}  # of a result, by the field of Detections


def fields_of(results: Any) -> set[str]:
    """The fields that some result has a value of."""
    rows = [row for row in results if isinstance(row, dict)] if isinstance(results, list) else []
    return {field for field, key in KEY_OF.items() if any(row.get(key) is not None for row in rows)}


def take_shapes(
    results: Sequence[Any], entries: Sequence[dict[str, Any]], coco: CocoFile, fields: Collection[str]
) -> None:
    """Give each entry the `segmentation`, with its `mask_area`, and the `keypoints` of its result, those among `fields`.

    Results without a box, as other tools write those of masks or keypoints, get the one around these.
    Raises DataError for one that is missing or malformed, or of another image size.
    """
    size_of = dict(zip(coco.image_ids.tolist(), coco.sizes.tolist()))
    for number, (item, entry) in enumerate(zip(results, entries)):
        for field in sorted(fields, reverse=True):  # masks first: their boxes are exact
            key = KEY_OF[field]
            where = f"result {number} (image {entry['image_id']!r:.80}): {key}"
            if item.get(key) is None:
                raise DataError(f"{where} is missing, and other results have one; give it to all or to none")
            if field == "masks":
                entry["segmentation"] = rle = _run_lengths(item[key], tuple(size_of[entry["image_id"]]), where)
                entry["mask_area"] = float(coco_mask.area(rle))
                entry["mask_score"] = _score(item.get("mask_score", entry["score"]), f"result {number}: mask_score")
                around = [float(v) for v in coco_mask.toBbox(rle)]
            else:
                entry["keypoints"] = points = _points(item[key], coco, where)
                check_names(item.get("keypoint_names"), coco, where)
                around = box_around(points)
            if "bbox" not in entry:
                entry |= {"bbox": around, "area": around[2] * around[3]}


def _run_lengths(value: Any, size: tuple[int, int], where: str) -> dict[str, Any]:
    """Compressed run lengths of a `segmentation`."""
    if isinstance(value, dict) and isinstance(value.get("counts"), bytes):  # as pycocotools encodes masks
        value = value | {"counts": value["counts"].decode("ascii", "replace")}
    runs = isinstance(value, dict) and valid_runs(value) is not None
    if not runs and not (isinstance(value, list) and value and all(map(is_polygon, value))):
        raise DataError(
            f'{where} must be run lengths {{"size", "counts"}} or polygons [[x1, y1, ...]], not {value!r:.80}'
        )
    if runs and tuple(value["size"]) != size:
        raise DataError(f"{where} has the size {list(value['size'])}, its image {list(size)} (height, width)")
    if runs and isinstance(value["counts"], str):
        return value
    [rle] = Outlines.of([value], size).rle()
    return rle


def _score(value: Any, where: str) -> float:
    if not is_coordinates([value]):
        raise DataError(f"{where} must be a finite number, not {value!r:.80}; correct it, or leave it out")
    return float(value)


def _points(value: Any, coco: CocoFile, where: str) -> list[float]:
    """Keypoints x, y, score of each in turn."""
    assert coco.keypoints is not None
    length = 3 * coco.keypoints.shape[1]
    if not is_coordinates(value) or len(value) != length:
        raise DataError(f"{where} must be {length} finite numbers, x, y and score of each, not {value!r:.80}")
    return value


def check_names(names: Any, coco: CocoFile, where: str) -> None:
    """Raise DataError for names in another order than that of the file, if both say them."""
    [*known] = {tuple(pose.names) for pose in coco.poses or () if pose.names}
    if names is not None and len(known) == 1 and list(names) != [*known[0]]:
        raise DataError(
            f"{where}: their names are {names!r:.200}, in {coco.path} {[*known[0]]!r:.200}; both must have the same order"
        )


def box_around(points: Sequence[float]) -> list[float]:
    """The box [x, y, width, height] around keypoints x, y, score of each in turn."""
    x, y = points[0::3], points[1::3]
    return [min(x), min(y), max(x) - min(x), max(y) - min(y)]
