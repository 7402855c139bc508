"""Keypoints of a region as cells of a heat map, and back (He et al. 2017, Mask R-CNN, sec. 5)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.records.keypoints import Keypoints

MAP_LIMIT = 2**25  # values of the enlarged maps that exist at once: 128 MiB of float32


def heat_map_cells(keypoints: Keypoints, boxes: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The keypoints of R objects and the regions (R, 4) -> cells (R, J) in 0..side**2-1, row by row, and valid (R, J) bool.

    Valid are the labelled keypoints (visibility above 0) inside the region, its borders included; the cell of others is 0.
    """
    low, high = boxes[:, None, :2], boxes[:, None, 2:]  # (R, 1, 2)
    place = ((keypoints.points - low) * (side / (high - low))).floor()  # (R, J, 2) column and row
    place = torch.where(keypoints.points == high, side - 1, place)
    valid = ((place >= 0) & (place < side)).all(dim=-1) & (keypoints.visible > 0)
    column, row = torch.where(valid[..., None], place, 0).long().unbind(dim=-1)
    return row * side + column, valid


def read_heat_maps(logits: Tensor, boxes: Tensor, scores: Literal["softmax", "logit"]) -> tuple[Tensor, Tensor]:
    """Heat maps (D, J, M, M) of the boxes (D, 4) -> the best place of each keypoint (D, J, 2) and its score (D, J).

    A map is enlarged by bicubic interpolation to the whole pixels of its box, and the best of them is taken. Boxes that need
    the same size are enlarged together. A softmax score is relative to the map's own cells, so it may exceed 1.
    """
    side = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)  # (D, 2) w, h
    pixels = side.ceil()
    best = logits.new_zeros(logits.shape[:2])
    place = logits.new_zeros(*logits.shape[:2], 2)
    for w, h in pixels.unique(dim=0).long().tolist():
        same = torch.where((pixels[:, 0] == w) & (pixels[:, 1] == h))[0]
        for rows in same.split(max(1, MAP_LIMIT // (logits.shape[1] * w * h))):
            large = F.interpolate(logits[rows], size=(h, w), mode="bicubic", align_corners=False).flatten(2)
            best[rows], index = large.max(dim=2)
            place[rows] = torch.stack([index % w, index.div(w, rounding_mode="floor")], dim=-1) + 0.5
    points = boxes[:, None, :2] + place * (side / pixels)[:, None]
    found = best if scores == "logit" else (best - logits.flatten(2).logsumexp(dim=2)).exp()
    return points, found.nan_to_num(0, 0, 0)  # 0 of maps that are not finite
