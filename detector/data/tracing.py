"""The border of a bitmap as polygons along the edges of its pixels."""

from __future__ import annotations

import numpy as np

from detector.records.raster import polygon_area

RIGHT, DOWN, LEFT, UP = (1, 0), (0, 1), (-1, 0), (0, -1)


def borders(bitmap: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The outer borders and those of the holes of a bitmap (h, w), each (n, 2) x, y of the corners.

    Pixels that touch at a corner alone belong to different outer borders.
    """
    ways = _edges(bitmap != 0)
    outer, holes = [], []
    while ways:
        corner = next(iter(ways))
        loop = _loop(ways, corner)
        (outer if _signed_area(loop) > 0 else holes).append(loop)
    return outer, holes


def one_polygon(outer: list[np.ndarray]) -> np.ndarray:
    """Polygons as one, the parts joined to the largest by lines there and back, which enclose nothing."""
    joined, *others = sorted(outer, key=polygon_area, reverse=True)
    for part in others:
        apart = ((joined[:, None] - part[None]) ** 2).sum(axis=2)
        i, j = np.unravel_index(apart.argmin(), apart.shape)
        there = np.concatenate([part[j:], part[: j + 1]])
        joined = np.concatenate([joined[: i + 1], there, joined[i:]])
    return joined


def _edges(inside: np.ndarray) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """From each corner the directions of the pixel edges that leave it, with the inside on their right hand."""
    padded = np.pad(inside, 1)
    below, above = padded[1:, 1:-1], padded[:-1, 1:-1]  # (h + 1, w) of each horizontal edge
    right, left = padded[1:-1, 1:], padded[1:-1, :-1]  # (h, w + 1) of each vertical edge
    ways: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for chosen, direction, (dx, dy) in (
        (below & ~above, RIGHT, (0, 0)), (above & ~below, LEFT, (1, 0)),
        (left & ~right, DOWN, (0, 0)), (right & ~left, UP, (0, 1)),
    ):  # fmt: skip
        for y, x in np.argwhere(chosen).tolist():
            ways.setdefault((x + dx, y + dy), []).append(direction)
    return ways


def _loop(ways: dict[tuple[int, int], list[tuple[int, int]]], start: tuple[int, int]) -> np.ndarray:
    """Follow the edges from a corner back to it, and remove them; the corners where they turn, (n, 2) x, y."""
    corners, (x, y), before = [], start, None
    while True:
        leaving = ways[x, y]
        turn = None if before is None else (-before[1], before[0])  # to the right, around the own pixel
        direction = turn if turn in leaving else leaving[0]
        leaving.remove(direction)
        if not leaving:
            del ways[x, y]
        if direction != before:
            corners.append((x, y))
        x, y, before = x + direction[0], y + direction[1], direction
        if (x, y) == start:
            return np.array(corners, dtype=np.float64)


def _signed_area(loop: np.ndarray) -> float:
    """Positive where the inside is on the right hand, y pointing down."""
    (x, y), (next_x, next_y) = loop.T, np.roll(loop, -1, axis=0).T
    return float((x * next_y - next_x * y).sum())
