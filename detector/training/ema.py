"""Exponential moving average (EMA) of a model's weights, which usually scores better than the weights themselves."""

from __future__ import annotations

import copy

import torch
from torch import nn


class ModelEMA:
    """A copy of a model whose weights are the moving average of the model's: ema = d * ema + (1 - d) * weights.

    After step t, d = min(decay, (1 + t) / (10 + t)), so that the initial random weights are soon forgotten. Statistics of
    norms are averaged as well; integer buffers are copied.

    Args:
        model: the model to follow; its current weights are the start.
        decay: the bound of d, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Average the weights after one more step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for average, value in zip(self.model.state_dict().values(), model.state_dict().values()):
            if average.is_floating_point():
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)
