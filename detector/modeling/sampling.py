"""Random balanced sampling of labelled candidates (Fast R-CNN sec. 2.3, Faster R-CNN sec. 3.1.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from detector.modeling.matching import IGNORE, NEGATIVE, POSITIVE
from detector.modeling.shapes import may_look
from detector.schema.ranges import Count, Fraction
from detector.schema.signatures import checked


class Sample(NamedTuple):
    """The candidates of an image that training learns from, positives before negatives."""

    rows: Tensor
    """(S,) of the candidates."""
    label: Tensor
    """(S,) POSITIVE, NEGATIVE, or IGNORE of a row that holds nothing; there are such rows only where shapes are fixed."""
    slots: int
    """No positive comes after so many rows. Unless shapes are fixed it is their number."""

    def counts(self) -> tuple[int | Tensor, int | Tensor]:
        """The numbers of positives and negatives: on the device where shapes are fixed."""
        if may_look(self.label.device):
            return self.slots, len(self.label) - self.slots
        return (self.label == POSITIVE).sum(), (self.label == NEGATIVE).sum()


@checked
@dataclass(frozen=True)
class Sampling:
    """Draws the candidates of an image that training learns from."""

    batch_per_image: Count
    """Candidates that are learnt from, per image."""
    positive_fraction: Fraction
    """At most this share of them is positive; negatives fill the rest."""

    def __call__(self, label: Tensor) -> Sample:
        """Of the candidates with these labels (P,); IGNORE is never sampled. min(batch_per_image, P) rows if shapes are fixed."""
        most = int(self.batch_per_image * self.positive_fraction)
        if may_look(label.device):
            positive = _pick(label == POSITIVE, most)
            return _together(positive, _pick(label == NEGATIVE, self.batch_per_image - len(positive)))
        most, key = min(most, len(label)), torch.rand(len(label), device=label.device)
        best, positive = torch.where(label == POSITIVE, key, -1).topk(most)
        chosen = torch.full_like(key, -1).scatter(0, positive, best)
        rank = torch.where(chosen >= 0, chosen + 2, torch.where(label == NEGATIVE, key, -1))  # these before negatives
        rank, index = rank.topk(min(self.batch_per_image, len(label)))
        return Sample(index, torch.where(rank >= 0, label[index], IGNORE), most)


def _pick(wanted: Tensor, count: int) -> Tensor:
    """At most `count` of the indices where `wanted` (P,) is true, in random order."""
    candidates = torch.where(wanted)[0]
    return candidates[torch.randperm(len(candidates), device=wanted.device)[:count]]


def _together(positive: Tensor, negative: Tensor) -> Sample:
    kinds = torch.full_like(positive, POSITIVE), torch.full_like(negative, NEGATIVE)
    return Sample(torch.cat([positive, negative]), torch.cat(kinds), len(positive))


def everything(label: Tensor) -> Sample:
    """All positives and all negatives, in random order; where shapes are fixed all candidates, as they are."""
    if may_look(label.device):
        return _together(_pick(label == POSITIVE, len(label)), _pick(label == NEGATIVE, len(label)))
    return Sample(torch.arange(len(label), device=label.device), label, len(label))
