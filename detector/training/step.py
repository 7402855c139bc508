"""One training step: from a batch to updated weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from detector import distributed
from detector.device import pick_precision
from detector.errors import DetectorError
from detector.modeling.rcnn import GeneralizedRCNN
from detector.recipe import Recipe
from detector.structures import Target
from detector.training.ema import ModelEMA
from detector.training.optim import make_optimizer

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class NonFiniteLoss(DetectorError):
    """Loss or gradient norm is NaN or infinite. `row` holds the losses and the norm."""

    exit_status = 1

    def __init__(self, message: str, row: Mapping[str, float]):
        super().__init__(message)
        self.row = row


class TrainStep:
    """Forward pass, backward pass and update of a model, with the optimiser, loss scaler and EMA of a recipe.

    Several processes share each batch. Their losses are normalised by the samples of all processes and their gradients
    averaged, so that a step equals that of one process on the whole batch.

    Args:
        model: the detector; it is moved to `device`.
        recipe: the training recipe.
        device: where the model trains.
    """

    def __init__(self, model: GeneralizedRCNN, recipe: Recipe, device: torch.device):
        self.model, self.recipe, self.device = model.to(device), recipe, device
        self.optimizer = make_optimizer(model, recipe)
        self.precision = pick_precision(recipe.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "float16")
        self.ema = None if recipe.ema is None else ModelEMA(model, recipe.ema)
        if recipe.compile:
            model.pyramid.compile()
        self.losses: torch.nn.Module = model

    def connect(self) -> None:
        """Wrap the model so that the processes average their gradients. All processes must call it."""
        if distributed.world_size() > 1:
            # without `device_ids`, for which it would copy the images and wait for them; the model queues its copies
            self.losses = DistributedDataParallel(self.model)

    @property
    def evaluated(self) -> GeneralizedRCNN:
        """The model to evaluate and to save: the EMA if the recipe has one."""
        return self.model if self.ema is None else self.ema.model

    def __call__(self, lr: float, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, float]:
        """Train on one batch; returns the losses (means over the processes), their sum `loss` and `grad_norm`.

        Raises NonFiniteLoss on all processes, before the weights change.

        Args:
            lr: the learning rate of this step.
            images: uint8 RGB tensors (3, h, w).
            targets: the objects of each image.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(images, targets)
        self.scaler.unscale_(self.optimizer)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
        total = cast(Tensor, sum(losses.values()))
        # the only synchronisation with the device in a step, after the backward pass is queued (float16: the scaler's besides)
        numbers = distributed.all_reduce_mean(torch.stack([*losses.values(), total, norm])).tolist()
        row = dict(zip([*losses, "loss", "grad_norm"], numbers))
        self._check(row)
        if self.recipe.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.recipe.clip_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.model)
        return row

    def _backward(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Accumulate gradients over the parts of the batch; returns the losses, each part weighted by its share of images."""
        size = -(-len(images) // self.recipe.accumulate)  # ceil
        losses: dict[str, Tensor] = {}
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            share = len(images[part]) / len(images)
            with self._communication(last=start + size >= len(images)):
                with torch.autocast(self.device.type, PRECISIONS[self.precision],
                                    enabled=self.precision != "float32"):  # fmt: skip
                    found = {name: loss * share for name, loss in self.losses(images[part], targets[part]).items()}
                self.scaler.scale(sum(found.values())).backward()
            losses = {name: losses.get(name, 0) + loss.detach() for name, loss in found.items()}
        return losses

    def _communication(self, *, last: bool) -> AbstractContextManager:
        """Context in which gradients are synchronised, for the last part of a batch, or kept local."""
        if last or not isinstance(self.losses, DistributedDataParallel):
            return nullcontext()
        return self.losses.no_sync()

    def _check(self, row: Mapping[str, float]) -> None:
        """Raise NonFiniteLoss, except for a float16 gradient overflow: the scaler skips that step and lowers its scale."""
        overflow = self.scaler.is_enabled() and math.isfinite(row["loss"]) and self.scaler.get_scale() > 1
        if not (math.isfinite(row["loss"]) and (overflow or math.isfinite(row["grad_norm"]))):
            bad = [f"{name} is {value}" for name, value in row.items() if name != "loss" and not math.isfinite(value)]
            raise NonFiniteLoss(", ".join(bad), row)

    def state(self) -> dict[str, Any]:
        """The state to resume from, without the weights of `evaluated`."""
        weights = {} if self.ema is None else {"weights": self.model.state_dict(), "averaged": self.ema.steps}
        return weights | {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state(self, state: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Resume from `state` and the weights of `evaluated`; options of the optimiser come from the current recipe."""
        self.model.load_state_dict(state.get("weights", weights))
        options = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, current in zip(self.optimizer.param_groups, options):  # load_state_dict restored the old options
            group.update(current)
        for parameter, moments in self.optimizer.state.items():
            if any(value.dim() and value.shape != parameter.shape for value in moments.values() if value is not None):
                raise ValueError("the optimiser state has another shape")
        if state["scaler"]:  # empty unless float16 was the precision
            self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.model.load_state_dict(weights)
            self.ema.steps = state.get("averaged", 0)
