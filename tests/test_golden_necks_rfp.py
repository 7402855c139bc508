"""Our recursive pyramid gives the recorded maps and gradients of MMDetection's, whose second backbone is a ResNet-50."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from golden_rules import GRADIENT, Fill, filled, formula_image, golden, record_errors, relative_error
from torch import Tensor, nn

from detector.backbones.resnet import ResNet
from detector.interop.mmdetection import MMDETECTION
from detector.interop.names import rename
from detector.necks.fpn import FPN
from detector.necks.rfp import RecursivePyramid
from detector.pixels import Pixels


class Given(nn.Module):
    """A first backbone that knows its maps already."""

    def __init__(self, c: list[Tensor]):
        super().__init__()
        self.c, self.channels, self.strides = c, [x.shape[1] for x in c], [4, 8, 16, 32]

    def add_feedback(self, channels: int) -> None:
        raise AssertionError("the first look takes no feedback")

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.c


def build(record: Mapping[str, Any], seed_text: str) -> tuple[RecursivePyramid, list[Tensor]]:
    make = Fill(seed_text).normal
    c = [torch.from_numpy(make(f"c{i}", shape)).float().double() for i, shape in enumerate(record["inputs"], start=2)]
    backbone = Given([x.requires_grad_() for x in c])
    neck = FPN(backbone.channels, backbone.strides)
    pyramid = RecursivePyramid(backbone, neck, lambda: ResNet(50, conv="aws", norm="affine", frozen_stages=2))
    theirs = {"neck." + key: tensor for key, tensor in filled(record, seed_text).items()}
    like = {"pyramid." + key: tensor for key, tensor in pyramid.state_dict().items()}
    state = {key.removeprefix("pyramid."): tensor for key, tensor in MMDETECTION.take(theirs, like).items()}
    pyramid.load_state_dict(state)
    return pyramid.double().eval(), c


@pytest.mark.slow
def test_two_steps():
    """In float64, within 2e-5; in float32 rounding alone moves gradients by 1e-4."""
    file = golden("necks_mmdet")
    record = file["entries"]["rfp_2steps"]
    pyramid, c = build(record, file["seed_text"])
    image = formula_image(2, 256, 320)
    p = pyramid(Pixels().batch([image], torch.device("cpu"), torch.float64).images)
    tolerance = max(1e-5, 5 * record["noise_float64_over_std"], 5 * record["noise_other_kernels_over_std"])
    for level, expected in zip(p, record["outputs"], strict=True):
        assert max(record_errors(level, expected)) < tolerance
    loss = sum((level**2).mean() for level in p)
    assert relative_error(float(loss.detach()), record["loss_value"]) < 1e-5
    loss.backward()
    for level, expected in zip(c, record["input_grad_norms"], strict=True):
        assert relative_error(float(level.grad.double().norm()), expected, below=0) < GRADIENT
    grads = {"pyramid." + key: p.grad for key, p in pyramid.named_parameters()}
    for theirs, expected in record["grad_norms"].items():
        [ours] = [key for key in rename("neck." + theirs, MMDETECTION.rows_of(grads)) if key in grads]
        assert relative_error(float(grads[ours].double().norm()), expected, below=0) < GRADIENT
