"""Rasterisation in integers: shapes on textured backgrounds, with the same pixels on every machine.

All arithmetic is on integers. The random numbers come from `numpy.random.RandomState`, whose stream is frozen
(NEP 19), so the pixels depend on the arguments and not on the platform, the versions of libraries or a font.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import RandomState

SAMPLES = 3  # per pixel and axis, so that edges are smooth
UNIT = 1000  # half the side of a shape in its own coordinates
TRIES = 12  # random places that are tried for an object before it is left out
CONTRAST = 180  # minimum of sum over channels |colour - background|
BRIGHT = 400  # minimum sum of a shape's channels; backgrounds are dark, so that a small network learns in minutes
POLYGONS = {
    "square": [(-900, -900), (900, -900), (900, 900), (-900, 900)],
    "triangle": [(0, -1000), (1000, 800), (-1000, 800)],
    "star": [(0, -1000), (247, -340), (951, -309), (399, 130), (588, 809)]
    + [(0, 420), (-588, 809), (-399, 130), (-951, -309), (-247, -340)],
    "cross": [(-330, -1000), (330, -1000), (330, -330), (1000, -330), (1000, 330), (330, 330)]
    + [(330, 1000), (-330, 1000), (-330, 330), (-1000, 330), (-1000, -330), (-330, -330)],
}  # x right, y down, in UNITs


@dataclass(frozen=True)
class Drawn:
    """One object of an image."""

    label: int  # index of the set's CLASSES
    box: tuple[int, int, int, int]  # x, y, width, height: the tight box of the whole shape, hidden parts included
    area: int  # pixels of the whole shape
    points: tuple[tuple[float, float], ...] = ()  # x, y of its corners, for a shape with keypoints
    visible: np.ndarray | None = None  # (H, W) bool: its pixels that nothing hides, once the picture is finished


class Canvas:
    """An image during drawing, with the visible object of each pixel."""

    def __init__(self, rng: RandomState, width: int, height: int):
        self.rng, self.image = rng, _ground(rng, width, height)
        self.owner = np.full((height, width), -1)  # the visible object at each pixel, -1 for none
        self.closed = np.zeros((height, width), dtype=bool)  # reserved places
        self.drawn: list[Drawn] = []

    def find_place(self, mask: np.ndarray) -> tuple[int, int] | None:
        """A top left corner (x, y) where the mask fits and covers at most a quarter of any object; None if none was found."""
        h, w = mask.shape
        room_y, room_x = self.owner.shape[0] - h, self.owner.shape[1] - w
        if min(room_x, room_y) < 0:
            return None
        area = np.array([d.area for d in self.drawn], dtype=np.int64)
        for _ in range(TRIES):
            x, y = self.rng.randint(room_x + 1), self.rng.randint(room_y + 1)
            after = self.owner.copy()
            after[y : y + h, x : x + w][mask] = -1
            visible = np.bincount(after[after >= 0], minlength=len(self.drawn))
            free = not self.closed[y : y + h, x : x + w].any()
            if free and (4 * visible >= 3 * area).all():
                return x, y
        return None

    def paint(self, coverage: np.ndarray, x: int, y: int) -> None:
        """Fill the covered pixels with a mottled bright colour that differs from the background there."""
        h, w = coverage.shape
        image = self.image[y : y + h, x : x + w]
        under = image[coverage > 0].sum(axis=0) // (coverage > 0).sum()
        colour = under
        while abs(colour - under).sum() < CONTRAST or colour.sum() < BRIGHT:
            colour = self.rng.randint(60, 256, size=3)
        fill = np.clip(colour + _mottle(self.rng, w, h, cell=6, swing=14)[..., None], 0, 255)
        share, whole = coverage[..., None], SAMPLES**2
        image[:] = (image * (whole - share) + fill * share) // whole
        self.owner[y : y + h, x : x + w][belongs(coverage)] = -1

    def add(self, label: int, coverage: np.ndarray, x: int, y: int, points: np.ndarray | None = None) -> None:
        """Paint an object, given its tight `coverage`, with its top left corner at (x, y).

        `points` (J, 2) are its keypoints from that corner.
        """
        self.paint(coverage, x, y)
        mask = belongs(coverage)
        h, w = mask.shape
        self.owner[y : y + h, x : x + w][mask] = len(self.drawn)
        moved = () if points is None else tuple((px + x, py + y) for px, py in points.tolist())
        self.drawn.append(Drawn(label, (x, y, w, h), int(mask.sum()), moved))

    def finished(self) -> list[Drawn]:
        """All objects, with what can be seen of each."""
        return [replace(drawn, visible=self.owner == i) for i, drawn in enumerate(self.drawn)]

    def pixels(self) -> np.ndarray:
        """The finished picture (H, W, 3) uint8, with its grain."""
        grain = self.rng.randint(-5, 6, size=(*self.owner.shape, 1))
        return np.clip(self.image + grain, 0, 255).astype(np.uint8)


def rasterise(name: str, width: int, height: int, p: int, q: int) -> np.ndarray:
    """Coverage (h, w) of a shape in its tight box: how many of the SAMPLES x SAMPLES points of each pixel lie inside.

    `width` and `height` are pixels before the rotation by 2 atan(p / q), which a Pythagorean triple makes exact.
    """
    coverage = _whole(name, width, height, p, q)
    top, left, bottom, right = _tight(coverage)
    return coverage[top:bottom, left:right]


def corners_of(name: str, width: int, height: int, p: int, q: int) -> np.ndarray:
    """The corners (n, 2) x, y of a polygon as `rasterise` draws it, from the corner of its tight box, to 1/100 pixel."""
    coverage = _whole(name, width, height, p, q)
    top, left, _, _ = _tight(coverage)
    cos, sin, norm = q * q - p * p, 2 * p * q, q * q + p * p
    x, y = (np.array(POLYGONS[name]) * (width, height)).T  # in 2 UNITs to a pixel
    turned = np.stack([cos * x - sin * y, sin * x + cos * y], axis=1) * 50 // (norm * UNIT)
    return (turned + 100 * (len(coverage) // 2 - np.array([left, top]))) / 100


def _whole(name: str, width: int, height: int, p: int, q: int) -> np.ndarray:
    """The coverage of a square around a shape's centre."""
    reach = (3 * max(width, height) + 3) // 4 + 1  # pixels; a rotated square reaches sqrt(2) / 2 sides from its centre
    points = np.arange(1 - 2 * reach * SAMPLES, 2 * reach * SAMPLES, 2, dtype=np.int64)  # half samples from the centre
    dx, dy = points[None, :], points[:, None]
    cos, sin, norm = q * q - p * p, 2 * p * q, q * q + p * p
    x = UNIT * (cos * dx + sin * dy) // (norm * width * SAMPLES)
    y = UNIT * (cos * dy - sin * dx) // (norm * height * SAMPLES)
    inside = _inside(name, x.astype(np.int32), y.astype(np.int32))  # int32: half the time
    return inside.reshape(2 * reach, SAMPLES, 2 * reach, SAMPLES).sum(axis=(1, 3))


def _tight(coverage: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of the pixels that belong to a shape."""
    mask = belongs(coverage)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def belongs(coverage: np.ndarray) -> np.ndarray:
    """Mask of the pixels of which the shape covers more than half."""
    return 2 * coverage > SAMPLES**2


def _inside(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mask of the points (in UNITs from the centre) inside the shape."""
    if name in ("disc", "ring"):
        radius2 = x * x + y * y
        hole = 0 if name == "disc" else (UNIT * 11 // 20) ** 2
        return (hole <= radius2) & (radius2 < UNIT**2)
    inside = np.zeros(x.shape, dtype=bool)
    corners = POLYGONS[name]
    for (x1, y1), (x2, y2) in zip(corners, [*corners[1:], corners[0]]):  # even-odd rule: count the edges to the right
        side = (x - x1) * (y2 - y1) - (y - y1) * (x2 - x1)
        inside ^= ((y1 > y) != (y2 > y)) & ((side < 0) == (y2 > y1))
    return inside


def _ground(rng: RandomState, width: int, height: int) -> np.ndarray:
    """A textured background (H, W, 3): a slowly varying dark colour with coarse and fine grey noise."""
    base = rng.randint(20, 100, size=3)
    drift = np.stack([_mottle(rng, width, height, cell=64, swing=25) for _ in range(3)], axis=-1)
    grey = _mottle(rng, width, height, cell=16, swing=24) + _mottle(rng, width, height, cell=4, swing=16)
    return np.clip(base + drift + grey[..., None], 0, 255)


def _mottle(rng: RandomState, width: int, height: int, *, cell: int, swing: int) -> np.ndarray:
    """Random values in -swing..swing on a grid of cells, interpolated bilinearly: (H, W)."""
    grid = rng.randint(-swing, swing + 1, size=(height // cell + 2, width // cell + 2))
    (y, fy), (x, fx) = (np.divmod(np.arange(n), cell) for n in (height, width))
    rows = grid[y] * (cell - fy[:, None]) + grid[y + 1] * fy[:, None]  # (H, grid columns)
    return (rows[:, x] * (cell - fx) + rows[:, x + 1] * fx) // cell**2
