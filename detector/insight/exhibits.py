"""What a picture shows of an image beside the facts: maps of its levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detector.insight.class_gradient import class_logit, gradient_times_activation, objectness_logit
from detector.insight.look import Look
from detector.structures import Detections


@dataclass(frozen=True)
class LevelMap:
    """A number for each cell of a level."""

    level: int
    values: Tensor
    """(H, W) on the CPU."""
    cell: tuple[float, float]
    """Width and height of a cell in pixels of the original image."""


@dataclass(frozen=True)
class Exhibits:
    """The image and its maps."""

    image: Tensor
    """The original, uint8 RGB (3, H, W)."""
    detections: Detections
    """In its pixels."""
    objectness: list[LevelMap]
    """The highest of a cell's anchors, 0..1."""
    gradient: list[LevelMap] | None
    """Gradient times activation of the followed class; without a region of the objectness of the anchor that comes furthest."""
    cells: int
    """Cells of a pooled region along each side; 0 without a second stage."""


def exhibits_of(look: Look) -> Exhibits:
    """Those of an image and what is followed in it."""
    logits, start, maps = look.anchors.logits.nan_to_num(-torch.inf), 0, []
    for x in look.p:
        h, w = x.shape[-2:]
        end = start + h * w * look.model.rpn.anchors.per_cell
        maps.append(logits[start:end].view(h, w, -1).amax(dim=-1).sigmoid())
        start = end
    gradient = _gradient(look)
    pool = getattr(look.model.roi_head, "pool", None)
    pool = getattr(pool, "pool", pool)  # of one that adds the semantic embedding
    return Exhibits(
        look.image, look.found, _level_maps(look, maps), None if gradient is None else _level_maps(look, gradient),
        getattr(pool, "size", 0),
    )  # fmt: skip


def _level_maps(look: Look, maps: list[Tensor]) -> list[LevelMap]:
    x, y = look.scale
    strides = look.strides
    return [LevelMap(k, values.nan_to_num().cpu(), (s * x, s * y)) for k, s, values in zip(look.levels, strides, maps)]


def _gradient(look: Look) -> list[Tensor] | None:
    followed, model = look.followed, look.model
    if followed is None:
        return None
    if followed.region is not None and look.trace.stages:
        box = look.trace.proposals.boxes[followed.region]
        return gradient_times_activation(look.p, class_logit(model, box, followed.label, look.trace.size))
    if followed.anchor is None:
        return None
    return gradient_times_activation(look.p, objectness_logit(model, followed.anchor))
