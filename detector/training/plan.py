"""The plan of the learning rate, as text, and what is wrong with it."""

from __future__ import annotations

from detector.recipe import Recipe
from detector.training.optim import learning_rate, warmup_steps

LOW, MOST_LOW = 0.02, 1 / 3  # share of the rate below which little is learnt, and of the steps that may be spent there
SHOWN = 6  # epochs of a cosine
SAMPLED = 3000  # steps at which the plan is judged


def plan_lines(recipe: Recipe, steps_per_epoch: int) -> list[str]:
    """A line for each stretch of epochs that begin with the same learning rate; of a cosine, for some epochs."""
    total = recipe.epochs * steps_per_epoch
    warmup = warmup_steps(recipe, total)
    lines = []
    if warmup:
        first = learning_rate(recipe, 0, steps_per_epoch)
        lines.append(f"warm-up: {first:.2g} to {learning_rate(recipe, warmup, steps_per_epoch):.2g} in {warmup} steps")
    rates = [
        learning_rate(recipe, max(epoch * steps_per_epoch, warmup), steps_per_epoch) for epoch in range(recipe.epochs)
    ]
    if recipe.schedule == "cosine":
        chosen = sorted({round(i * (recipe.epochs - 1) / (SHOWN - 1)) for i in range(SHOWN)})
        return [*lines, *(f"epoch {epoch + 1}: {rates[epoch]:.2g}" for epoch in chosen)]
    start = 0
    for epoch in range(1, recipe.epochs + 1):
        if epoch == recipe.epochs or f"{rates[epoch]:.3g}" != f"{rates[start]:.3g}":
            name = f"epoch {epoch}" if epoch == start + 1 else f"epochs {start + 1} to {epoch}"
            lines.append(f"{name}: {rates[start]:.2g}")
            start = epoch
    return lines


def plan_faults(recipe: Recipe, steps_per_epoch: int) -> list[str]:
    """Warnings of a plan that never reaches its rate or spends much of the training at almost none, with the remedy."""
    total, rate = recipe.epochs * steps_per_epoch, recipe.scaled_lr()
    sampled = range(0, total, max(1, total // SAMPLED))
    shares = [learning_rate(recipe, step, steps_per_epoch) / rate for step in sampled] if rate > 0 else [1.0]
    faults = []
    keys = "train.warmup_steps" + (" and train.milestones" if recipe.schedule == "steps" else "")
    if max(shares) < 0.9:
        faults.append(
            f"the learning rate never exceeds {max(shares):.0%} of {rate:.2g}: set {keys} for "
            f"{recipe.epochs} epochs of {steps_per_epoch} steps, or leave out what is set"
        )
    low = sum(share < LOW for share in shares) / len(shares)
    if low > MOST_LOW:
        faults.append(
            f"{low:.0%} of the steps have less than {LOW:.0%} of the learning rate: train.milestones={recipe.milestones} for "
            f"{recipe.epochs} epochs; leave train.milestones out, or give fractions of the training ([0.667, 0.917])"
        )
    return faults
