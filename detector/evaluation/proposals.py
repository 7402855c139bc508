"""Average recall of class-agnostic proposals: "What makes for effective detection proposals?", as COCO computes it."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask
from torch import Tensor

from detector.coco_format import to_xywh
from detector.data.coco_reader import read_coco_file
from detector.evaluation.coco import ground_truth_entries

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # IoU
AREAS = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}  # COCO's, both ends included
LIMITS = (100, 1000)  # proposals per image, FPN table 1


def proposal_recall(
    annotations: str | Path, proposals: dict[int, Tensor], category_ids: list[int] | None = None
) -> dict[str, float]:
    """AR of proposals {image id: (R, 4) xyxy boxes of the original image, best first} over these images.

    The keys are "AR100" and "AR1000", also with s, m or l appended; -1 where there is no object of that size. Crowd
    regions are left out. The values are those of COCOeval with useCats = 0, which is too slow for 1000 proposals.
    """
    objects = _objects_by_image(annotations, category_ids)
    ranks: dict[str, list[np.ndarray]] = {size: [np.zeros((len(THRESHOLDS), 0))] for size in AREAS}
    for image_id, boxes in proposals.items():
        here = objects[image_id]
        area = np.array([entry["area"] for entry in here])
        iou = _iou(boxes[: max(LIMITS)], [entry["bbox"] for entry in here])
        for size, (low, high) in AREAS.items():
            ranks[size].append(claim(iou[:, (low <= area) & (area <= high)]))
    claimed = {size: np.concatenate(parts, axis=1) for size, parts in ranks.items()}  # (T, all objects)
    return {
        f"AR{limit}{size}": float((rank < limit).mean()) if rank.size else -1.0
        for limit in LIMITS
        for size, rank in claimed.items()
    }


def claim(iou: np.ndarray) -> np.ndarray:
    """COCO's greedy match, (R, G) -> (T, G): the rank of the proposal that matches each object, inf for none.

    At each threshold every proposal in turn takes the unmatched object with the highest IoU. The match of the first 100
    proposals is a prefix of that of the first 1000, so the rank gives the recall at every limit.
    """
    rank = np.full((len(THRESHOLDS), iou.shape[1]), np.inf)
    for r in np.flatnonzero((iou >= THRESHOLDS[0]).any(axis=1)):
        free = np.isinf(rank) & (iou[r] >= THRESHOLDS[:, None])  # (T, G)
        choice = np.where(free, iou[r], -1)[:, ::-1].argmax(axis=1)  # COCO takes the last of equal IoUs
        t = np.flatnonzero(free.any(axis=1))
        rank[t, iou.shape[1] - 1 - choice[t]] = r
    return rank


def _objects_by_image(annotations: str | Path, category_ids: list[int] | None) -> defaultdict[int, list[Any]]:
    coco = read_coco_file(annotations)
    wanted = set(coco.category_ids.tolist() if category_ids is None else category_ids)
    objects: defaultdict[int, list[Any]] = defaultdict(list)
    for entry in ground_truth_entries(coco):
        if entry["category_id"] in wanted and not entry["iscrowd"]:
            objects[entry["image_id"]].append(entry)
    return objects


def _iou(boxes: Tensor, objects: list[list[float]]) -> np.ndarray:
    """(R, 4) xyxy and G xywh boxes -> (R, G), by pycocotools, so that the last bit agrees."""
    iou = mask.iou(to_xywh(boxes).cpu().numpy(), np.array(objects).reshape(-1, 4), [0] * len(objects))
    return np.reshape(iou, (len(boxes), len(objects)))
