"""Keypoints of objects, and what they mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from detector.records.geometry import Window
from detector.records.record import Record, points_field, rows_field

SIDES = re.compile(r"left|right", re.IGNORECASE)
Bone = tuple[int, int]


class Pose(NamedTuple):
    """What the keypoints of a category mean."""

    names: list[str]
    """J names; none if the category has no keypoints."""
    skeleton: list[Bone]
    """Pairs of keypoints, from 0, that a line joins."""

    def swap(self) -> list[int]:
        """The place that takes the place of each in a mirrored image: those whose names differ by left and right."""
        place = {name.lower(): j for j, name in enumerate(self.names)}

        def other(match: re.Match[str]) -> str:
            return "right" if match[0].lower() == "left" else "left"

        return [place.get(SIDES.sub(other, name.lower()), j) for j, name in enumerate(self.names)]


PAIRS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
HEAD = [(0, 1), (0, 2), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6)]
ARMS = [(5, 7), (7, 9), (6, 8), (8, 10)]
TRUNK = [(5, 6), (5, 11), (6, 12), (11, 12)]
LEGS = [(11, 13), (13, 15), (12, 14), (14, 16)]
PERSON = Pose(["nose", *(f"{side}_{part}" for part in PAIRS for side in ("left", "right"))], HEAD + ARMS + TRUNK + LEGS)
"""COCO's 17 keypoints of a person."""


@dataclass(eq=False)
class Keypoints(Record):
    """J named points of each object or detection; a mirror image swaps left and right ones."""

    points: Tensor = points_field()
    """(n, J, 2) float32 x, y."""
    visible: Tensor = rows_field()
    """(n, J) int64 as in COCO: 0 not labelled, 1 hidden, 2 visible."""
    scores: Tensor | None = rows_field(default=None)
    """(n, J), of detections."""
    pose: Pose | None = None
    """What they mean; None: not known, and nothing is swapped in a mirror image."""
    offset: float = 0.0
    """What was added to x and y of the annotations, and is taken off where keypoints are written: 0.5 pixels in Detectron2, for
    which a file numbers pixels and a point lies in the middle of one."""

    @property
    def skeleton(self) -> Sequence[Bone]:
        """Pairs of points that a line joins: COCO's of a person for 17 points of no known meaning."""
        if self.pose is not None:
            return self.pose.skeleton
        return PERSON.skeleton if self.points.shape[1] == len(PERSON.names) else ()

    @classmethod
    def of(cls, xyv: Tensor) -> Keypoints:
        """Of (n, J, 3) x, y and visibility."""
        return cls(xyv[..., :2].float(), xyv[..., 2].long())

    def scored(self) -> Tensor:
        """(n, J, 3) x, y as in annotation files, and score; visibility where there are no scores."""
        third = self.visible if self.scores is None else self.scores
        return torch.cat([self.points - self.offset, third[..., None].to(self.points)], dim=-1)

    def mirrored(self, width: int) -> Keypoints:
        """As it is where left becomes right, left and right points swapped."""
        return super().mirrored(width)._swapped()

    def flipped(self, height: int) -> Keypoints:
        """As it is where top becomes bottom: a mirror image too, in which left and right points swap."""
        return super().flipped(height)._swapped()

    def _swapped(self) -> Keypoints:
        """Left and right points in each other's place, where it is known which they are."""
        if self.pose is None:
            return self
        order = torch.tensor(self.pose.swap(), device=self.points.device)
        scores = None if self.scores is None else self.scores[:, order]
        return replace(self, points=self.points[:, order], visible=self.visible[:, order], scores=scores)

    def cropped(self, window: Window) -> Keypoints:
        """In the pixels of a window; points outside of it are not labelled there."""
        moved = super().cropped(window)
        h, w = window[2:]
        inside = ((moved.points >= 0) & (moved.points <= torch.tensor([w, h]).to(moved.points))).all(dim=-1)
        return replace(moved, visible=moved.visible * inside)
