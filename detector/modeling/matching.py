"""Which candidate box (anchor or proposal) stands for which object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor

from detector.modeling.boxes import box_area, box_iou, intersection

NEGATIVE, POSITIVE, IGNORE = 0, 1, -1
MATRIX_LIMIT = 2**24  # entries of one IoU block: 64 MiB of float32, of which seven live at once at most
LEAST_IOU = 1e-3  # of a threshold: at 0 what touches nothing would be an object, also where there is none
CROWD_IOF = 0.5  # who lies by half in a crowd region is no background; COCO forgives such a detection too

ForceMatch = Literal["own", "promoter"]


def assign(
    iou: Tensor, *, pos_iou: float, neg_iou: float, force_match: ForceMatch | None = None, min_force_iou: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Faster R-CNN sec. 3.1.2: IoU (G, P) of objects and candidates -> label (P,), gt_index (P,).

    POSITIVE: IoU >= pos_iou with some object (rule ii), and, with `force_match`, every object's best candidates (rule i);
    NEGATIVE: IoU < neg_iou with all; IGNORE: the rest. gt_index means something only where label is POSITIVE.
    A forced candidate stands for its "own" best object, as in Detectron2 and torchvision, or for the "promoter" that forced
    it, as in mmdetection. An object that touches nothing, or nothing by `min_force_iou`, forces nothing.
    """
    return _assign([iou], iou.shape[1], iou.device, pos_iou, neg_iou, force_match, min_force_iou)


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
    """`assign` for (G, 4) objects and (P, 4) candidates: label (P,), gt_index (P,).

    NEGATIVEs that lie by half in a `crowd` region (I, 4) become IGNORE. The IoU matrix is made in blocks of objects: it takes
    half a gigabyte at most for any number of objects, and 16 million candidates.
    """
    blocks = _IoUBlocks(gt_boxes, candidates)
    device = candidates.device
    label, gt_index = _assign(blocks, len(candidates), device, pos_iou, neg_iou, force_match, min_force_iou)
    if crowd is not None and len(crowd):
        label[(label == NEGATIVE) & _in_crowd(candidates, crowd)] = IGNORE
    return label, gt_index


def _assign(
    blocks: Iterable[Tensor], num: int, device: torch.device,
    pos_iou: float, neg_iou: float, force_match: ForceMatch | None, min_force_iou: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The rules over blocks (g, P) of rows of one IoU matrix."""
    best_iou, gt_index = _best_object(blocks, num, device)
    label = torch.full_like(gt_index, IGNORE)
    label[best_iou < neg_iou] = NEGATIVE
    label[best_iou >= pos_iou] = POSITIVE
    if force_match:
        promoter = _promoter(blocks, num, device, min_force_iou)
        label[promoter >= 0] = POSITIVE
        if force_match == "promoter":
            gt_index = torch.where(promoter >= 0, promoter, gt_index)
    return label, gt_index


def _best_object(blocks: Iterable[Tensor], num: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The greatest IoU (P,) of every candidate and the first object (P,) that has it; 0 and 0 without objects."""
    best_iou = torch.zeros(num, device=device)
    gt_index = torch.zeros(num, dtype=torch.long, device=device)
    start = 0
    for iou in blocks:
        if len(iou):
            best, index = iou.max(dim=0)
            gt_index = torch.where(best > best_iou, index + start, gt_index)
            best_iou = torch.maximum(best, best_iou)
        start += len(iou)
    return best_iou, gt_index


def _promoter(blocks: Iterable[Tensor], num: int, device: torch.device, min_iou: float) -> Tensor:
    """The last object (P,) whose best candidates, ties included, this one is among; -1: none."""
    promoter = torch.full((num,), -1, dtype=torch.long, device=device)
    start = 0
    for iou in blocks:
        if iou.numel():
            best = iou.max(dim=1, keepdim=True).values  # (g, 1)
            forced = (
                (iou == best) & (best > 0) & (best >= min_iou)
            )  # > 0: else all equal the best of an untouched object
            index = torch.arange(start, start + len(iou), device=device)[:, None]
            promoter = torch.maximum(promoter, torch.where(forced, index, -1).amax(dim=0))
        start += len(iou)
    return promoter


class _IoUBlocks:
    """The rows of the IoU matrix, some objects at a time; a matrix of one block is kept, more are made on each pass."""

    def __init__(self, gt_boxes: Tensor, candidates: Tensor):
        step = max(1, MATRIX_LIMIT // max(1, len(candidates)))
        self.gt_boxes, self.candidates = gt_boxes.split(step), candidates
        self.kept = [box_iou(gt_boxes, candidates)] if len(gt_boxes) <= step else None

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.kept or (box_iou(gt, self.candidates) for gt in self.gt_boxes))


def _in_crowd(candidates: Tensor, crowd: Tensor) -> Tensor:
    """(P,) bool: by at least half of their area in one region."""
    area = box_area(candidates).clamp(min=1e-6)
    within = torch.zeros(len(candidates), dtype=torch.bool, device=candidates.device)
    for regions in crowd.split(max(1, MATRIX_LIMIT // max(1, len(candidates)))):
        within |= (intersection(regions, candidates) >= CROWD_IOF * area).any(dim=0)
    return within
