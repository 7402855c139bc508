"""Charts as SVG text for a page: their colours are the page's own, so that they follow light, dark and print."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from detector.chart import ticks
from detector.dataset_check.findings import printable

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 30  # margins of the plane


def escaped(text: object) -> str:
    """Any text for HTML, control characters shown."""
    return html.escape(printable(str(text)), quote=True)


def line_chart(title: str, series: Mapping[str, Points], *, x_label: str, scale: str = "linear", note: str = "") -> str:
    """A figure of curves with a legend; "log" spaces y by decades. Without any finite point it says so.

    Args:
        title: above the chart.
        series: name -> points (x, y), at most eight curves.
        x_label: below it.
        scale: of y: linear from the least value, zero (linear from 0), or log.
        note: a line under the chart.
    """
    known = {
        name: [(x, y) for x, y in points if math.isfinite(y) and (scale != "log" or y > 0)]
        for name, points in series.items()
    }
    known = {name: points for name, points in known.items() if points}
    if not known:
        return figure(title, "<p class=quiet>nothing recorded</p>", note)
    xs = [x for points in known.values() for x, _ in points]
    ys = [y for points in known.values() for _, y in points]
    x_ticks, y_ticks = ticks([0.0, *xs]), _y_ticks(ys, scale)
    place = _Plane(x_ticks, y_ticks, log=scale == "log")
    body = place.grid(x_label)
    for number, points in enumerate(known.values()):
        line = " ".join(f"{place.x(x):.1f},{place.y(y):.1f}" for x, y in points)
        if len(points) == 1:
            x, y = points[0]
            body += f'<circle class="f{number % 8}" cx="{place.x(x):.1f}" cy="{place.y(y):.1f}" r="4"/>'
        body += f'<polyline class="s{number % 8}" points="{line}"/>'
    names = "".join(f'<span><i class="k{number % 8}"></i>{escaped(name)}</span>' for number, name in enumerate(known))
    legend = f"<p class=legend>{names}</p>" if len(known) > 1 else ""
    return figure(title, _svg(body) + legend, note)


def figure(title: str, body: str, note: str = "") -> str:
    """A titled figure with a note under it; both are plain text."""
    below = f"<p class=quiet>{escaped(note)}</p>" if note else ""
    return f"<figure><figcaption>{escaped(title)}</figcaption>{body}{below}</figure>"


def spark(points: Points) -> str:
    """A small curve in the unit square, for a cell of a table."""
    line = " ".join(f"{60 * x:.1f},{22 - 20 * y:.1f}" for x, y in points)
    return f'<svg class=spark viewBox="0 0 60 24" role="img"><polyline class="s0" points="{line}"/></svg>'


def unit_chart(
    title: str, series: Mapping[str, Points], *, x_label: str, diagonal: bool = False, bars: Points = ()
) -> str:
    """Curves, and bars from 0, in the unit square; the diagonal where wanted."""
    square = [0.0, 0.25, 0.5, 0.75, 1.0]
    place = _Plane(square, square)
    body = place.grid(x_label)
    width = 0.8 * (place.x(1) - place.x(0)) / max(len(bars), 1)
    for x, y in bars:
        top, base = place.y(y), place.y(0)
        body += f'<rect class="b0" x="{place.x(x) - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" height="{base - top:.1f}"/>'
    if diagonal:
        body += f'<line class="diagonal" x1="{place.x(0)}" y1="{place.y(0)}" x2="{place.x(1)}" y2="{place.y(1)}"/>'
    for number, points in enumerate(series.values()):
        line = " ".join(f"{place.x(x):.1f},{place.y(y):.1f}" for x, y in points)
        body += f'<polyline class="s{number % 8}" points="{line}"/>'
    return figure(title, _svg(body))


def _svg(body: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{body}</svg>'


def _y_ticks(ys: Sequence[float], scale: str) -> list[float]:
    if scale != "log":
        return ticks([*ys, 0.0] if scale == "zero" else ys)
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    return [10.0**k for k in range(low, max(high, low + 1) + 1)]


class _Plane:
    """Numbers to pixels between the outermost ticks."""

    def __init__(self, x_ticks: Sequence[float], y_ticks: Sequence[float], *, log: bool = False):
        self.x_ticks, self.y_ticks = x_ticks, y_ticks
        self._map = math.log10 if log else float

    def x(self, value: float) -> float:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self._map(self.y_ticks[0]), self._map(self.y_ticks[-1])
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (self._map(value) - low) / (high - low)

    def grid(self, x_label: str) -> str:
        """Lines, numbers and the name of x."""
        out = ""
        for value in self.y_ticks:
            y = self.y(value)
            out += f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>'
            out += f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>'
        for value in self.x_ticks:
            out += f'<text x="{self.x(value):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:g}</text>'
        return out + f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">{escaped(x_label)}</text>'
