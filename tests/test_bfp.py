"""Libra's balanced feature pyramid: one number by hand, and the attention against slow loops."""

import math

import pytest
import torch
from helpers.necks import NARROW, STRIDES, constant, maps, values
from torch import Tensor, nn

from detector.modeling.necks.bfp import BFP, NonLocal
from detector.modeling.necks.fpn import FPN

each_refinement = pytest.mark.parametrize("refine", ["non_local", "conv"])


def levels(*numbers: float) -> list[Tensor]:
    """P2..P6 of one channel, each filled with one number."""
    return constant(*numbers, finest=32)


def one_channel(refine: str = "non_local") -> BFP:
    """Its refinement is the identity: as built, or by a convolution with only a centre (and a ReLU)."""
    neck = BFP([1, 1, 1, 1], STRIDES, width=1, refine=refine)
    if refine == "conv":
        nn.init.dirac_(neck.refine.conv.weight)
    return neck


@each_refinement
def test_every_level_gets_the_mean_of_all(refine):
    found = one_channel(refine).balance(levels(1, 2, 3, 4, 10))
    assert values(found) == [[5], [6], [7], [8], [14]]


def test_the_convolution_is_followed_by_a_relu():
    assert values(one_channel("conv").balance(levels(-1, -2, -3, -4, -10))) == [[-1], [-2], [-3], [-4], [-10]]


def test_finer_levels_hand_in_their_largest_pixels_and_coarser_ones_are_repeated():
    """Of 4 x 4 pixels of P2 and 2 x 2 of P3 the largest go to a pixel of P4; one of P5 lies over 2 x 2, one of P6 4 x 4."""
    p = levels(0, 0, 0, 0, 0)
    p[0][0, 0, :4, :4] = -1
    p[0][0, 0, 3, 2] = 50  # pixel (0, 0) of P4
    p[1][0, 0, 2, 1] = 500  # pixel (1, 0)
    p[3][0, 0, 0, 1] = 5  # pixels (0..1, 2..3)
    p[4][0, 0, 1, 1] = 5000  # pixels (4..7, 4..7)
    expected = torch.zeros(8, 8)
    expected[0, 0], expected[1, 0], expected[:2, 2:4], expected[4:, 4:] = 10, 100, 1, 1000
    found = one_channel().balance(p)
    assert torch.equal(found[2][0, 0], expected)
    assert torch.equal((found[1] - p[1])[0, 0], expected.repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_the_mean_is_repeated_for_finer_levels_and_coarser_ones_get_its_largest_pixels():
    p = levels(0, 0, 0, 0, 0)
    p[2][0, 0, 3, 1] = 5  # the mean is 1 in this pixel of P4
    p2, p3, p4, p5, p6 = (x[0, 0] for x in one_channel().balance(p))
    assert p2.nonzero().amin(dim=0).tolist() == [12, 4] and p2.nonzero().amax(dim=0).tolist() == [15, 7]
    assert p2.sum() == 16 and p3.sum() == 4 and p4.sum() == 6
    assert p5.nonzero().tolist() == [[1, 0]] and p6.nonzero().tolist() == [[0, 0]] and p5.max() == p6.max() == 1


def test_it_reads_an_fpn():
    neck, fpn, c = BFP(NARROW, STRIDES, width=8), FPN(NARROW, STRIDES, width=8), maps()
    fpn.load_state_dict(neck.fpn.state_dict())
    for found, expected in zip(neck(c), neck.balance(fpn(c)), strict=True):
        torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_the_attention_equals_slow_loops():
    block, x = NonLocal(4), torch.randn(2, 4, 3, 5)
    for conv in (block.theta, block.phi, block.g, block.out):
        nn.init.normal_(conv.weight), nn.init.normal_(conv.bias)
    found = block(x)
    for image, expected in zip(x, found, strict=True):
        pixels = [image[:, i, j] for i in range(3) for j in range(5)]

        def apply(conv: nn.Conv2d, pixel: Tensor) -> Tensor:
            return conv.weight[:, :, 0, 0] @ pixel + conv.bias

        for n, pixel in enumerate(pixels):
            theta = apply(block.theta, pixel)
            shares = [math.exp(float(theta @ apply(block.phi, other))) for other in pixels]
            seen = sum(share * apply(block.g, other) for share, other in zip(shares, pixels)) / sum(shares)
            torch.testing.assert_close(pixel + apply(block.out, seen), expected[:, n // 5, n % 5], rtol=1e-4, atol=1e-4)


def test_the_attention_begins_as_the_identity_and_can_learn():
    block, x = NonLocal(8), torch.randn(2, 8, 4, 6)
    assert torch.equal(block(x), x)
    (block(x) * torch.randn_like(x)).sum().backward()
    assert block.out.weight.grad.any()
