"""Boxes are (x1, y1, x2, y2), continuous pixels, width = x2 - x1. All functions are pure and take empty tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from detector.modeling.shapes import constants
from detector.schema.ranges import Range
from detector.schema.signatures import checked

# no box grows more than 62.5 fold in one step (Detectron's guard against exp overflow)
MAX_LOG_SCALE = math.log(1000 / 16)


def box_area(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...) area in pixels; a reversed box has none."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Area shared by every pair: (G, 4), (P, 4) -> (G, P)."""
    # one side at a time and in place: half the memory of both together, and several times as fast on a CPU
    w = torch.minimum(a[:, None, 2], b[:, 2]).sub_(torch.maximum(a[:, None, 0], b[:, 0])).clamp_(min=0)
    h = torch.minimum(a[:, None, 3], b[:, 3]).sub_(torch.maximum(a[:, None, 1], b[:, 1])).clamp_(min=0)
    return w * h


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every pair: (G, 4), (P, 4) -> (G, P); 0 where the boxes do not touch."""
    shared = intersection(a, b)
    union = (box_area(a)[:, None] + box_area(b)).sub_(shared)
    return torch.where(shared > 0, shared / union, 0.0)


def clip_boxes(boxes: Tensor, size: tuple[int, int] | tuple[Tensor, Tensor]) -> Tensor:
    """Move (..., 4) boxes into the image: x into [0, w], y into [0, h]; `size` is (h, w), which may be tensors of one number."""
    h, w = size
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    return torch.stack([_within(x1, w), _within(y1, h), _within(x2, w), _within(y2, h)], dim=-1)


def _within(x: Tensor, limit: int | Tensor) -> Tensor:
    """Values moved into [0, limit]."""
    return x.clamp(min=0).minimum(limit.to(x)) if isinstance(limit, Tensor) else x.clamp(0, limit)


def is_larger_than(boxes: Tensor, side: float) -> Tensor:
    """(..., 4) -> (...) bool: finite, and both sides >= `side` (> 0 where `side` is 0)."""
    w, h = (boxes[..., 2:] - boxes[..., :2]).unbind(dim=-1)
    large = (w >= side) & (h >= side) & (w > 0) & (h > 0)
    return large & torch.isfinite(boxes).all(dim=-1)


def encode(source: Tensor, target: Tensor, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """The deltas that take `source` to `target`: (R, 4), (R, 4) -> (R, 4) (dx, dy, dw, dh).

    Fast R-CNN, appendix C: d = (t - s) / s for the centres, log(t / s) for the sides; times `weights`, which bring
    the four to unit scale. Sides must be positive: a box without area gives infinite deltas.
    """
    (from_centre, from_side), (to_centre, to_side) = _centre_form(source), _centre_form(target)
    deltas = torch.cat([(to_centre - from_centre) / from_side, torch.log(to_side / from_side)], dim=-1)
    return deltas * constants(weights, deltas)


def decode(deltas: Tensor, source: Tensor, weights: Sequence[float] = (1, 1, 1, 1), clamp_both: bool = False) -> Tensor:
    """Inverse of `encode`: (..., 4) deltas on (..., 4) source boxes -> (..., 4) boxes, unclipped.

    dw, dh are clamped above at log(1000/16); `clamp_both` clamps them below as well (MMDetection).
    """
    centre, side = _centre_form(source)
    deltas = deltas / constants(weights, deltas)
    log_scale = deltas[..., 2:].clamp(-MAX_LOG_SCALE if clamp_both else None, MAX_LOG_SCALE)
    centre = deltas[..., :2] * side + centre
    half = 0.5 * torch.exp(log_scale) * side
    return torch.cat([centre - half, centre + half], dim=-1)


def _centre_form(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 4) -> centres (..., 2) and sides (..., 2)."""
    side = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * side, side


DeltaWeight = Annotated[float, Range(1e-3, 1e6)]


@checked
@dataclass(frozen=True)
class BoxCoder:
    """Boxes as deltas relative to other boxes (R-CNN, Girshick et al. 2014, appendix C)."""

    weights: tuple[DeltaWeight, DeltaWeight, DeltaWeight, DeltaWeight] = (1, 1, 1, 1)
    """Factors of dx, dy, dw, dh, which bring them to unit scale."""
    clamp_both: bool = False
    """Bound how much a box may shrink, too, as MMDetection does; growth is always bounded."""

    def encode(self, source: Tensor, target: Tensor) -> Tensor:
        """(R, 4), (R, 4) -> the deltas (R, 4) that take `source` to `target`."""
        return encode(source, target, self.weights)

    def decode(self, deltas: Tensor, source: Tensor) -> Tensor:
        """Deltas (..., 4) on boxes (..., 4) -> boxes (..., 4), unclipped."""
        return decode(deltas, source, self.weights, self.clamp_both)
