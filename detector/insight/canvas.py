"""Views of an image with boxes and maps on them, and panels of such views as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from detector.dataset_check.findings import printable
from detector.inference.lettering import Line, fonts_of, typeset
from detector.insight.exhibits import LevelMap
from detector.insight.explain_facts import Box

Colour = tuple[int, int, int]
WIDTH, GAP = 1600, 24
PAPER, INK, QUIET = (255, 255, 255), (32, 36, 44), (96, 102, 114)
TITLE, HEAD, SMALL = 26, 19, 15  # pixels of letters
HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))  # from 0 to 1
FOR, AGAINST = (232, 64, 32), (40, 112, 240)  # of a class
GREY = 0.35  # of the image below a map


class View:
    """A window of an image, as large as fits into `room`.

    Args:
        image: uint8 RGB (3, H, W).
        window: x1, y1, x2, y2 in its pixels.
        room: width and height in pixels of the view.
    """

    def __init__(self, image: Tensor, window: Box, room: tuple[int, int]):
        x1, y1, x2, y2 = self.window = window
        self.scale = min(room[0] / (x2 - x1), room[1] / (y2 - y1))
        size = max(round((x2 - x1) * self.scale), 1), max(round((y2 - y1) * self.scale), 1)
        whole = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
        self.picture = whole.resize(size, Image.Resampling.BICUBIC, box=window)

    def frame(self, box: Sequence[float], colour: Colour, line: int = 2, *, seam: bool = False) -> None:
        """Draw a box of the image; with a seam its line is legible on any ground."""
        x1, y1, x2, y2 = self.place(box)
        pen = ImageDraw.Draw(self.picture)
        if seam:
            pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=(0, 0, 0), width=line + 2)
        pen.rectangle((x1, y1, x2, y2), outline=colour, width=line)

    def grid(self, box: Sequence[float], cells: int, colour: Colour) -> None:
        """Draw a box as cells x cells."""
        x1, y1, x2, y2 = self.place(box)
        pen = ImageDraw.Draw(self.picture)
        for k in range(cells + 1):
            x, y = x1 + (x2 - x1) * k / cells, y1 + (y2 - y1) * k / cells
            pen.line((x, y1, x, y2), fill=colour)
            pen.line((x1, y, x2, y), fill=colour)

    def place(self, box: Sequence[float]) -> tuple[int, int, int, int]:
        """A box of the image in pixels of the view, at its borders where it leaves it far behind."""
        left, top = self.window[:2]
        w, h = self.picture.size
        x1, y1, x2, y2 = (round((v - start) * self.scale) for v, start in zip(box, (left, top, left, top)))
        x1, y1 = min(max(x1, -9), w + 9), min(max(y1, -9), h + 9)
        return x1, y1, max(min(x2, w + 9), x1), max(min(y2, h + 9), y1)

    def heat(self, level: LevelMap) -> None:
        """Lay a map of 0..1 over the view, from dark to bright."""
        values = self._of(level)
        stops = np.linspace(0, 1, len(HEAT))
        colours = np.stack([np.interp(values, stops, [stop[c] for stop in HEAT]) for c in range(3)], axis=-1)
        self._blend(colours, 1 - GREY)

    def signed(self, level: LevelMap) -> None:
        """Lay a map of both signs over the view: red where it is positive, blue where negative, by its greatest value."""
        values = self._of(level)
        most = float(level.values.abs().max()) or 1.0
        colours = np.where((values > 0)[..., None], np.array(FOR), np.array(AGAINST))
        self._blend(colours, np.abs(values / most)[..., None] ** 0.7 * 0.9)

    def _of(self, level: LevelMap) -> np.ndarray:
        """The map at each pixel of the view, (h, w)."""
        h, w = level.values.shape
        x1, y1, x2, y2 = (v / level.cell[i % 2] for i, v in enumerate(self.window))
        box = min(x1, w - 1e-3), min(y1, h - 1e-3), min(x2, w), min(y2, h)
        source = Image.fromarray(level.values.float().numpy())
        return np.asarray(source.resize(self.picture.size, Image.Resampling.NEAREST, box=box))

    def _blend(self, colours: np.ndarray, share: np.ndarray | float) -> None:
        """Colours (h, w, 3) over the greyed picture."""
        grey = np.asarray(self.picture.convert("L"), dtype=np.float32)[..., None].repeat(3, axis=2)
        self.picture = Image.fromarray((grey * (1 - share) + colours * share).clip(0, 255).astype(np.uint8))


@dataclass(frozen=True)
class TitledView:
    """A picture with its title above and its caption below."""

    title: str
    picture: Image.Image
    caption: str


def around(
    box: Sequence[float], size: tuple[int, int], room: tuple[int, int], times: float = 2.5, least: float = 48
) -> Box:
    """A window around a box in an image of that (w, h), of the shape of `room` where the image allows it."""
    unit = max(times * (box[2] - box[0]) / room[0], times * (box[3] - box[1]) / room[1], least / room[0])
    sides = [min(unit * room[i], size[i]) for i in (0, 1)]
    x, y = (min(max((box[i] + box[i + 2] - sides[i]) / 2, 0), size[i] - sides[i]) for i in (0, 1))
    return x, y, x + sides[0], y + sides[1]


def compose(title: str, lines: Sequence[str], rows: Sequence[Sequence[TitledView]]) -> Image.Image:
    """Rows of panels below a title and lines of text."""
    room = WIDTH - 2 * GAP
    blocks = [_wrapped(title, TITLE, room)] + [_wrapped(line, HEAD, room) for line in lines]
    heights = [max(_height(panel, _width(row)) for panel in row) for row in rows]
    top = GAP + sum(_sum(block) + 8 for block in blocks)
    picture = Image.new("RGB", (WIDTH, top + sum(height + GAP for height in heights)), PAPER)
    y = GAP
    for block, colour in zip(blocks, [INK] + [QUIET] * len(lines)):
        y = _write(picture, GAP, y, block, colour) + 8
    y = top
    for row, height in zip(rows, heights):
        for number, panel in enumerate(row):
            _put(picture, panel, GAP + number * (_width(row) + GAP), y, _width(row))
        y += height + GAP
    return picture


def panel_width(panels: int) -> int:
    """Pixels of each of several panels in a row; of at least three."""
    count = max(panels, 3)
    return (WIDTH - GAP * (count + 1)) // count


def _width(row: Sequence[TitledView]) -> int:
    return panel_width(len(row))


def _put(picture: Image.Image, panel: TitledView, x: int, y: int, width: int) -> None:
    y = _write(picture, x, y, _wrapped(panel.title, HEAD, width), INK) + 6
    picture.paste(panel.picture, (x, y))
    _write(picture, x, y + panel.picture.height + 6, _wrapped(panel.caption, SMALL, width), QUIET)


def _height(panel: TitledView, width: int) -> int:
    return (
        _sum(_wrapped(panel.title, HEAD, width))
        + 12
        + panel.picture.height
        + _sum(_wrapped(panel.caption, SMALL, width))
    )


def _sum(lines: Sequence[Line]) -> int:
    return sum(line.ascent + line.descent for line in lines)


def _write(picture: Image.Image, x: int, y: int, lines: Sequence[Line], colour: Colour) -> int:
    """Draw lines below each other from (x, y); the row below the last."""
    for line in lines:
        line.draw(picture, x, y + line.ascent, colour)
        y += line.ascent + line.descent
    return y


def _wrapped(text: str, size: int, room: int) -> list[Line]:
    """The text in as many lines as it takes."""
    fonts, lines = fonts_of([text]), []
    left = printable(text).split()
    while left:
        count = len(left)
        while count > 1 and typeset(" ".join(left[:count]), size, fonts).width > room:
            count -= 1
        lines.append(typeset(" ".join(left[:count]), size, fonts, room))
        left = left[count:]
    return lines
