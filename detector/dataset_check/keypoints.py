"""A check of valid keypoints: whether the labelled ones lie in their image."""

from __future__ import annotations

import numpy as np

from detector.data.box_arrays import ROUNDING
from detector.dataset_check.checked_split import CheckedSplit
from detector.dataset_check.findings import Findings


def check_keypoints(split: CheckedSplit, findings: Findings) -> None:
    """Judge the labelled keypoints of every object that has some."""
    points, sides = split.keypoints[..., :2], split.sizes[split.owner][:, None, ::-1]  # (m, J, 2), (m, 1, 2)
    beyond = ((points < -ROUNDING) | (points > sides + ROUNDING)).any(axis=2) & (split.keypoints[..., 2] > 0)

    def note(row: int) -> str:
        names = split.poses[split.labels[row]].names
        x, y = points[row, (first := int(beyond[row].argmax()))]
        (width, height), more = sides[row, 0], beyond[row].sum() - 1
        others = f" and {more} more" if more else ""
        return f"{names[first]!r} at {x:g}, {y:g}{others} in {width} x {height}"

    rows = np.flatnonzero(beyond.any(axis=1)).tolist()
    findings.add("keypoint outside image", split.name, rows, lambda row: split.box_place(row, note=note(row)))
