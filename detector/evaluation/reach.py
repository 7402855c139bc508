"""What keeps a perfect detector from a perfect score, so that it can be said before the numbers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from detector.data.box_arrays import clip_to_images, corners, have_area
from detector.data.coco_reader import CocoFile, read_coco_file
from detector.evaluation.result_shapes import check_names
from detector.evaluation.shapes import keypoint_sigmas
from detector.recipe import Scoring
from detector.records.keypoints import Pose

IOUS = (0.5, 0.95)  # the lowest and highest threshold of COCO's AP


def scoring_limits(
    annotations: str | Path, category_ids: Sequence[int] | None, scoring: Scoring, fields: Collection[str] = (),
    pose: Pose | None = None,
) -> list[str]:  # fmt: skip
    """A line for each reason why a perfect detector scores less than 1, or why nothing can be scored.

    Args:
        annotations: COCO file.
        category_ids: the categories that are scored; None: all.
        scoring: the limit of detections, and whether boxes are clipped.
        fields: what the model finds beside boxes: the file is read with those that are scored, so that its faults are said now.
        pose: what the model's keypoints mean, if that is known: the file must have the same.

    Raises DataError for what cannot be scored.
    """
    coco = read_coco_file(annotations, fields=scoring.fields(fields))
    if coco.keypoints is not None:
        keypoint_sigmas(coco, scoring.keypoint_sigmas)
        check_names(pose and pose.names, coco, "keypoints of the model")
    chosen = coco.category_ids.tolist() if category_ids is None else list(category_ids)
    names = dict(zip(coco.category_ids.tolist(), coco.category_names))
    category = coco.category_ids[coco.category_rows]
    scored = np.isin(category, chosen) & ~coco.crowd
    if not scored.any():
        return [f"{coco.path}: no object that can be scored: every metric is undefined (-1); name a split with objects"]
    present = set(category[scored].tolist())
    without = [names[number] for number in chosen if number not in present]
    lines = []
    if without:
        lines.append(
            f"{_count(len(without), 'class', 'classes')} without objects, left out of all means: {_first(without)}"
        )
    lines += _beyond_limit(coco, category, scored, scoring) + _without_mask(coco, scored)
    if coco.keypoints is not None and not coco.keypoints[scored][..., 2].any():
        lines.append("no object has a labelled keypoint: the scores of keypoints are undefined (-1)")
    return lines if scoring.clip else lines + _outside(coco, scored)


def _beyond_limit(coco: CocoFile, category: np.ndarray, scored: np.ndarray, scoring: Scoring) -> list[str]:
    """Objects beyond the number of detections that count per image and class."""
    limit = scoring.max_detections[-1]
    _, counts = np.unique(np.stack([coco.image_rows[scored], category[scored]]), axis=1, return_counts=True)
    beyond = int(np.maximum(counts - limit, 0).sum())
    if not beyond:
        return []
    remedy = [1, limit, int(10 ** np.ceil(np.log10(counts.max())))]
    return [
        f"{beyond} of {scored.sum()} objects are more than the {limit} detections that count per image and class: a perfect "
        f"detector has AR {1 - beyond / scored.sum():.3f}; evaluate.max_detections={str(remedy).replace(' ', '')} scores more"
    ]


def _without_mask(coco: CocoFile, scored: np.ndarray) -> list[str]:
    """Objects whose masks, where these are scored, are empty."""
    empty = 0 if coco.outlines is None else int((scored & ~coco.outlines.drawable().numpy()).sum())
    if not empty:
        return []
    return [f"{_count(empty, 'outline', 'outlines')} without area in the image: no mask matches; dropped in training"]


def _outside(coco: CocoFile, scored: np.ndarray) -> list[str]:
    """Objects that detections, which lie inside the image, cannot match."""
    boxes = corners(coco.xywh[scored])
    inside = clip_to_images(boxes, coco.sizes[coco.image_rows[scored]])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    best = np.divide((inside[:, 2:] - inside[:, :2]).prod(axis=1), area, out=np.zeros_like(area), where=area > 0)
    empty = ~have_area(boxes)
    lines = []
    if empty.any():
        lines.append(
            f"{_count(int(empty.sum()), 'object', 'objects')} without area: no detection matches; dropped in training, "
            "missed in the score; evaluate.clip=true leaves them out beside the standard score"
        )
    out = ~empty & (best < IOUS[1])
    if out.any():
        never = int((best[out] < IOUS[0]).sum())
        lines.append(
            f"{_count(int(out.sum()), 'object reaches', 'objects reach')} out of the image: a box inside it has IoU "
            f"{best[out].min():.2f} to {best[out].max():.2f} with them, below 0.5 with {never}; clipped in training, not in the "
            "standard score; evaluate.clip=true scores clipped boxes beside it"
        )
    return lines


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _first(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
