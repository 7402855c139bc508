"""Our recursive pyramid gives the recorded maps and gradients of MMDetection's, whose second backbone is a ResNet-50."""

from __future__ import annotations

import pytest
import torch
from helpers.golden_rules import check_neck, filled, formula_image, golden, neck_inputs
from torch import Tensor, nn

from detector.interop.mmdetection import MMDETECTION
from detector.interop.names import rename
from detector.modeling.backbones.resnet import ResNet
from detector.modeling.necks.fpn import FPN
from detector.modeling.preprocess import ImagePreprocessor
from detector.modeling.recursive_pyramid import RecursivePyramid


class Given(nn.Module):
    """A first backbone that knows its maps `c` already."""

    channels, strides = [256, 512, 1024, 2048], [4, 8, 16, 32]

    def add_feedback(self, channels: int) -> None:
        raise AssertionError("the first look takes no feedback")

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.c


class SecondLook(nn.Module):
    """What a recursive pyramid makes of an image and the maps that the first look gave."""

    def __init__(self):
        super().__init__()
        backbone = Given()
        neck = FPN(backbone.channels, backbone.strides)
        again = ResNet(50, conv="aws", norm="affine", frozen_stages=2)
        self.pyramid = RecursivePyramid(backbone, neck, lambda: again)
        image = formula_image(2, 256, 320)
        self.images = ImagePreprocessor().batch([image], torch.device("cpu"), torch.float64).images

    def forward(self, c: list[Tensor]) -> list[Tensor]:
        self.pyramid.backbone.c = c
        return self.pyramid(self.images)


@pytest.mark.slow
def test_two_steps():
    file = golden("necks_mmdet")
    record, neck = file["entries"]["rfp_2steps"], SecondLook()
    like = neck.state_dict()
    theirs = {"neck." + key: tensor for key, tensor in filled(record, file["seed_text"]).items()}
    neck.load_state_dict(MMDETECTION.take(theirs, like))

    def ours(theirs: str) -> str:
        return next(name for name in rename("neck." + theirs, MMDETECTION.rows_of(like)) if name in like)

    check_neck(neck, neck_inputs(record, file["seed_text"]), record, ours)
