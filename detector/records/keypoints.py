"""Keypoints of objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detector.records.geometry import Window
from detector.records.record import Record, points_field, rows_field


@dataclass(eq=False)
class Keypoints(Record):
    """J named points of each object or detection; a mirrored image swaps left and right ones."""

    points: Tensor = points_field()
    """(n, J, 2) float32 x, y."""
    visible: Tensor = rows_field()
    """(n, J) int64 as in COCO: 0 not labelled, 1 hidden, 2 visible."""
    scores: Tensor | None = rows_field(default=None)
    """(n, J), of detections."""
    swap: Sequence[int] | None = None
    """The place j' that takes the place of j in a mirrored image; None: nothing is swapped."""

    @classmethod
    def of(cls, xyv: Tensor) -> Keypoints:
        """Of (n, J, 3) x, y and visibility."""
        return cls(xyv[..., :2].float(), xyv[..., 2].long())

    def scored(self) -> Tensor:
        """(n, J, 3) x, y and score; visibility where there are no scores."""
        third = self.visible if self.scores is None else self.scores
        return torch.cat([self.points, third[..., None].to(self.points)], dim=-1)

    def mirrored(self, width: int) -> Keypoints:
        """As it is where left becomes right, left and right points swapped."""
        moved = super().mirrored(width)
        if self.swap is None:
            return moved
        order = torch.tensor(self.swap, device=self.points.device)
        scores = None if moved.scores is None else moved.scores[:, order]
        return replace(moved, points=moved.points[:, order], visible=moved.visible[:, order], scores=scores)

    def cropped(self, window: Window) -> Keypoints:
        """In the pixels of a window; points outside of it are not labelled there."""
        moved = super().cropped(window)
        h, w = window[2:]
        inside = ((moved.points >= 0) & (moved.points <= torch.tensor([w, h]).to(moved.points))).all(dim=-1)
        return replace(moved, visible=moved.visible * inside)
