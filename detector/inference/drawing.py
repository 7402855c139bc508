"""Drawing detections so that boxes and labels are legible on light and dark images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import cast

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from detector.structures import Detections

Colour = tuple[int, int, int]
PixelBox = tuple[int, int, int, int]  # x1, y1, x2, y2 in whole pixels, the last row and column not included
GOLDEN = 0.618034  # hue steps by the golden ratio keep the colours of neighbouring labels apart
TONES = ((0.85, 1.0), (0.5, 1.0), (0.9, 0.8))  # saturation, value
LEAST_LUMINANCE = 0.22  # a contrast of (0.22 + 0.05) / 0.05 = 5.4 to black; WCAG 2 asks for 4.5
HALO = (0, 0, 0, 130)  # a dark outline around the bright lines, for light images


def draw_detections(image: Tensor, detections: Detections) -> Image.Image:
    """Draw boxes, class names and scores on a uint8 RGB image (3, H, W); line width and font scale with its size."""
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    short, long = sorted(picture.size)
    line = max(1, round(short / 240))
    seam = (line + 1) // 2
    font = load_font(max(10, round(long / 50)))
    pen = ImageDraw.Draw(picture, "RGBA")
    boxes = [_frame(box, line + seam, picture.size) for box in detections.boxes.tolist()]
    colours = [class_colour(label) for label in detections.labels.tolist()]
    texts = [_shorten(text, font, picture.width - 4 * line) for text in _texts(detections)]
    for box, colour in reversed(list(zip(boxes, colours))):  # the best on top
        _rectangle(pen, _grow(box, seam), HALO, line + 2 * seam)
        _rectangle(pen, box, colour, line)
    ascent, descent = font.getmetrics()
    sizes = [(round(font.getlength(text)) + 4 * line, ascent + descent) for text in texts]
    plates = place_labels(boxes, sizes, picture.size)
    for (x1, y1, x2, y2), colour, text in reversed(list(zip(plates, colours, texts))):
        pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=colour)
        pen.text((x1 + 2 * line, y1), text, fill=(0, 0, 0), font=font)
    return picture


def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own scalable font."""
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size=size))


def class_colour(label: int) -> Colour:
    """The fixed colour of a class, distinct from those of neighbouring labels and bright enough for black text."""
    saturation, value = TONES[label % len(TONES)]
    colour = [255 * c for c in colorsys.hsv_to_rgb(label * GOLDEN % 1, saturation, value)]
    while luminance(colour) < LEAST_LUMINANCE:  # blues and violets
        colour = [c + (255 - c) / 8 for c in colour]
    r, g, b = (round(c) for c in colour)
    return r, g, b


def luminance(colour: Sequence[float]) -> float:
    """Relative luminance of an sRGB colour (0..255 each), as in WCAG 2: 0 black .. 1 white."""
    r, g, b = ((c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def place_labels(boxes: list[PixelBox], sizes: list[tuple[int, int]], picture: tuple[int, int]) -> list[PixelBox]:
    """Label rectangles of `sizes` (w, h) at their boxes, inside the picture (w, h), with minimal overlap of each other.

    Labels are placed in order. Candidates are above the box, inside it and below it, aligned left or right.
    """
    placed: list[PixelBox] = []
    for (x1, y1, x2, y2), (w, h) in zip(boxes, sizes):
        corners = [(x, y) for y in (y1 - h, y1, y2, y2 - h) for x in (x1, x2 - w)]
        candidates = [_inside(x, y, w, h, picture) for x, y in corners]
        overlaps = [sum(shared_area(candidate, other) for other in placed) for candidate in candidates]
        placed.append(candidates[overlaps.index(min(overlaps))])  # the first of equals
    return placed


def _texts(detections: Detections) -> list[str]:
    names = detections.names if detections.class_names is not None else map(str, detections.labels.tolist())
    return [f"{name} {score:.2f}" for name, score in zip(names, detections.scores.tolist())]


def _shorten(text: str, font: ImageFont.FreeTypeFont, room: int) -> str:
    """The text, truncated to `room` pixels."""
    while len(text) > 1 and font.getlength(text) > room:
        text = text[:-2] + "…"
    return text


def _frame(box: list[float], by: int, picture: tuple[int, int]) -> PixelBox:
    """The outer edge of the line around a box: outside the box, but inside the picture."""
    x1, y1, x2, y2 = _grow(tuple(round(v) for v in box), by)
    return max(x1, 0), max(y1, 0), min(x2, picture[0]), min(y2, picture[1])


def _grow(box: PixelBox, by: int) -> PixelBox:
    x1, y1, x2, y2 = box
    return x1 - by, y1 - by, x2 + by, y2 + by


def _rectangle(pen: ImageDraw.ImageDraw, box: PixelBox, colour: tuple[int, ...], line: int) -> None:
    x1, y1, x2, y2 = box
    pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=colour, width=line)


def _inside(x: int, y: int, w: int, h: int, picture: tuple[int, int]) -> PixelBox:
    """The box of size (w, h) at (x, y), moved into the picture."""
    x, y = max(min(x, picture[0] - w), 0), max(min(y, picture[1] - h), 0)
    return x, y, x + w, y + h


def shared_area(a: Sequence[float], b: Sequence[float]) -> float:
    """Area of the intersection of two rectangles x1, y1, x2, y2."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0)
