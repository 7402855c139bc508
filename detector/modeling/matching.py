"""Match candidate boxes (anchors or proposals) to ground truth (Faster R-CNN, Ren et al. 2015, sec. 3.1.2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from detector.modeling.boxes import box_area, box_iou, intersection
from detector.schema.ranges import Fraction, IoU
from detector.schema.signatures import checked

NEGATIVE, POSITIVE, IGNORE = 0, 1, -1
MATRIX_LIMIT = 2**24  # entries of one IoU block: 64 MiB of float32, of which some six live at once
CROWD_IOF = 0.5  # a candidate with this share of its area in a crowd region is no background, as in COCO's evaluation


@checked
@dataclass(frozen=True)
class Matching:
    """Labels candidates POSITIVE, NEGATIVE or IGNORE by their IoU with the objects.

    POSITIVE: IoU >= pos_iou with some object (rule ii) and, with `low_quality`, every object's best candidates (rule i);
    NEGATIVE: IoU < neg_iou with all objects; IGNORE: the rest.
    """

    pos_iou: IoU = 0.7
    """IoU from which a candidate is positive."""
    neg_iou: IoU | None = None
    """IoU below which a candidate is negative; null: `pos_iou`, so that nothing is ignored."""
    low_quality: Literal["keep_best_gt", "force_gt"] | None = None
    """Whether every object's best candidates are positive: for the candidate's own best object, as in Detectron2 and
    torchvision ("keep_best_gt"), or for the object that made it positive, as in MMDetection ("force_gt")."""
    min_pos_iou: Fraction = 0.0
    """IoU below which an object's best candidate is not made positive; one that does not touch it never is."""

    def __post_init__(self) -> None:
        if self.neg_iou is not None and self.neg_iou > self.pos_iou:
            raise ValueError(f"neg_iou: must not exceed pos_iou, but {self.neg_iou} > {self.pos_iou}")

    def __call__(self, gt_boxes: Tensor, candidates: Tensor, crowd: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Objects (G, 4), candidates (P, 4) -> label (P,), gt_index (P,), which means something only where POSITIVE.

        NEGATIVE candidates with half of their area in a `crowd` region (I, 4) become IGNORE. The IoU matrix is computed in
        blocks of objects: at most half a gigabyte for any number of objects and up to a million candidates.
        """
        label, gt_index = self.assign(_IoUBlocks(gt_boxes, candidates), len(candidates), candidates.device)
        if crowd is not None and len(crowd):
            label = torch.where((label == NEGATIVE) & in_crowd(candidates, crowd), IGNORE, label)
        return label, gt_index

    def assign(self, blocks: Iterable[Tensor], num: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The rules over blocks (g, P) of rows of one IoU matrix with `num` = P columns."""
        best_iou, gt_index = _best_object(blocks, num, device)
        label = torch.full_like(gt_index, IGNORE)
        label.masked_fill_(best_iou < (self.pos_iou if self.neg_iou is None else self.neg_iou), NEGATIVE)
        label.masked_fill_(best_iou >= self.pos_iou, POSITIVE)
        if self.low_quality:
            forced_by = _low_quality_matches(blocks, num, device, self.min_pos_iou)
            label.masked_fill_(forced_by >= 0, POSITIVE)
            if self.low_quality == "force_gt":
                gt_index = torch.where(forced_by >= 0, forced_by, gt_index)
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


def _low_quality_matches(blocks: Iterable[Tensor], num: int, device: torch.device, min_iou: float) -> Tensor:
    """For every candidate the last object (P,) whose best candidates, ties included, it is among; -1: none."""
    forced_by = torch.full((num,), -1, dtype=torch.long, device=device)
    start = 0
    for iou in blocks:
        if iou.numel():
            best = iou.max(dim=1, keepdim=True).values  # (g, 1)
            # > 0: otherwise all candidates equal the best of an object that none touches
            forced = (iou == best) & (best > 0) & (best >= min_iou)
            index = torch.arange(start, start + len(iou), device=device)[:, None]
            forced_by = torch.maximum(forced_by, torch.where(forced, index, -1).amax(dim=0))
        start += len(iou)
    return forced_by


class _IoUBlocks:
    """The rows of the IoU matrix, some objects at a time; a matrix of one block is kept, more are computed on each pass."""

    def __init__(self, gt_boxes: Tensor, candidates: Tensor):
        step = max(1, MATRIX_LIMIT // max(1, len(candidates)))
        self.gt_boxes, self.candidates = torch.split(gt_boxes, step), candidates
        self.kept = [box_iou(gt_boxes, candidates)] if len(gt_boxes) <= step else None

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.kept or (box_iou(gt, self.candidates) for gt in self.gt_boxes))


def in_crowd(candidates: Tensor, crowd: Tensor) -> Tensor:
    """(P, 4), (I, 4) -> (P,) bool: candidates with IoF >= 0.5 to a crowd region."""
    area = box_area(candidates).clamp(min=1e-6)
    within = torch.zeros(len(candidates), dtype=torch.bool, device=candidates.device)
    for regions in torch.split(crowd, max(1, MATRIX_LIMIT // max(1, len(candidates)))):
        within |= (intersection(regions, candidates) >= CROWD_IOF * area).any(dim=0)
    return within
