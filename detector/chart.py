"""Points with names on two axes, drawn without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from detector.inference.fonts import load_font
from detector.inference.label_places import shared_area

SIZE = (1200, 800)
AXES = (90, 50, 1160, 720)  # x1, y1, x2, y2 of the plane in the picture
INK, GRID, LEADER, MARK = (30, 30, 30), (225, 225, 225), (120, 120, 120), (20, 90, 170)
RADIUS = 6
DISTANCES = (10, 26, 44, 64, 90)  # pixels from a point to its name; the nearest without overlap wins
DIRECTIONS = [(x, y) for x in (1, -1, 0) for y in (0, -1, 1) if x or y]

Rectangle = tuple[float, float, float, float]  # x1, y1, x2, y2


@dataclass(frozen=True)
class ChartPoint:
    """A named point; a bar reaches `spread` above and below it."""

    name: str
    x: float
    y: float
    spread: float


def draw_chart(points: Sequence[ChartPoint], x_label: str, y_label: str) -> Image.Image:
    """The points with grid, ticks and axis labels; names are placed near their points without overlap where possible."""
    picture = Image.new("RGB", SIZE, "white")
    pen, font = ImageDraw.Draw(picture), load_font(20)
    x_ticks = ticks([p.x for p in points])
    y_ticks = ticks([p.y + sign * p.spread for p in points for sign in (-1, 1)])
    _grid(pen, font, x_ticks, y_ticks)
    pen.text(((AXES[0] + AXES[2]) / 2, SIZE[1] - 15), x_label, fill=INK, font=font, anchor="ms")
    pen.text((AXES[0], AXES[1] - 14), y_label, fill=INK, font=font, anchor="ms")
    marks = []
    for point in points:
        x = _to_pixel(point.x, x_ticks, AXES[0], AXES[2])
        low, y, high = (_to_pixel(point.y + k * point.spread, y_ticks, AXES[3], AXES[1]) for k in (-1, 0, 1))
        pen.line((x, low, x, high), fill=MARK, width=2)
        marks.append((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS))
    sizes = [(font.getlength(point.name), 20) for point in points]
    for point, mark, name in zip(points, marks, place_names(marks, sizes)):
        x, y = (mark[0] + mark[2]) / 2, (mark[1] + mark[3]) / 2
        pen.line((x, y, min(max(x, name[0]), name[2]), min(max(y, name[1]), name[3])), fill=LEADER)
        pen.ellipse(mark, fill=MARK)
        pen.text((name[0], (name[1] + name[3]) / 2), point.name, fill=INK, font=font, anchor="lm")
    return picture


def place_names(marks: Sequence[Rectangle], sizes: Sequence[tuple[float, float]]) -> list[Rectangle]:
    """A rectangle of size (w, h) for the name of every mark: within AXES, with the least overlap, then the nearest."""
    taken, names = list(marks), []
    for (x1, y1, x2, y2), (w, h) in zip(marks, sizes):
        candidates = []
        for distance in DISTANCES:
            for dx, dy in DIRECTIONS:
                x = (x1 + x2 + dx * (w + 2 * distance)) / 2
                y = (y1 + y2 + dy * (h + 2 * distance)) / 2
                box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
                outside = w * h - shared_area(box, AXES)
                candidates.append((outside + sum(shared_area(box, other) for other in taken), box))
        best = min(candidates, key=lambda candidate: candidate[0])[1]  # the first of equals, the nearest
        taken.append(best)
        names.append(best)
    return names


def ticks(values: Sequence[float]) -> list[float]:
    """Round, equidistant numbers that enclose the values."""
    low, high = min(values), max(values)
    rough = max(high - low, abs(high) / 100, 1e-9) / 5
    unit = 10 ** math.floor(math.log10(rough))
    step = unit * next(k for k in (1, 2, 5, 10) if k * unit >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [k * step for k in range(first, max(last, first + 1) + 1)]


def _to_pixel(value: float, scale: Sequence[float], start: int, end: int) -> int:
    return round(start + (end - start) * (value - scale[0]) / (scale[-1] - scale[0]))


def _grid(pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, xs: Sequence[float], ys: Sequence[float]) -> None:
    left, top, right, bottom = AXES
    for value in xs:
        x = _to_pixel(value, xs, left, right)
        pen.line((x, top, x, bottom), fill=GRID)
        pen.text((x, bottom + 8), f"{value:g}", fill=INK, font=font, anchor="ma")
    for value in ys:
        y = _to_pixel(value, ys, bottom, top)
        pen.line((left, y, right, y), fill=GRID)
        pen.text((left - 8, y), f"{value:g}", fill=INK, font=font, anchor="rm")
    pen.line((left, top, left, bottom, right, bottom), fill=INK, width=2)
