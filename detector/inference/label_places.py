"""Places for labels at their boxes, so that none hides another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

PixelBox = tuple[int, int, int, int]  # x1, y1, x2, y2 in whole pixels, the last row and column not included
MOST_HIDDEN = 0.03  # of a label's area, by labels of better detections; a tenth would hide a digit
MOST_COVERED = 0.2  # of the picture, by all labels together; a crowd would be hidden behind its labels


class Occupied:
    """Rectangles in a grid of cells, so that a new one is compared with its neighbours alone."""

    def __init__(self, cell: tuple[int, int]):
        self.cell = max(cell[0], 1), max(cell[1], 1)
        self.grid: defaultdict[tuple[int, int], list[PixelBox]] = defaultdict(list)

    def add(self, box: PixelBox) -> None:
        """Occupy a rectangle."""
        for cell in self._cells(box):
            self.grid[cell].append(box)

    def overlap(self, box: PixelBox) -> float:
        """The area of the rectangle that is occupied; where several overlap it counts for each."""
        near = {other for cell in self._cells(box) for other in self.grid.get(cell, ())}
        return sum(shared_area(box, other) for other in near)

    def _cells(self, box: PixelBox) -> Iterator[tuple[int, int]]:
        w, h = self.cell
        for x in range(box[0] // w, (box[2] - 1) // w + 1):
            for y in range(box[1] // h, (box[3] - 1) // h + 1):
                yield x, y


def place_labels(
    boxes: Sequence[PixelBox], sizes: Sequence[tuple[int, int]], picture: tuple[int, int]
) -> list[PixelBox | None]:
    """Label rectangles of `sizes` (w, h) at their boxes, inside the picture (w, h); None for a label that is left out.

    Labels are placed in order: above the box, inside it or below it, aligned left or right. A label is left out where
    each place is covered by more than MOST_HIDDEN, and when labels cover MOST_COVERED of the picture.
    """
    occupied = Occupied(max(sizes, default=(1, 1)))
    placed: list[PixelBox | None] = []
    covered, most = 0, MOST_COVERED * picture[0] * picture[1]
    for (x1, y1, x2, y2), (w, h) in zip(boxes, sizes):
        place = None
        if not covered or covered + w * h <= most:
            corners = [(x, y) for y in (y1 - h, y1, y2, y2 - h) for x in (x1, x2 - w)]
            place = freest([inside(x, y, w, h, picture) for x, y in corners], occupied)
        if place is not None:
            occupied.add(place)
            covered += w * h
        placed.append(place)
    return placed


def freest(candidates: Sequence[PixelBox], occupied: Occupied) -> PixelBox | None:
    """The candidate with the least overlap, the first of equals; None if more than MOST_HIDDEN of it is occupied."""
    least = float("inf")
    for candidate in candidates:
        overlap = occupied.overlap(candidate)
        if overlap < least:
            least, best = overlap, candidate
        if not overlap:
            break
    return best if least <= MOST_HIDDEN * (best[2] - best[0]) * (best[3] - best[1]) else None


def inside(x: int, y: int, w: int, h: int, picture: tuple[int, int]) -> PixelBox:
    """The box of size (w, h) at (x, y), moved into the picture."""
    x, y = max(min(x, picture[0] - w), 0), max(min(y, picture[1] - h), 0)
    return x, y, x + w, y + h


def shared_area(a: Sequence[float], b: Sequence[float]) -> float:
    """Area of the intersection of two rectangles x1, y1, x2, y2."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0)
