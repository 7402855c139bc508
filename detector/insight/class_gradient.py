"""Where on the levels a score comes from: gradient times activation (Shrikumar et al. 2016, arXiv 1605.01713)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from detector.modeling.rcnn import GeneralizedRCNN
from detector.records.geometry import Size

Logit = Callable[[list[Tensor]], Tensor]  # levels -> a number


def gradient_times_activation(p: Sequence[Tensor], logit: Logit) -> list[Tensor]:
    """Levels (1, C, H, W) -> of each (H, W), the sum over the channels of activation times the gradient of `logit`.

    It is the change of the logit per relative change of the features of a cell: positive where they speak for the class.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [x.detach().clone().requires_grad_() for x in p]
        gradients = torch.autograd.grad(logit(list(leaves)), leaves, allow_unused=True)
    parts = [torch.zeros_like(x) if g is None else g * x.detach() for g, x in zip(gradients, leaves)]
    return [part[0].float().sum(dim=0) for part in parts]


def class_logit(model: GeneralizedRCNN, box: Tensor, label: int, size: Size) -> Logit:
    """The logit of a class for the region `box` (4,) of an image of that size; in a cascade the mean of the stages."""
    head: Any = model.roi_head

    def logit(p: list[Tensor]) -> Tensor:
        return torch.stack([logits[0, label] for _, logits, _ in head.run(p, [box[None]], [size])]).mean()

    return logit


def objectness_logit(model: GeneralizedRCNN, anchor: int) -> Logit:
    """The objectness of an anchor, by its row among those of all levels."""
    rpn: Any = model.rpn
    return lambda p: torch.cat([level[0] for level in rpn.head(p)[0]])[anchor]
