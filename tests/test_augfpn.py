"""AugFPN's neck: the augmented top level against slow loops, and the laterals that it returns in training."""

import re

import pytest
import torch
import torch.nn.functional as F
from helpers.necks import NARROW, STRIDES, constant, identity_, maps, values
from torch import Tensor, nn

from detector.modeling.necks.augfpn import RATIOS, AugFPN, ResidualFeatureAugmentation
from detector.modeling.necks.fpn import FPN
from detector.structures import Features

ODD = [(75, 93), (38, 47), (19, 24), (10, 12)]


def identity_neck(*, attention: float) -> AugFPN:
    """One channel; every convolution is the identity, and the attention has this logit everywhere."""
    neck = identity_(AugFPN([1, 1, 1, 1], STRIDES, width=1))
    last = neck.residual.attention[2]
    nn.init.zeros_(last.weight), nn.init.constant_(last.bias, attention)
    return neck


def slow_pool(x: Tensor, height: int, width: int) -> Tensor:
    """Adaptive average pooling of (C, H, W): bin i of n covers floor(i * H / n) .. ceil((i + 1) * H / n)."""
    _, h, w = x.shape
    out = torch.zeros(len(x), height, width)
    for i in range(height):
        for j in range(width):
            rows = slice(i * h // height, -(-(i + 1) * h // height))
            cols = slice(j * w // width, -(-(j + 1) * w // width))
            out[:, i, j] = x[:, rows, cols].mean(dim=(1, 2))
    return out


def slow_resize(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear; the centres of the corner pixels stay where they are."""
    _, h, w = x.shape
    out = torch.zeros(len(x), height, width)
    for i in range(height):
        for j in range(width):
            y, z = i * (h - 1) / max(height - 1, 1), j * (w - 1) / max(width - 1, 1)
            top, left = min(int(y), max(h - 2, 0)), min(int(z), max(w - 2, 0))
            below, right = min(top + 1, h - 1), min(left + 1, w - 1)
            dy, dx = y - top, z - left
            out[:, i, j] = (1 - dy) * ((1 - dx) * x[:, top, left] + dx * x[:, top, right]) + dy * (
                (1 - dx) * x[:, below, left] + dx * x[:, below, right]
            )
    return out


def slow_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """(C, H, W) -> (C', H, W), pixel by pixel, beyond the border 0."""
    pad = conv.padding[0]
    padded = F.pad(x, (pad,) * 4)
    out = torch.zeros(conv.out_channels, *x.shape[1:])
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            window = padded[:, i : i + 2 * pad + 1, j : j + 2 * pad + 1]
            out[:, i, j] = (conv.weight * window).sum(dim=(1, 2, 3)) + conv.bias
    return out


def slow_residual(module: ResidualFeatureAugmentation, c5: Tensor) -> Tensor:
    """(C, H, W) -> (width, H, W)."""
    _, h, w = c5.shape
    contexts = []
    for ratio, lateral in zip(RATIOS, module.lateral, strict=True):
        pooled = slow_pool(c5, max(1, int(h * ratio)), max(1, int(w * ratio)))
        contexts.append(slow_resize(slow_conv(pooled, lateral), h, w))
    hidden = slow_conv(torch.cat(contexts), module.attention[0]).clamp(min=0)
    weights = 1 / (1 + torch.exp(-slow_conv(hidden, module.attention[2])))
    out = torch.zeros_like(contexts[0])
    for k, context in enumerate(contexts):
        out += weights[k] * context
    return out


@torch.no_grad()
@pytest.mark.parametrize("size", [(25, 17), (10, 12), (6, 23), (3, 2), (1, 1)])
def test_the_residual_equals_slow_loops(size):
    assert tuple(RATIOS) == (0.1, 0.2, 0.3)
    module, c5 = ResidualFeatureAugmentation(6, 4), torch.randn(2, 6, *size)
    found = module(c5)
    for image, expected in zip(c5, found, strict=True):
        torch.testing.assert_close(slow_residual(module, image), expected, rtol=1e-4, atol=1e-5)


def test_the_residual_is_added_to_m5_and_passed_down():
    """Each of the three weights is a half of C5 = 1000: M5 = 1000 + 1500."""
    p = identity_neck(attention=0.0).eval()(constant(1, 10, 100, 1000))
    assert values(p) == [[2611], [2610], [2600], [2500], [2500]]


def test_without_its_residual_it_is_an_fpn():
    neck, fpn = AugFPN(NARROW, STRIDES, width=8).eval(), FPN(NARROW, STRIDES, width=8)
    state = {key: tensor for key, tensor in neck.state_dict().items() if not key.startswith("residual")}
    fpn.load_state_dict({re.sub(r"^(\w+\.\d)", r"\1.conv", key): tensor for key, tensor in state.items()})
    for layer in neck.residual.lateral:
        nn.init.zeros_(layer.weight)
    c = maps(ODD)
    for ours, theirs in zip(neck(c), fpn(c), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_laterals_are_returned_in_training_and_a_plain_list_of_the_same_levels_at_inference():
    neck, c = AugFPN(NARROW, STRIDES, width=8), maps(ODD)
    p = neck(c)
    assert type(p) is Features and neck.lateral_strides == STRIDES
    for found, lateral, x in zip(p.laterals, neck.lateral, c, strict=True):
        assert torch.equal(found, lateral(x))
    sum(lateral.sum() for lateral in p.laterals).backward()
    assert all(layer.weight.grad.any() for layer in neck.lateral)
    assert all(tensor.grad is None for part in (neck.residual, neck.output) for tensor in part.parameters())
    found = neck.eval()(c)
    assert type(found) is list
    assert all(torch.equal(a, b) for a, b in zip(p, found, strict=True))
