"""Which candidate box (anchor or proposal) stands for which object."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from detector.geometry.boxes import box_area, box_iou, intersection

NEGATIVE, POSITIVE, IGNORE = 0, 1, -1
MATRIX_LIMIT = 2**24  # entries of one IoU block: 64 MiB of float32, a few such blocks live at once
CROWD_IOF = 0.5  # a candidate that lies by half in a crowd region is no background (COCO's crowd rule uses the same share)

ForceMatch = Literal["own", "promoter"]


def assign(
    iou: Tensor, *, pos_iou: float, neg_iou: float, force_match: ForceMatch | None = None, min_force_iou: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Faster R-CNN sec. 3.1.2 on a whole IoU matrix: (G, P) -> label (P,), gt_index (P,).

    The reading of the rules that `assign_boxes` computes in blocks. gt_index means something only where label is POSITIVE.
    """
    blocks = [iou] if len(iou) else []
    return _Assigner(iou.shape[1], iou.device).see(iou, 0).verdict(blocks, pos_iou, neg_iou, force_match, min_force_iou)


def assign_boxes(
    gt_boxes: Tensor,
    candidates: Tensor,
    *,
    pos_iou: float,
    neg_iou: float,
    force_match: ForceMatch | None = None,
    min_force_iou: float = 0.0,
    crowd: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(G, 4) objects, (P, 4) candidates -> label (P,), gt_index (P,).

    Positive: IoU >= pos_iou with some object (rule ii), and, with `force_match`, every object's best candidates (rule i);
    negative: IoU < neg_iou with all; the rest is IGNORE. A forced candidate is to find its "own" best object, as in
    Detectron2 and torchvision, or the "promoter", the object that forced it, as in mmdetection. An object that touches
    nothing, or that no candidate overlaps by `min_force_iou`, forces nothing. Negatives that lie by half in a `crowd`
    region (I, 4) become IGNORE. The IoU matrix is made in blocks of objects, so memory stays bounded for any G.
    """
    step = max(1, MATRIX_LIMIT // max(1, len(candidates)))
    blocks = _IoUBlocks(gt_boxes, candidates, step)
    assigner = _Assigner(len(candidates), candidates.device)
    for start, iou in zip(range(0, len(gt_boxes), step), blocks):
        assigner.see(iou, start)
    label, gt_index = assigner.verdict(blocks, pos_iou, neg_iou, force_match, min_force_iou)
    if crowd is not None and len(crowd):
        label[(label == NEGATIVE) & _in_crowd(candidates, crowd)] = IGNORE
    return label, gt_index


def _in_crowd(candidates: Tensor, crowd: Tensor) -> Tensor:
    share = intersection(crowd, candidates) / box_area(candidates).clamp(min=1e-6)  # (I, P)
    return (share >= CROWD_IOF).any(dim=0)


class _IoUBlocks:
    """The rows of the IoU matrix, `step` at a time; one block is kept, several are made anew on each pass."""

    def __init__(self, gt_boxes: Tensor, candidates: Tensor, step: int):
        self.gt_boxes, self.candidates = gt_boxes.split(step) if len(gt_boxes) else (), candidates
        self._only = [box_iou(self.gt_boxes[0], candidates)] if len(self.gt_boxes) == 1 else None

    def __iter__(self):
        yield from self._only or (box_iou(gt, self.candidates) for gt in self.gt_boxes)


class _Assigner:
    """Best object of every candidate, gathered block by block."""

    def __init__(self, num: int, device: torch.device):
        self.best_iou = torch.zeros(num, device=device)  # (P,)
        self.gt_index = torch.zeros(num, dtype=torch.long, device=device)  # (P,)

    def see(self, iou: Tensor, start: int) -> _Assigner:
        """Take in the rows (g, P) of objects start, start + 1, ..."""
        if len(iou):
            best, index = iou.max(dim=0)
            better = best > self.best_iou  # strictly: of equal objects the first one stays
            self.best_iou = torch.where(better, best, self.best_iou)
            self.gt_index = torch.where(better, index + start, self.gt_index)
        return self

    def verdict(
        self, blocks, pos_iou: float, neg_iou: float, force_match: ForceMatch | None, min_force_iou: float
    ) -> tuple[Tensor, Tensor]:
        label = torch.full_like(self.gt_index, IGNORE)
        label[self.best_iou < neg_iou] = NEGATIVE
        label[self.best_iou >= pos_iou] = POSITIVE
        gt_index, start = self.gt_index.clone(), 0
        for iou in blocks if force_match else ():  # rule (i), ties included
            forced = _forced(iou, min_force_iou)  # (g, P)
            label[forced.any(dim=0)] = POSITIVE
            if force_match == "promoter":  # of several promoters the last one wins
                order = torch.arange(start, start + len(iou), device=iou.device)[:, None]
                last = torch.where(forced, order, -1).amax(dim=0)
                gt_index = torch.where(last >= 0, last, gt_index)
            start += len(iou)
        return label, gt_index


def _forced(iou: Tensor, min_force_iou: float) -> Tensor:
    """(g, P) bool: the candidates that no other one beats at this object; none where the object touches nothing."""
    if 0 in iou.shape:
        return torch.zeros_like(iou, dtype=torch.bool)
    best_of_gt = iou.max(dim=1, keepdim=True).values  # (g, 1)
    return (iou == best_of_gt) & (best_of_gt > 0) & (best_of_gt >= min_force_iou)
