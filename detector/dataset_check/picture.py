"""One picture with histograms of classes, box sizes and aspect ratios of a data set, and objects with their outlines."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from detector.chart import ticks
from detector.dataset_check.check import CheckResult
from detector.dataset_check.examples import SIDE
from detector.dataset_check.findings import printable
from detector.inference.fonts import load_font
from detector.inference.label_places import PixelBox

MAKER = "detector: the health of a data set"  # stored in the file; identifies pictures of earlier runs
SIZE = (1600, 900)
PAPER, INK, QUIET, GRID = (255, 255, 255), (32, 36, 44), (112, 118, 130), (228, 231, 236)
COLOURS = ((35, 105, 189), (240, 140, 46), (66, 160, 98))  # of the splits
CLASSES = 24  # the most frequent; the rest are one bar
STEPS = np.arange(-12, 13)  # quarter octaves of height / width; values beyond count with the outermost
TITLE, LABEL, SMALL = (load_font(size) for size in (24, 17, 14))


@dataclass(frozen=True)
class Panel:
    """A histogram: named bins, and for each series (a split) the share of its objects in each bin."""

    title: str
    bins: Sequence[str]
    shares: Sequence[Sequence[float]]


def picture_png(result: CheckResult) -> bytes:
    """The picture as the content of a PNG file."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", MAKER)
    file = io.BytesIO()
    draw_result(result).save(file, "PNG", pnginfo=text)
    return file.getvalue()


def draw_result(result: CheckResult) -> Image.Image:
    """Classes on the left; on the right box sizes by pyramid level above, aspect ratios below; examples under them."""
    picture = Image.new("RGB", (SIZE[0], SIZE[1] + (SIDE + 80) * bool(result.examples)), PAPER)
    pen = ImageDraw.Draw(picture)
    pen.text((40, 24), _shorten(result.source, TITLE, 760), fill=INK, font=TITLE)
    x = SIZE[0] - 40
    for (name, split), colour in reversed(list(zip(result.splits.items(), COLOURS))):
        label = f"{_shorten(name, LABEL, 200)}: {split.objects} objects, {split.images} images"
        x -= round(LABEL.getlength(label))
        pen.text((x, 29), label, fill=INK, font=LABEL)
        pen.rectangle((x - 24, 31, x - 10, 45), fill=colour)
        x -= 50
    _draw_horizontal(pen, (40, 80, 780, 870), _class_panel(result))
    _draw_vertical(pen, (850, 80, 1570, 430), _level_panel(result))
    _draw_vertical(pen, (850, 500, 1570, 850), _ratio_panel(result))
    for k, (caption, tile) in enumerate(result.examples):
        x = 40 + k * (SIDE + 12)
        picture.paste(tile, (x, SIZE[1] + 20))
        pen.text((x, SIZE[1] + 20 + SIDE + 8), _shorten(caption, SMALL, SIDE), fill=INK, font=SMALL)
    return picture


def _class_panel(result: CheckResult) -> Panel:
    splits = list(result.splits.values())
    names = list(dict.fromkeys(name for s in splits for name in s.classes))
    names.sort(key=lambda name: -splits[0].classes.get(name, (0, 0))[0])
    kept = names if len(names) <= CLASSES else names[: CLASSES - 1]
    shares = []
    for s in splits:
        counts = [s.classes.get(name, (0, 0))[0] for name in kept]
        counts += [s.objects - sum(counts)] * (len(kept) < len(names))
        shares.append([count / max(s.objects, 1) for count in counts])
    rest = [f"{len(names) - len(kept)} others"] * (len(kept) < len(names))
    return Panel("Classes, share of the objects", [*kept, *rest], shares)


def _level_panel(result: CheckResult) -> Panel:
    g, splits = result.geometry, result.splits.values()
    low, high = g.levels
    bins = []
    for k in range(low, high + 1):
        end = g.canonical_size * 2.0 ** (k + 1 - g.k0)
        bins.append(f"P{k}: below {end:g}" if k < high else f"P{k}: larger")
    shares = [[count / max(s.objects, 1) for count in s.levels.values()] for s in splits]
    return Panel("Box sizes, sqrt(w h) in pixels as resized, by pyramid level", bins, shares)


def _ratio_panel(result: CheckResult) -> Panel:
    shares = []
    for s in result.splits.values():
        steps = np.rint(4 * np.log2(s.ratios)).clip(STEPS[0], STEPS[-1]).astype(np.int64)
        counts = np.bincount(steps - STEPS[0], minlength=len(STEPS))
        shares.append((counts / max(len(s.ratios), 1)).tolist())
    octaves = {step: f"1:{2 ** (-step // 4)}" if step < 0 else f"{2 ** (step // 4)}:1" for step in STEPS[::4].tolist()}
    names = [octaves.get(step, "") for step in STEPS.tolist()]
    return Panel("Box shapes, height : width as resized", names, shares)


def _draw_horizontal(pen: ImageDraw.ImageDraw, box: PixelBox, panel: Panel) -> None:
    """Horizontal bars with names on the left and values on the right."""
    left, top, right, bottom = box
    pen.text((left, top), panel.title, fill=INK, font=LABEL)
    if not panel.bins:
        return
    start, top = left + 170, top + 40
    row = min((bottom - top) / len(panel.bins), 190)
    most = max(max(share) for share in panel.shares) or 1
    thick = min(row * 0.76 / len(panel.shares), 48)
    for i, name in enumerate(panel.bins):
        middle = top + (i + 0.5) * row
        pen.text((start - 12, middle), _shorten(name, SMALL, 158), fill=INK, font=SMALL, anchor="rm")
        for j, (share, colour) in enumerate(zip(panel.shares, COLOURS)):
            y = middle + (j - len(panel.shares) / 2) * thick
            end = start + round((right - start - 60) * share[i] / most)
            pen.rectangle((start, round(y), end, round(y + thick) - 2), fill=colour)
            if thick >= 12:
                pen.text((end + 6, y + thick / 2 - 1), _percent(share[i]), fill=QUIET, font=SMALL, anchor="lm")
    pen.line((start, top, start, top + row * len(panel.bins)), fill=INK)


def _draw_vertical(pen: ImageDraw.ImageDraw, box: PixelBox, panel: Panel) -> None:
    """Vertical bars with a scale, and names below."""
    left, top, right, bottom = box
    pen.text((left, top), panel.title, fill=INK, font=LABEL)
    start, top = left + 60, top + 44
    most = max(max(share) for share in panel.shares) or 1
    scale = ticks([0, 100 * most])
    for value in scale:
        y = round(bottom - (bottom - top) * value / scale[-1])
        pen.line((start, y, right, y), fill=GRID)
        pen.text((start - 8, y), f"{value:g} %", fill=QUIET, font=SMALL, anchor="rm")
    column = (right - start) / len(panel.bins)
    thick = min(column * 0.9 / len(panel.shares), 60)
    for i, name in enumerate(panel.bins):
        middle = start + (i + 0.5) * column
        pen.text((middle, bottom + 8), name, fill=INK, font=SMALL, anchor="ma")
        for j, (share, colour) in enumerate(zip(panel.shares, COLOURS)):
            x = middle + (j - len(panel.shares) / 2) * thick
            y = bottom - (bottom - top) * 100 * share[i] / scale[-1]
            pen.rectangle((round(x), round(y), max(round(x + thick) - 2, round(x)), bottom), fill=colour)
    pen.line((start, bottom, right, bottom), fill=INK)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _shorten(text: str, font: ImageFont.FreeTypeFont, room: int) -> str:
    """The text on one line, truncated to `room` pixels."""
    text = printable(text)
    if font.getlength(text) <= room:
        return text
    while len(text) > 1 and font.getlength(text + "...") > room:
        text = text[:-1]
    return text + "..."
