"""Suppression of boxes by better ones: hard, and soft (Bodla et al. 2017, arXiv 1704.04503)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from detector.modeling.boxes import box_iou


def suppress(
    boxes: Tensor,
    scores: Tensor,
    group: Tensor,
    *,
    kind: Literal["hard", "linear", "gaussian"],
    iou: float,
    min_score: float,
    limit: int,
) -> tuple[Tensor, Tensor]:
    """Boxes (R, 4) with scores (R,) -> the indices and scores of the `limit` best that are left, best first.

    Boxes of different `group` (R,) do not see each other. Soft: see `soft_nms`, to which alone `min_score` belongs.
    """
    if kind == "hard":
        best = batched_nms(boxes, scores, group, iou)[:limit]
        return best, scores[best]
    return soft_nms(boxes, scores, group, kind=kind, iou=iou, min_score=min_score, limit=limit)


def shifted_nms(boxes: Tensor, scores: Tensor, group: Tensor, iou: float) -> Tensor:
    """mmcv's way of hard NMS: indices of what is left of boxes (R, 4) with scores (R,), best first.

    Boxes of different `group` (R,) are moved apart, and a sort that is not stable decides which of equal scores comes first.
    """
    if not len(boxes):
        return group.new_zeros(0)
    order = scores.sort(descending=True).indices
    apart = boxes + group.to(boxes.dtype)[:, None] * (boxes.max() + 1)
    return order[nms(apart[order], scores[order], iou)]


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
) -> tuple[Tensor, Tensor]:
    """The best box is taken, what overlaps it by o loses score, again and again: indices and scores, best first.

    "linear": times 1 - o where o >= `iou`; "gaussian": times exp(-o^2 / sigma) (paper, sec. 3, eq. 3). A box whose score has
    fallen below `min_score` is gone. Scores only fall, so the first `limit` that are taken are the best.
    """
    left, taken, kept = scores.clone(), [], []
    for _ in range(min(limit, len(scores))):
        best = left.argmax()
        taken.append(best)
        kept.append(left[best])
        overlap = box_iou(boxes[best, None], boxes)[0] * (group == group[best])  # (R,)
        linear = torch.where(overlap >= iou, 1 - overlap, 1.0)
        left = left * (linear if kind == "linear" else torch.exp(-(overlap**2) / sigma))
        left[best] = -1  # never again: below every score, and so after any decay
    if not taken:
        return group.new_zeros(0), scores
    index, score = torch.stack(taken), torch.stack(kept)
    valid = torch.where(score >= min_score)[0]
    return index[valid], score[valid]
