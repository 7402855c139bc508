"""The records that travel between the parts of a detector. See the legend in `detector/__init__.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


def _no_boxes() -> Tensor:
    return torch.zeros(0, 4)


@dataclass
class Proposals:
    """Where objects may be in one image: the RPN's guesses, best first, or those of a file."""

    boxes: Tensor  # (R, 4) xyxy
    scores: Tensor  # (R,) objectness logits

    def to(self, device: torch.device) -> Proposals:
        """On that device, as float32."""
        return Proposals(self.boxes.to(device, torch.float32), self.scores.to(device, torch.float32))


@dataclass
class Target:
    """The objects of one training image, in the pixels of that image; with the proposals, where they are given."""

    boxes: Tensor  # (G, 4) float32 xyxy
    labels: Tensor  # (G,) int64 in 0..K-1
    crowd: Tensor = field(default_factory=_no_boxes)  # (I, 4) regions that are neither object nor background
    proposals: Proposals | None = None  # for a detector without an RPN

    @classmethod
    def of(cls, target: Target | Mapping[str, Tensor]) -> Target:
        """Accept a plain dictionary with `boxes`, `labels` and perhaps `crowd`."""
        return cls(**target) if isinstance(target, Mapping) else target

    def to(self, device: torch.device) -> Target:
        """On that device, boxes as float32 and labels as int64."""
        boxes, crowd = (b.to(device, torch.float32) for b in (self.boxes, self.crowd))
        proposals = None if self.proposals is None else self.proposals.to(device)
        return Target(boxes, self.labels.to(device, torch.int64), crowd, proposals)


class Levels(list):
    """[P2..P6] with what a training loss needs beside them: `raw`, the laterals [M2..M5] before any fusion."""

    def __init__(self, p: Iterable[Tensor], raw: list[Tensor]):
        super().__init__(p)
        self.raw = raw


@dataclass
class Detections:
    """What was found in one image, best first."""

    boxes: Tensor  # (D, 4) float32 xyxy
    scores: Tensor  # (D,) float32 in 0..1
    labels: Tensor  # (D,) int64 in 0..K-1
    class_names: list[str] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The class name of every detection, aligned with `labels`."""
        if self.class_names is None:
            raise ValueError("these detections carry no class names: call the predictor, not the model")
        return [self.class_names[label] for label in self.labels.tolist()]

    def cpu(self) -> Detections:
        return Detections(self.boxes.cpu(), self.scores.cpu(), self.labels.cpu(), self.class_names)


@dataclass
class Batch:
    """Normalised images, padded right and below to one size."""

    images: Tensor  # (N, 3, H, W)
    sizes: list[tuple[int, int]]  # (h, w) of every image before padding
    proposals: Sequence[Proposals | None] = ()  # of every image, for a detector without an RPN
