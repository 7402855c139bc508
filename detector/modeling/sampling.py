"""Random balanced sampling of labelled candidates (Fast R-CNN sec. 2.3, Faster R-CNN sec. 3.1.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from detector.modeling.matching import NEGATIVE, POSITIVE


def sample(label: Tensor, *, num: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Indices of at most `num` random labels (P,): (positives, negatives), IGNORE never.

    At most `num * positive_fraction` positives; negatives fill what they leave.
    """

    def pick(candidates: Tensor, n: int) -> Tensor:
        return candidates[torch.randperm(len(candidates), device=label.device)[:n]]

    positive = pick(torch.where(label == POSITIVE)[0], int(num * positive_fraction))
    negative = pick(torch.where(label == NEGATIVE)[0], num - len(positive))
    return positive, negative
