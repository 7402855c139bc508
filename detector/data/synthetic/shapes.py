"""The plain synthetic data set: six shapes of all scales on textured grounds."""

from __future__ import annotations

import numpy as np
from numpy.random import RandomState

from detector.data.synthetic.raster import POLYGONS, Canvas, Drawn, belongs, corners_of, rasterise

DESCRIPTION = "drawn shapes"
VERSION = 1  # increase it when the pixels change
COUNTS = {"train": 400, "val": 80}  # default number of images
LEAST_SIZE = 32  # of an image in pixels
CLASSES = ("disc", "ring", *POLYGONS)
KEYPOINTS = {"triangle": ("top", "right", "left")}  # the corners of a shape, in the order of POLYGONS
SCALES = ((14, 31), (32, 95), (96, 2**31 - 1))  # sides in pixels: small, medium, large as in COCO
SCALE_ODDS = (0, 0, 0, 1, 1, 1, 2, 2)  # indices of SCALES
MOST_OBJECTS = 8


def draw_image(rng: RandomState, width: int, height: int, *, empty: bool = False) -> tuple[np.ndarray, list[Drawn]]:
    """An image (H, W, 3) uint8 and its objects, at most MOST_OBJECTS and at least one unless `empty`."""
    canvas = Canvas(rng, width, height)
    most = 0 if empty else MOST_OBJECTS
    count = rng.randint((most + 1) // 2, most + 1)
    for side in sorted((_side(rng, min(width, height)) for _ in range(count)), reverse=True):  # smaller ones on top
        label = rng.randint(len(CLASSES))
        name, pose = CLASSES[label], _pose(rng, side)
        coverage = rasterise(name, *pose)
        place = canvas.find_place(belongs(coverage))
        if place is not None:
            canvas.add(label, coverage, *place, corners_of(name, *pose) if name in KEYPOINTS else None)
    return canvas.pixels(), canvas.finished()


def _side(rng: RandomState, room: int) -> int:
    """The longer side of a shape in pixels, at most 7/8 of the `room`."""
    least, most = SCALES[SCALE_ODDS[rng.randint(len(SCALE_ODDS))]]
    most = min(most, room * 7 // 8)
    return rng.randint(min(least, most), most + 1)


def _pose(rng: RandomState, side: int) -> tuple[int, int, int, int]:
    """Width and height in pixels, and tan(angle / 2) as a fraction of 32: at most 14 degrees."""
    other = rng.randint((3 * side + 3) // 4, side + 1)
    width, height = (side, other) if rng.randint(2) else (other, side)
    return width, height, rng.randint(-4, 5), 32
