"""Points of regions: maps read at them, and which of them a mask is uncertain of (Kirillov et al. 2020, PointRend, sec. 3).

Points are x, y in 0..1 of their region, or in pixels of the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.modeling.shapes import constants, is_portable
from detector.records.geometry import Size
from detector.schema.ranges import Count, Fraction, Range
from detector.schema.signatures import checked


def grid_points(side: int, device: torch.device) -> Tensor:
    """The centres of side x side equal cells, row by row: (side**2, 2) in 0..1."""
    centres = (torch.arange(side, device=device) + 0.5) / side
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y], dim=-1).view(-1, 2)


def in_image(points: Tensor, boxes: Tensor) -> Tensor:
    """Points (R, P, 2) in 0..1 of the boxes (R, 4) -> (R, P, 2) in pixels of the image."""
    low, high = boxes[:, None].split(2, dim=-1)  # (R, 1, 2)
    return low + points * (high - low)


def read_points(maps: Tensor, rows: Tensor, points: Tensor) -> Tensor:
    """Bilinear readings (R, P, C) of the maps (N, C, H, W)[rows (R,)] at points (R, P, 2) in cells; 0 beyond a map.

    The centre of the first cell is at (0.5, 0.5): the numbers of `grid_sample` with align_corners=False.
    """
    c = maps.shape[1]
    cells = maps.permute(0, 2, 3, 1).reshape(-1, c)  # (N*H*W, C)
    index, weight = _taps(rows, points, maps.shape[-2:])
    if is_portable():  # OpenVINO has no embedding_bag
        taps = zip(index.unbind(dim=-1), weight.to(cells.dtype).unbind(dim=-1))
        return sum((cells[i] * w[..., None] for i, w in taps), start=cells.new_zeros(()))
    read = F.embedding_bag(
        index.view(-1, 4), cells, mode="sum", per_sample_weights=weight.view(-1, 4).to(cells.dtype)
    )  # as RoIAlign (pool.py) gathers rows
    return read.view(*points.shape[:2], c)


def read_bitmaps(masks: Tensor, rows: Tensor, points: Tensor) -> Tensor:
    """The same of bitmaps (G, h, w), of which no copy in floating point is made: (R, P) in 0..1."""
    index, weight = _taps(rows, points, masks.shape[-2:])
    return (masks.reshape(-1)[index] * weight).sum(dim=-1)


def _taps(rows: Tensor, points: Tensor, size: torch.Size | Size) -> tuple[Tensor, Tensor]:
    """The four cells around every point and their weights: both (R, P, 4), cells counted through all maps."""
    h, w = size
    place = points - 0.5
    low = place.floor()
    share = (place - low)[..., None, :]  # (R, P, 1, 2)
    step = constants([0, 0, 1, 0, 0, 1, 1, 1], points).view(4, 2)  # x, y
    cell = low[..., None, :] + step  # (R, P, 4, 2)
    inside = ((cell >= 0) & (cell < constants([w, h], points))).all(dim=-1)
    column, row = torch.where(inside[..., None], cell, 0).long().unbind(dim=-1)
    weight = torch.where(step == 1, share, 1 - share).prod(dim=-1)
    return (rows.view(-1, 1, 1) * h + row) * w + column, torch.where(inside, weight, 0)


def uncertainty(logits: Tensor) -> Tensor:
    """How near the logits are to the border of a mask, at most 0."""
    return -logits.abs()


@checked
@dataclass(frozen=True)
class PointSampling:
    """Draws the points of each region that training learns from (PointRend sec. 3.2)."""

    points: Count = 196
    """Points of a region, 14 x 14 in the paper."""
    oversampling: Annotated[float, Range(1, 100)] = 3.0
    """So many times as many random points are drawn first."""
    uncertain: Fraction = 0.75
    """This share of `points` is the most uncertain of them; the rest is random."""

    @torch.no_grad()
    def __call__(self, logits: Tensor) -> Tensor:
        """Mask logits (R, M, M) -> points (R, points, 2) in 0..1. A logit is interpolated before it is judged."""
        count, side, device = len(logits), logits.shape[-1], logits.device
        many = torch.rand(count, int(self.points * self.oversampling), 2, device=device)
        found = read_points(logits[:, None], torch.arange(count, device=device), many * side)[..., 0]
        kept = int(self.points * self.uncertain)
        best = uncertainty(found).topk(kept, dim=1).indices  # (R, kept)
        chosen = many.gather(1, best[..., None].expand(-1, -1, 2))
        return torch.cat([chosen, torch.rand(count, self.points - kept, 2, device=device)], dim=1)


@checked
@dataclass(frozen=True)
class Subdivision:
    """Refines masks: each step doubles their side, and the most uncertain points are computed anew (PointRend sec. 3.1)."""

    steps: Annotated[int, Range(0, 7)] = 5
    """Doublings of the mask's side: 5 lead from 7 to 224."""
    points: Count = 784
    """Points that a step computes, 28 x 28 in the paper."""

    def __call__(self, coarse: Tensor, logits_at: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits (R, M, M) of the masks that begin with the side of `coarse` (R, m, m), where M is m * 2**steps.

        `logits_at` computes logits (R, P) at points (R, P, 2) in 0..1. Sides at which all points are computed anew after the
        next doubling, too, are passed over, as in Detectron2; so `coarse` gives its shape alone.
        """
        count, side, steps = len(coarse), coarse.shape[-1], self.steps
        while steps and 4 * side**2 <= self.points:
            side, steps = 2 * side, steps - 1
        logits = logits_at(grid_points(side, coarse.device).expand(count, -1, -1)).view(count, side, side)
        for _ in range(steps):
            side = 2 * side
            logits = F.interpolate(logits[:, None], scale_factor=2, mode="bilinear", align_corners=False).flatten(1)
            index = uncertainty(logits).topk(min(self.points, side**2), dim=1).indices  # (R, P)
            anew = logits_at(grid_points(side, coarse.device)[index])
            logits = logits.scatter(1, index, anew).view(count, side, side)
        return logits
