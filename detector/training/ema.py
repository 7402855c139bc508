"""The exponential moving average of a model's weights, which scores better than they do while they still jump about."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """`model` follows another: after step t its weights are d * its own + (1 - d) * the other's.

    d = min(decay, (1 + t) / (10 + t)), so that the random weights of the beginning are soon forgotten. Statistics of norms
    are averaged too, counters copied.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """One step more."""
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for own, other in zip(self.model.state_dict().values(), model.state_dict().values()):
            if own.is_floating_point():
                own.lerp_(other, 1 - keep)
            else:
                own.copy_(other)
