"""Optimisers and learning rates."""

from __future__ import annotations

import math

import torch
from torch import nn

from detector.recipe import Recipe

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW, over what trains; norms may have a weight decay of their own."""
    norms = {id(p) for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
    trained = [p for p in model.parameters() if p.requires_grad]
    norm_decay = recipe.weight_decay if recipe.norm_weight_decay is None else recipe.norm_weight_decay
    groups = [
        {"params": [p for p in trained if id(p) not in norms], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if id(p) in norms], "weight_decay": norm_decay},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.scaled_lr())
    return torch.optim.SGD(groups, lr=recipe.scaled_lr(), momentum=recipe.momentum)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The rate of step 0, 1, ...: a linear climb, then steps or half a cosine, over the whole training."""
    total = recipe.epochs * steps_per_epoch
    if recipe.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * step / total))
    else:
        factor = 0.1 ** sum(step >= milestone * steps_per_epoch for milestone in recipe.milestones)
    if step < recipe.warmup_steps:
        climbed = step / recipe.warmup_steps
        factor *= recipe.warmup_factor * (1 - climbed) + climbed
    return recipe.scaled_lr() * factor
