"""COCO's conventions: results with xywh boxes and category ids; valid names, paths and boxes in its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from detector.errors import UNPRINTABLE, DataError

ONE_CLASS = {1: "object"}  # category id and name where all classes count as one


def coco_results(
    rows: Mapping[str, Tensor], class_names: Sequence[str] | None, image_id: int, category_ids: Sequence[int],
    shapes: dict[str, list[Any]],
) -> list[dict[str, Any]]:  # fmt: skip
    """The detections of one image in COCO results form; `category_ids` maps labels to the annotation file's ids.

    `rows` are their fields (n, ...), `shapes` lists of what is to be added of masks and keypoints. With class names each has a
    `category_name`. An added field is written under its name.
    """
    fields = dict(rows)
    boxes, scores, labels = to_xywh(fields.pop("boxes")), fields.pop("scores"), fields.pop("labels")
    added = {name: value.tolist() for name, value in fields.items()} | shapes
    columns = zip(boxes.tolist(), scores.tolist(), labels.tolist(), *added.values())
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        | ({} if class_names is None else {"category_name": class_names[label]})
        | dict(zip(added, more))
        for box, score, label, *more in columns
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
    return is_coordinates(value) and len(value) == 4


def is_coordinates(value: Any) -> bool:
    """Whether `value` is a list of numbers below 1e9."""
    return isinstance(value, list) and all(type(x) in (int, float) and abs(x) < 1e9 for x in value)
