"""Optimisers and learning rates."""

from __future__ import annotations

import math
import re

import torch
from torch import nn

from detector.recipe import Recipe

NORM = re.compile(r"(Batch|Instance|Group|Layer|RMS|Response)Norm([1-3]d)?$")


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer, by the name of its class or of a base class.

    By name, so that layers of other packages count: torchvision's LayerNorm2d, timm's RMSNorm, FrozenBatchNorm.
    """
    return any(NORM.search(kind.__name__) for kind in type(module).__mro__)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW, over the trainable parameters.

    `weight_decay` applies to all of them, biases and other 1-d parameters included, as in Detectron2. `norm_weight_decay`, if
    given, replaces it for the weights and biases of normalisation layers, and for nothing else.
    """
    norms = {id(p) for m in model.modules() if is_norm(m) for p in m.parameters(recurse=False)}
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
    """The learning rate of step 0, 1, ...: linear warm-up, times a step schedule or half a cosine over the whole training."""
    total = recipe.epochs * steps_per_epoch
    if recipe.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * step / total))
    else:
        steps = (milestone * (total if milestone < 1 else steps_per_epoch) for milestone in recipe.milestones)
        factor = 0.1 ** sum(step >= milestone for milestone in steps)
    warmup = warmup_steps(recipe, total)
    if step < warmup:
        progress = step / warmup
        factor *= recipe.warmup_factor * (1 - progress) + progress
    return recipe.scaled_lr() * factor


def warmup_steps(recipe: Recipe, total: int) -> int:
    """The length of the warm-up of a training of `total` steps."""
    return min(500, total // 10) if recipe.warmup_steps is None else min(recipe.warmup_steps, total // 3)
