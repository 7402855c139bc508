"""A harder synthetic data set: small discs that look alike, whose class depends on their context, among shapes of all scales.

A disc lies in a hoop, on stripes or beside a bar. The context begins 21 pixels from the disc's edge, which is about the
receptive field of a cell of a ResNet's C2. So a detector needs fine maps to locate the disc and coarse maps to classify it.
"""

from __future__ import annotations

import numpy as np
from numpy.random import RandomState

from detector.data.synthetic.raster import SAMPLES, Canvas, Drawn, belongs, rasterise

DESCRIPTION = "drawn shapes in context"
VERSION = 1  # increase it when the pixels change
COUNTS = {"train": 800, "val": 160}  # default number of images
CONTEXTS = ("hoop", "stripes", "bar")
SHAPES = ("square", "triangle", "cross")
KEYPOINTS: dict[str, tuple[str, ...]] = {}
CLASSES = ("disc in hoop", "disc on stripes", "disc by bar", *SHAPES)
SIDES = ((20, 31), (32, 80), (104, 140))  # of the shapes in pixels
MOST_SHAPES = 5
MOST_SCENES = 3
DISC = (12, 18)  # sides of a disc in pixels
SCENE = 76  # side of the square of a disc and its context
LEAST_SIZE = SCENE  # of an image; no disc fits into a smaller one
CLEAR = 60  # diameter around the disc's centre that the context leaves free
BAND = 6  # pixels: thickness of a hoop and a stripe


def draw_image(rng: RandomState, width: int, height: int, *, empty: bool = False) -> tuple[np.ndarray, list[Drawn]]:
    """An image (H, W, 3) uint8 and its objects: shapes, and discs in their contexts over them. `empty`: without objects."""
    canvas = Canvas(rng, width, height)
    shapes, scenes = (0, 0) if empty else (rng.randint(1, MOST_SHAPES + 1), rng.randint(1, MOST_SCENES + 1))
    for side in sorted((_side(rng, min(width, height)) for _ in range(shapes)), reverse=True):  # smaller ones on top
        label = rng.randint(len(SHAPES))
        coverage = rasterise(SHAPES[label], side, side, rng.randint(-4, 5), 32)
        place = canvas.find_place(belongs(coverage))
        if place is not None:
            canvas.add(len(CONTEXTS) + label, coverage, *place)
    for _ in range(scenes):
        _draw_scene(rng, canvas)
    return canvas.pixels(), canvas.finished()


def _side(rng: RandomState, room: int) -> int:
    """The side of a shape in pixels, at most 7/8 of the `room`."""
    least, most = SIDES[rng.randint(len(SIDES))]
    most = min(most, room * 7 // 8)
    return rng.randint(min(least, most), most + 1)


def _draw_scene(rng: RandomState, canvas: Canvas) -> None:
    """Draw a disc in its context where there is room, and reserve the place."""
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
    """The coverage (SCENE, SCENE) of a context, in a random orientation; its middle is free for the disc."""
    if name == "hoop":
        hole = SCENE - 2 * BAND
        return _centred(rasterise("disc", SCENE, SCENE, 0, 1)) - _centred(rasterise("disc", hole, hole, 0, 1))
    stripe = np.arange(SCENE) // BAND % 2 == 0 if name == "stripes" else np.arange(SCENE) < BAND + 2
    clear = _centred(rasterise("disc", CLEAR, CLEAR, 0, 1))
    coverage = np.where(stripe[:, None], SAMPLES**2 - clear, 0)
    return np.rot90(coverage, rng.randint(4))


def _centred(coverage: np.ndarray) -> np.ndarray:
    """The coverage (SCENE, SCENE) with the given one in its middle."""
    (h, w), out = coverage.shape, np.zeros((SCENE, SCENE), dtype=coverage.dtype)
    y, x = (SCENE - h) // 2, (SCENE - w) // 2
    out[y : y + h, x : x + w] = coverage
    return out
