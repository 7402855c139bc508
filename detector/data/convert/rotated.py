"""Upright boxes around rotated ones."""

from __future__ import annotations

import math

Corners = tuple[float, float, float, float]


def around_rotated(box: Corners, degrees: float, pivot: tuple[float, float]) -> Corners:
    """The box (x1, y1, x2, y2) around a box that is turned clockwise, as seen on the screen, about a point; all in pixels."""
    x1, y1, x2, y2 = box
    sin, cos = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    offsets = [(x - pivot[0], y - pivot[1]) for x in (x1, x2) for y in (y1, y2)]
    xs = [pivot[0] + cos * dx - sin * dy for dx, dy in offsets]
    ys = [pivot[1] + sin * dx + cos * dy for dx, dy in offsets]
    return min(xs), min(ys), max(xs), max(ys)
