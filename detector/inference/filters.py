"""Which of the detections in a picture are returned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsIndex

from detector.structures import Detections


@dataclass(frozen=True)
class DetectionFilter:
    """Keeps detections by score and class, then the best; it comes after the model's own threshold, NMS and limit."""

    score: float = 0.0
    """Lowest score."""
    labels: Sequence[int] | None = None
    """Kept classes; None: all."""
    limit: int | None = None
    """Most detections of a picture."""

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise ValueError(f"score={self.score}: expected a number in 0..1")
        if self.limit is not None and (not isinstance(self.limit, SupportsIndex) or self.limit < 1):
            raise ValueError(f"max_detections={self.limit}: expected an integer of at least 1, or None for all")

    def __call__(self, found: Detections) -> Detections:
        if self.score > 0 or self.labels is not None:
            found = found.filter(self.score, self.labels)
        return found if self.limit is None else found[: self.limit]
