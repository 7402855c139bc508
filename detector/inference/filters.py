"""Which of the detections in a picture are returned."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detector.errors import ConfigError
from detector.structures import Detections

Classes = str | int | Iterable[str | int]


@dataclass(frozen=True)
class DetectionFilter:
    """Keeps detections by score and class, then the best; it comes after the model's own threshold, NMS and limit."""

    score: float = 0.0
    """Lowest score."""
    labels: Tensor | None = None
    """Kept classes; None: all."""
    limit: int | None = None
    """Most detections of a picture."""

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise ConfigError(f"score={self.score}: expected a number in 0..1")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"max_detections={self.limit}: expected at least 1, or None for all")

    def __call__(self, found: Detections) -> Detections:
        if self.score > 0:
            found = found[found.scores >= self.score]
        if self.labels is not None:
            found = found[torch.isin(found.labels, self.labels)]
        return found if self.limit is None else found[: self.limit]


def labels_of(classes: Classes, names: Sequence[str]) -> Tensor:
    """The labels of classes that are given by name or by label. Raises ConfigError for one that the detector does not have."""
    chosen = [classes] if isinstance(classes, str | int) else classes
    return torch.tensor([label for one in chosen for label in _labels_of_one(one, names)], dtype=torch.int64)


def _labels_of_one(one: str | int, names: Sequence[str]) -> list[int]:
    found = [label for label, name in enumerate(names) if one in (name, label)]
    if found:
        return found
    if isinstance(one, str):
        nearest = difflib.get_close_matches(one, names, n=1, cutoff=0.0)
        raise ConfigError(f"classes: this detector has no class {one!r}; nearest: {', '.join(nearest)}")
    raise ConfigError(f"classes: this detector has no label {one!r}; it has 0 to {len(names) - 1}")
