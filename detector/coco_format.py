"""COCO's conventions: results with xywh boxes and category ids; valid names, paths and boxes in its files."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from detector.errors import UNPRINTABLE, DataError
from detector.structures import Detections

ONE_CLASS = {1: "object"}  # category id and name where all classes count as one


def detections_to_results(detections: Detections, image_id: int, category_ids: list[int]) -> list[dict[str, Any]]:
    """The detections of one image in COCO results form; `category_ids` maps labels to the annotation file's ids.

    Detections with class names have them as `category_name`. A row field of a subclass is written under its own name.
    """
    found = detections.row_fields()
    boxes, scores, labels = to_xywh(found.pop("boxes")), found.pop("scores"), found.pop("labels")
    rows = zip(boxes.tolist(), scores.tolist(), labels.tolist(), *(value.tolist() for value in found.values()))
    names = detections.class_names
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        | ({} if names is None else {"category_name": names[label]})
        | dict(zip(found, more))
        for box, score, label, *more in rows
    ]


def to_xywh(boxes: Tensor) -> Tensor:
    """(R, 4) xyxy -> (R, 4) float64 xywh, the precision in which pycocotools computes."""
    low, high = boxes.to(torch.float64).split(2, dim=1)
    return torch.cat([low, high - low], dim=1)


def join_within(folder: Path, name: str) -> Path:
    """The path of `name` in `folder`. Raises DataError if it is outside, by `..` or by a symbolic link."""
    path = folder / name
    try:
        inside = stays_inside(name) and path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a loop of symbolic links
        inside = False
    if not inside:
        raise DataError(f"{name!r}: leads out of the image folder {folder}; put the file there, name it relative to it")
    return path


def stays_inside(name: Any) -> bool:
    """Whether `name` is a relative path without `..`, on any system (a Windows path accepts both kinds of slash)."""
    if not is_name(name):
        return False
    path = PureWindowsPath(name)
    return not path.anchor and ".." not in path.parts


def is_name(value: Any) -> bool:
    """Whether `value` is a string that can be printed on one line and stored: no control characters, no lone surrogates."""
    return isinstance(value, str) and value != "" and UNPRINTABLE.search(value) is None


def is_box(value: Any) -> bool:
    """Whether `value` is a list of four numbers below 1e9; NaN and infinity fail the comparison."""
    return isinstance(value, list) and len(value) == 4 and all(type(x) in (int, float) and abs(x) < 1e9 for x in value)
