"""One optimiser step, from a batch to new weights, and whatever remembers earlier steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from detector import distributed
from detector.errors import DetectorError
from detector.modeling.rcnn import GeneralizedRCNN
from detector.recipe import Recipe
from detector.structures import Target
from detector.training.ema import Average
from detector.training.optim import make_optimizer

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class NonFiniteLoss(DetectorError):
    """The loss is no number any more; going on would ruin the weights. `row` is what the table would have said."""

    exit_status = 1

    def __init__(self, message: str, row: Mapping[str, float]):
        super().__init__(message)
        self.row = row


class Updater:
    """A model that learns: its optimiser, and where the recipe wants them the scaler of float16 and the average.

    Several processes share each batch: their gradients are averaged, and their losses, which are divided by what all of
    them sampled, are too; so they learn what one process would from the whole batch.
    """

    def __init__(self, model: GeneralizedRCNN, recipe: Recipe, device: torch.device):
        self.model, self.recipe, self.device = model.to(device), recipe, device
        self.optimizer = make_optimizer(model, recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        self.average = None if recipe.ema is None else Average(model, recipe.ema)
        if recipe.compile:
            model.pyramid.compile()
        self.losses: torch.nn.Module = model

    def connect(self) -> None:
        """From now on the processes average their gradients. All must call it."""
        if distributed.world_size() > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            self.losses = DistributedDataParallel(self.model, device_ids=devices)

    @property
    def evaluated(self) -> GeneralizedRCNN:
        """The model that is scored and kept: the average where there is one."""
        return self.model if self.average is None else self.average.model

    def __call__(self, lr: float, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, float]:
        """Forward, backward, update; the losses (means over the processes), their sum and the gradients' norm.

        Raises NonFiniteLoss, on all processes alike, before the weights are touched.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(images, targets)
        self.scaler.unscale_(self.optimizer)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters], foreach=True)
        total = sum(losses.values())
        # the one wait for the device in a step: after the work of the backward pass is queued
        numbers = distributed.all_reduce_mean(torch.stack([*losses.values(), total, norm])).tolist()
        row = dict(zip([*losses, "loss", "grad_norm"], numbers))
        self._check(row)
        if self.recipe.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.recipe.clip_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.model)
        return row

    def _backward(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """The gradients of the batch, a part of it after the other; the losses, each part's by its share of the images."""
        size = -(-len(images) // self.recipe.accumulate)  # ceil
        losses: dict[str, Tensor] = {}
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            share = len(images[part]) / len(images)
            with self._communication(last=start + size >= len(images)):
                with torch.autocast(self.device.type, PRECISIONS[self.recipe.precision],
                                    enabled=self.recipe.precision != "float32"):  # fmt: skip
                    found = {name: loss * share for name, loss in self.losses(images[part], targets[part]).items()}
                self.scaler.scale(sum(found.values())).backward()
            losses = {name: losses.get(name, 0) + loss.detach() for name, loss in found.items()}
        return losses

    def _communication(self, *, last: bool) -> AbstractContextManager:
        """Gradients travel between the processes once a step."""
        alone = last or not isinstance(self.losses, DistributedDataParallel)
        return nullcontext() if alone else self.losses.no_sync()

    def _check(self, row: Mapping[str, float]) -> None:
        """Gradients of float16 overflow now and then: the scaler leaves such a step out, and scales less from then on."""
        overflow = self.scaler.is_enabled() and math.isfinite(row["loss"]) and self.scaler.get_scale() > 1
        if not (math.isfinite(row["loss"]) and (overflow or math.isfinite(row["grad_norm"]))):
            bad = [f"{name} is {value}" for name, value in row.items() if name != "loss" and not math.isfinite(value)]
            raise NonFiniteLoss(", ".join(bad), row)

    def state(self) -> dict[str, Any]:
        """What a training needs to go on, beside the weights that are evaluated."""
        own = {} if self.average is None else {"weights": self.model.state_dict(), "averaged": self.average.steps}
        return own | {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state(self, state: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Continue from `state`, by what the recipe says now; `weights` are those that were evaluated."""
        self.model.load_state_dict(state.get("weights", weights))
        options = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, options):  # else a changed weight decay would be no change
            group.update(own)
        for parameter, kept in self.optimizer.state.items():
            if any(value.dim() and value.shape != parameter.shape for value in kept.values() if value is not None):
                raise ValueError("an optimiser's state of another shape")
        if state["scaler"]:  # empty unless float16 was the precision
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.model.load_state_dict(weights)
            self.average.steps = state.get("averaged", 0)
