"""Tiles: equal parts that cover a large image, to see its small objects larger than in the whole (SAHI, Akyon et al. 2022).

Sizes and places are in pixels of the original image. A tile is then resized as an image is, by `data.resize`: that says how
large its objects become.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from detector.data.box_arrays import clip_to_images
from detector.data.transforms import Side
from detector.records.geometry import Size, Window
from detector.schema.ranges import Fraction, Range
from detector.schema.signatures import checked


@checked
@dataclass(frozen=True)
class TileGrid:
    """Where the tiles of an image lie."""

    size: Side | tuple[Side, Side]
    """Height and width of a tile in pixels of the original image, or one number for both; a smaller image is one tile."""
    overlap: Annotated[float, Range(0, 1, below=True)] = 0.2
    """Share of its side that a tile has in common with the next one. Objects up to this size are whole in one of the tiles."""

    @property
    def sides(self) -> Size:
        """Height and width of a tile."""
        h, w = (self.size, self.size) if isinstance(self.size, int) else self.size
        return h, w

    def windows(self, image: Size) -> list[Window]:
        """The tiles of an image of size (h, w), row by row: all of one size, and together they cover it.

        They begin at equal steps; the last of a row or column is moved inward, to end where the image does.
        """
        (h, w), (tile_h, tile_w) = image, (min(tile, side) for tile, side in zip(self.sides, image))
        tops, lefts = _starts(h, tile_h, self.overlap), _starts(w, tile_w, self.overlap)
        return [(top, left, tile_h, tile_w) for top in tops for left in lefts]

    def nearest(self, boxes: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (B, 4) in images of sizes (B, 2) h, w -> those in the pixels of a tile, and its size (B, 2).

        It is the tile whose middle is nearest to that of the box, which is clipped to it.
        """
        sizes, moved = np.minimum(images, self.sides), boxes.copy()
        for axis, ends in enumerate(([1, 3], [0, 2])):
            for length in np.unique(images[:, axis]).tolist():
                rows, tile = np.flatnonzero(images[:, axis] == length), min(length, self.sides[axis])
                starts = np.array(_starts(length, tile, self.overlap))
                wanted = boxes[rows][:, ends].mean(axis=1) - tile / 2
                after = np.searchsorted((starts[1:] + starts[:-1]) / 2, wanted)
                moved[rows[:, None], ends] -= starts[after][:, None]
        return clip_to_images(moved, sizes), sizes

    def __str__(self) -> str:
        h, w = self.sides
        return f"tiles of {w} x {h} pixels, overlap {self.overlap:g}"


@checked
@dataclass(frozen=True)
class Tiles(TileGrid):
    """How a detector looks at an image in tiles."""

    whole: bool = True
    """Look at the whole image as well, for objects larger than a tile."""

    def views(self, image: Size) -> list[Window]:
        """The windows of an image of size (h, w) that a detector sees: the whole image, if it is wanted, and the tiles."""
        windows = self.windows(image)
        return [(0, 0, *image), *windows] if self.whole and len(windows) > 1 else windows

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a report."""
        return {"size": list(self.sides), "overlap": self.overlap, "whole": self.whole}

    def __str__(self) -> str:
        return f"{super().__str__()}, {'and the whole image' if self.whole else 'without the whole image'}"


@checked
@dataclass(frozen=True)
class TrainingTiles(TileGrid):
    """Training on the tiles of images; an evaluation during the training sees tiles of that size, too, and the whole image."""

    keep: Fraction = 0.3
    """Least share of the area of an object's box that lies in a tile, for the object to be learnt there. What a tile shows of
    other objects is neither object nor background."""

    def learns(self, shares: np.ndarray) -> np.ndarray:
        """(B,) bool: whether objects with these shares of their area (B,) in a tile are learnt there."""
        return (shares > 0) & (shares >= self.keep)

    def of_evaluation(self) -> Tiles:
        """The same tiles for a detector."""
        return Tiles(self.size, self.overlap)


def tiles_of(value: int | tuple[int, int] | Tiles) -> Tiles:
    """Tiles by their size alone, one number or (height, width), or as they are. Raises ValueError for another value."""
    return value if isinstance(value, Tiles) else Tiles(value)


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where the tiles of one direction begin."""
    step, last = max(1, round(tile * (1 - overlap))), length - tile
    return [*range(0, last, step), last]
