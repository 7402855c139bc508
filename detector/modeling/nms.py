"""Suppression of boxes by better ones: hard, and soft (Bodla et al. 2017, arXiv 1704.04503).

No shape depends on the data: all rows stay, some of them are `valid`. What torchvision's kernel keeps, a list of unknown
length, becomes a mask at once.
"""

from __future__ import annotations

from typing import Literal

import torch
import torchvision
from torch import Tensor

from detector.modeling.boxes import box_iou


def nms(boxes: Tensor, scores: Tensor, iou: float, group: Tensor | None = None) -> Tensor:
    """Indices of what hard NMS leaves of boxes (R, 4) with scores (R,), best first; equal scores in the order of rows.

    Boxes of different `group` (R,) do not see each other: they are moved apart, in float64, which loses no digit by it.
    """
    if group is not None and len(boxes):
        boxes = boxes.double() + (group * (boxes.max() + 1))[:, None]
    return torchvision.ops.nms(boxes, scores.to(boxes), iou)


def left_by_nms(boxes: Tensor, scores: Tensor, valid: Tensor, iou: float, group: Tensor | None = None) -> Tensor:
    """(R,) bool: those of the `valid` (R,) boxes (R, 4) with scores (R,) that `nms` leaves; coordinates are at least 0."""
    # All others lie in one place outside the image and come first: the first of them suppresses the rest, which then cost next
    # to nothing.
    boxes = torch.where(valid[:, None], boxes, boxes.new_tensor([-2, -2, -1, -1]))
    kept = nms(boxes, torch.where(valid, scores, torch.inf), iou, None if group is None else group * valid)
    return torch.zeros_like(valid).index_fill(0, kept, True) & valid


def best_rows(scores: Tensor, wanted: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Indices of the `limit` rows with the best scores among the `wanted` ones, and whether each is one; others come last.

    (..., R), (..., R) bool -> (..., limit) both. Equal scores stay in the order of rows.
    """
    order = torch.where(wanted, scores, -torch.inf).sort(dim=-1, descending=True, stable=True).indices[..., :limit]
    return order, wanted.gather(-1, order)


def suppress(
    boxes: Tensor,
    scores: Tensor,
    group: Tensor,
    valid: Tensor,
    *,
    kind: Literal["hard", "linear", "gaussian"],
    iou: float,
    min_score: float,
    limit: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The `limit` best of the `valid` (R,) boxes (R, 4) with scores (R,): their indices, scores, and whether each is one.

    All three (limit,), or (R,) if that is less, best first. Boxes of different `group` (R,) do not see each other. Soft: see
    `soft_nms`, to which alone `min_score` belongs.
    """
    if kind == "hard":
        index, left = best_rows(scores, left_by_nms(boxes, scores, valid, iou, group), limit)
        return index, scores[index], left
    boxes, scores = torch.where(valid[:, None], boxes, 0), torch.where(valid, scores, -1)
    return soft_nms(boxes, scores, group, kind=kind, iou=iou, min_score=min_score, limit=limit)


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    group: Tensor,
    *,
    kind: Literal["linear", "gaussian"],
    iou: float,
    min_score: float,
    limit: int,
    sigma: float = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best box is taken, what overlaps it by o loses score, again and again: as `suppress`.

    "linear": times 1 - o where o >= `iou`; "gaussian": times exp(-o^2 / sigma) (paper, sec. 3, eq. 3). A box whose score has
    fallen below `min_score` is gone. Scores only fall, so the first `limit` that are taken are the best.
    """
    left, taken, kept = scores, [group.new_zeros(0, dtype=torch.int64)], [scores[:0]]
    for _ in range(min(limit, len(scores))):
        best = left.argmax(dim=0, keepdim=True)  # (1,)
        taken.append(best)
        kept.append(left[best])
        overlap = box_iou(boxes[best], boxes)[0] * (group == group[best])  # (R,)
        linear = torch.where(overlap >= iou, 1 - overlap, 1.0)
        left = left * (linear if kind == "linear" else torch.exp(-(overlap**2) / sigma))
        left = left.index_fill(0, best, -1)  # never again: below every score, and so after any decay
    score = torch.cat(kept)
    return torch.cat(taken), score, score >= min_score
