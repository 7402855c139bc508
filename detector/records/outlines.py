"""Outlines of objects as an annotation file gives them: polygons of several parts, or run lengths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detector.records.record import Record


@dataclass(eq=False)
class Outlines(Record):
    """The outline of each object: float64 polygons [x1, y1, x2, y2, ...] of its parts, or a bitmap as run lengths."""

    parts: tuple[tuple[np.ndarray, ...], ...] = ()
