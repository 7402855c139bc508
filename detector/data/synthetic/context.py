"""A harder drawn set: small discs that look alike, whose class is what stands around them, among shapes of all scales.

A disc lies in a hoop, on stripes or beside a bar, and what tells the three apart begins 21 pixels from its edge: about as
far as a cell of a ResNet's C2 sees. So a detector needs fine maps to find the disc and coarse ones to know it.
"""

from __future__ import annotations

import numpy as np
from numpy.random import RandomState

from detector.data.synthetic.raster import SAMPLES, Canvas, Drawn, belongs, rasterise

DESCRIPTION = "drawn shapes in context"
VERSION = 1  # of the drawing: raise it when the pixels change
COUNTS = {"train": 800, "val": 160}  # images, unless asked for others
CONTEXTS = ("hoop", "stripes", "bar")
SHAPES = ("square", "triangle", "cross")
CLASSES = ("disc in hoop", "disc on stripes", "disc by bar", *SHAPES)
SIDES = ((20, 31), (32, 80), (104, 140))  # of the shapes in pixels
MOST_SHAPES = 5
MOST_SCENES = 3
DISC = (12, 18)  # sides of a disc in pixels
SCENE = 76  # side of the square that holds a disc in its context
LEAST_SIZE = SCENE  # of an image: in a smaller one there would be no disc
CLEAR = 60  # diameter within which nothing but the disc is painted
BAND = 6  # pixels: thickness of a hoop and a stripe


def draw_image(rng: RandomState, width: int, height: int, *, empty: bool = False) -> tuple[np.ndarray, list[Drawn]]:
    """A picture (H, W, 3) uint8 with shapes and, above them, discs in their contexts; these objects. None if `empty`."""
    canvas = Canvas(rng, width, height)
    shapes, scenes = (0, 0) if empty else (rng.randint(1, MOST_SHAPES + 1), rng.randint(1, MOST_SCENES + 1))
    for side in sorted((_side(rng, min(width, height)) for _ in range(shapes)), reverse=True):  # large ones lie below
        label = rng.randint(len(SHAPES))
        coverage = rasterise(SHAPES[label], side, side, rng.randint(-4, 5), 32)
        place = canvas.find_place(belongs(coverage))
        if place is not None:
            canvas.add(len(CONTEXTS) + label, coverage, *place)
    for _ in range(scenes):
        _draw_scene(rng, canvas)
    return canvas.pixels(), canvas.drawn


def _side(rng: RandomState, room: int) -> int:
    """The side of a shape in pixels, at most 7/8 of the `room`."""
    least, most = SIDES[rng.randint(len(SIDES))]
    most = min(most, room * 7 // 8)
    return rng.randint(min(least, most), most + 1)


def _draw_scene(rng: RandomState, canvas: Canvas) -> None:
    """A disc in its context, where there is room; nothing else comes near it afterwards."""
    label = rng.randint(len(CONTEXTS))
    context = surroundings(rng, CONTEXTS[label])
    side = rng.randint(DISC[0], DISC[1] + 1)
    disc = rasterise("disc", side, side, 0, 1)
    place = canvas.find_place(belongs(context) | belongs(_centred(disc)))
    if place is None:
        return
    x, y = place
    canvas.paint(context, x, y)
    margin = (SCENE - side) // 2
    canvas.add(label, disc, x + margin, y + margin)
    canvas.closed[y : y + SCENE, x : x + SCENE] = True


def surroundings(rng: RandomState, name: str) -> np.ndarray:
    """The coverage (SCENE, SCENE) of a context, in one of its orientations; the disc's place in the middle is clear."""
    if name == "hoop":
        hole = SCENE - 2 * BAND
        return _centred(rasterise("disc", SCENE, SCENE, 0, 1)) - _centred(rasterise("disc", hole, hole, 0, 1))
    stripe = np.arange(SCENE) // BAND % 2 == 0 if name == "stripes" else np.arange(SCENE) < BAND + 2
    clear = _centred(rasterise("disc", CLEAR, CLEAR, 0, 1))
    coverage = np.where(stripe[:, None], SAMPLES**2 - clear, 0)
    return np.rot90(coverage, rng.randint(4))


def _centred(coverage: np.ndarray) -> np.ndarray:
    """A coverage in the middle of a scene."""
    (h, w), out = coverage.shape, np.zeros((SCENE, SCENE), dtype=coverage.dtype)
    y, x = (SCENE - h) // 2, (SCENE - w) // 2
    out[y : y + h, x : x + w] = coverage
    return out
