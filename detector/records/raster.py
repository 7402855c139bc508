"""Pixels of polygons and of run lengths, by the rules of pycocotools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from detector.records.geometry import Size

FAR = 1e5  # pixels; coordinates are moved this near, as pycocotools follows a line pixel by pixel and in 32 bits


def polygon_bitmap(parts: Sequence[np.ndarray], size: Size) -> np.ndarray:
    """The union of polygons (n, 2) x, y as a bitmap (h, w) uint8. One with fewer than three points has no pixels."""
    return coco_mask.decode(polygon_rle(parts, size))


def polygon_rle(parts: Sequence[np.ndarray], size: Size) -> dict[str, Any]:
    """The union of polygons (n, 2) x, y as a compressed run-length dictionary of COCO, `counts` as bytes."""
    flat = [part.clip(-FAR, FAR).ravel() for part in parts if len(part) >= 3]
    return (
        coco_mask.merge(coco_mask.frPyObjects(flat, *size)) if flat else runs_rle(np.array([size[0] * size[1]]), size)
    )


def polygon_area(part: np.ndarray) -> float:
    """The area that a polygon (n, 2) encloses, wherever it is."""
    (x, y), (next_x, next_y) = part.T, np.roll(part, -1, axis=0).T
    return abs(float((x * next_y - next_x * y).sum())) / 2


def runs_rle(runs: np.ndarray, size: Size) -> dict[str, Any]:
    """Run lengths as a compressed run-length dictionary of COCO, `counts` as bytes."""
    return coco_mask.frPyObjects({"size": list(size), "counts": runs.tolist()}, *size)


def runs_bitmap(runs: np.ndarray, size: Size) -> np.ndarray:
    """Lengths of alternate runs of 0 and 1, down the columns one after the other, as a bitmap (h, w) uint8."""
    values = np.arange(len(runs), dtype=np.uint8) % 2
    return np.repeat(values, runs).reshape(size[1], size[0]).T


def runs_box(runs: np.ndarray, size: Size) -> np.ndarray:
    """The tight box (4,) x1, y1, x2, y2 of run lengths in an image of size (h, w); zeros if they hold no pixel."""
    ends = np.cumsum(runs, dtype=np.int64)
    full = np.flatnonzero(runs[1::2]) * 2 + 1
    if not len(full):
        return np.zeros(4)
    (x1, y1), (x2, y2) = np.divmod(ends[full - 1], size[0]), np.divmod(ends[full] - 1, size[0])  # first and last pixels
    top, bottom = (0, size[0]) if (x1 < x2).any() else (y1.min(), y2.max() + 1)  # a run goes on at the top of a column
    return np.array([x1.min(), top, x2.max() + 1, bottom], dtype=np.float64)


def runs_of_bitmap(bitmap: np.ndarray) -> np.ndarray:
    """The opposite of `runs_bitmap`: (h, w) -> lengths of alternate runs, the first of zeros."""
    flat = np.ravel(bitmap != 0, order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]]))
    return np.concatenate([[0], runs]) if flat.size and flat[0] else runs


def runs_of_counts(counts: str | bytes | Sequence[int]) -> np.ndarray:
    """Run lengths of the `counts` of a COCO file, a list or compressed. Raises ValueError for a malformed value.

    A compressed number is in base 32, five bits a character from "0", lowest first; the sixth bit says that more follow.
    From the fourth number on each is the difference to the one two places before.
    """
    if not isinstance(counts, str | bytes):
        return np.array(counts, dtype=np.int64)
    digits = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - 48
    if not len(digits):
        return digits
    last = np.flatnonzero(digits & 32 == 0)  # the last digit of each number
    first = np.concatenate([[0], last[:-1] + 1])
    if digits.min() < 0 or digits.max() > 63 or not len(last) or last[-1] != len(digits) - 1:
        raise ValueError("is cut or has characters that compressed run lengths do not use")
    if (last - first).max() > 7:
        raise ValueError("has a number of more than 40 bits")
    place = 5 * (np.arange(len(digits)) - np.repeat(first, last - first + 1))
    numbers = np.add.reduceat((digits & 31) << place, first)
    numbers -= np.where(digits[last] & 16, 1 << (place[last] + 5), 0)  # two's complement
    runs = numbers.copy()
    runs[1::2] = np.cumsum(numbers[1::2])
    runs[2::2] = np.cumsum(numbers[2::2])
    return runs


def part_within(part: np.ndarray, size: Size) -> np.ndarray:
    """Points (n, 2) with the tight box of that part of a polygon that lies in an image of size (h, w).

    These are the ends of its edges where they are cut at the border, and the corners of the image that it covers.
    """
    limit = np.array([size[1], size[0]], dtype=np.float64)
    start, way = part, np.roll(part, -1, axis=0) - part
    with np.errstate(divide="ignore", invalid="ignore"):
        crossings = np.stack([-start / way, (limit - start) / way])  # (2, n, 2) where each line crosses the borders
    still, inside = way == 0, (start >= 0) & (start <= limit)
    enter = np.where(still, np.where(inside, -np.inf, np.inf), crossings.min(axis=0)).max(axis=1).clip(min=0)
    leave = np.where(still, np.where(inside, np.inf, -np.inf), crossings.max(axis=0)).min(axis=1).clip(max=1)
    seen = enter <= leave
    ends = [start[seen] + t[seen, None] * way[seen] for t in (enter, leave)]
    corners = limit * [[0, 0], [0, 1], [1, 0], [1, 1]]
    covered = [corner for corner in corners if _covers(part, corner)]
    return np.concatenate([*ends, np.reshape(covered, (-1, 2))]).clip(0, limit)


def _covers(part: np.ndarray, point: np.ndarray) -> bool:
    """Whether a polygon (n, 2) covers a point, by the parity of its edges to the right."""
    (x, y), after = part.T, np.roll(part, -1, axis=0)
    crosses = (y > point[1]) != (after[:, 1] > point[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        at = x + (point[1] - y) / (after[:, 1] - y) * (after[:, 0] - x)
    return bool((crosses & (at > point[0])).sum() % 2)
