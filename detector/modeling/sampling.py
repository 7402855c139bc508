"""Random balanced sampling of labelled candidates (Fast R-CNN sec. 2.3, Faster R-CNN sec. 3.1.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detector.modeling.matching import NEGATIVE, POSITIVE
from detector.schema.ranges import Count, Fraction
from detector.schema.signatures import checked


@checked
@dataclass(frozen=True)
class Sampling:
    """Draws the candidates of an image that training learns from."""

    batch_per_image: Count
    """Candidates that are learnt from, per image."""
    positive_fraction: Fraction
    """At most this share of them is positive; negatives fill the rest."""

    def __call__(self, label: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (P,) -> indices of the sampled (positives, negatives); IGNORE is never sampled."""
        positive = _pick(label == POSITIVE, int(self.batch_per_image * self.positive_fraction))
        return positive, _pick(label == NEGATIVE, self.batch_per_image - len(positive))


def _pick(wanted: Tensor, count: int) -> Tensor:
    """At most `count` of the indices where `wanted` (P,) is true, in random order."""
    candidates = torch.where(wanted)[0]
    return candidates[torch.randperm(len(candidates), device=wanted.device)[:count]]


def everything(label: Tensor) -> tuple[Tensor, Tensor]:
    """All positives and all negatives, in random order."""
    return _pick(label == POSITIVE, len(label)), _pick(label == NEGATIVE, len(label))
