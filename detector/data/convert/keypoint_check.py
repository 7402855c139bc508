"""Whether lines that pass for outlines are boxes with keypoints."""

from __future__ import annotations

from collections.abc import Sequence

from detector.errors import DataError

LEAST_LINES = 5  # fewer outlines may look like keypoints by chance
MARGIN = 0.02  # of the image's side by which a keypoint may leave its box


class KeypointCheck:
    """Compares lines of more than four values with boxes that are followed by keypoints.

    Args:
        count: keypoints after each box, as data.yaml states them; 0: it states none.
        dimensions: values of each.
    """

    def __init__(self, count: int = 0, dimensions: int = 0):
        self.numbers, self.dimensions = count * dimensions, dimensions
        self._lengths: set[int] = set()
        self._lines = 0
        self._all_inside = True
        self._first = ""

    def see(self, where: str, values: Sequence[float]) -> None:
        """A line that is taken for an outline: values x, y, x, y, ... as fractions of the image."""
        self._first = self._first or where
        self._lengths.add(len(values))
        self._lines += 1
        self._all_inside = self._all_inside and any(_inside(values, step) for step in (2, 3))

    def finish(self) -> None:
        """Raise DataError if every line could be a box with the same number of keypoints, all within it."""
        if self._lines >= LEAST_LINES and len(self._lengths) == 1 and self._all_inside:
            (length,) = self._lengths
            raise DataError(
                f"{self._first}: these look like keypoints, not outlines: all {self._lines} lines have {length} values, and the "
                "points lie in the box of the first four; write kpt_shape: [points, 2 or 3] into data.yaml"
            )


def _inside(values: Sequence[float], step: int) -> bool:
    """Whether the points after the first four values, `step` values each, lie in the box of these; (0, 0) is an absent one."""
    x, y, w, h = values[:4]
    rest = values[4:]
    if len(rest) % step or min(w, h) <= 0:
        return False
    points = zip(rest[::step], rest[1::step])
    return all((px, py) == (0, 0) or max(abs(px - x) - w / 2, abs(py - y) - h / 2) <= MARGIN for px, py in points)
