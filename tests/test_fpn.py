"""The feature pyramid network: one pixel by hand, and torchvision's function."""

import torch
from helpers.necks import NARROW, STRIDES, constant, identity_, maps, values
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from detector.modeling.necks.fpn import FPN


def identity_fpn(**settings) -> FPN:
    return identity_(FPN([1, 1, 1, 1], STRIDES, width=1, **settings))


def test_every_level_adds_what_lies_above_it_or_its_average():
    assert values(identity_fpn()(constant(1, 10, 100, 1000))) == [[1111], [1110], [1100], [1000], [1000]]
    assert values(identity_fpn(fuse="average")(constant(0, 0, 0, 8))) == [[1], [2], [4], [8], [8]]


def test_p6_is_pooled_or_made_of_c5_or_p5_and_p7_of_its_positive_part():
    c = constant(0, 0, 0, 0)
    c[3] = torch.arange(15.0).reshape(1, 1, 3, 5)
    assert identity_fpn()(c)[-1][0, 0].tolist() == [[0, 2, 4], [10, 12, 14]]
    for extra, expected in (("c5", 7.0), ("p5", 21.0)):
        fpn = identity_fpn(extra=extra)
        nn.init.constant_(fpn.lateral[-1].conv.weight, 3)
        assert fpn(constant(0, 0, 0, 7))[-2].unique().tolist() == [expected]
    fpn = identity_fpn(extra="c5")
    assert values(fpn(constant(0, 0, 0, -1))[-2:]) == [[-1], [0]]
    assert values(fpn(constant(0, 0, 0, 1))[-2:]) == [[1], [1]]


def test_the_function_is_torchvisions():
    ours, theirs = FPN(NARROW, STRIDES, width=12), FeaturePyramidNetwork(NARROW, 12)
    for layers, blocks in ((ours.lateral, theirs.inner_blocks), (ours.output, theirs.layer_blocks)):
        for layer, block in zip(layers, blocks, strict=True):
            block[0].load_state_dict(layer.conv.state_dict())
    c = maps()
    expected = theirs(dict(enumerate(c))).values()
    for p, other in zip(ours(c), expected):
        torch.testing.assert_close(p, other)


def test_a_dilated_c5_needs_no_upsampling():
    fpn = FPN(NARROW, [4, 8, 16, 16], width=8)
    assert fpn.strides == [4, 8, 16, 16, 32]
    assert fpn(maps([(16, 16), (8, 8), (4, 4), (4, 4)]))[-1].shape == (2, 8, 2, 2)
