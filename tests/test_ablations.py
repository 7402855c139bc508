"""Pyramids without one of FPN's parts: by hand, and against an FPN whose part is set to zero."""

import pytest
import torch
from helpers.necks import NARROW, STRIDES, constant, identity_, maps, values
from torch import nn

from detector.modeling.necks.ablations import BottomUp, Finest, Hierarchy, TopDown
from detector.modeling.necks.fpn import FPN

NECKS = {"bottom_up": BottomUp, "top_down": TopDown, "finest": Finest, "hierarchy": Hierarchy}


def like_fpn(fpn: FPN, neck: nn.Module, levels: slice = slice(None)) -> nn.Module:
    """The neck with the weights of an FPN's same parts; `levels` of those with laterals, or outputs, that it has."""
    for name in ("lateral", "output"):
        ours, theirs = getattr(neck, name, []), getattr(fpn, name)
        part = theirs if len(ours) == len(theirs) else theirs[levels]
        for layer, other in zip(ours, part, strict=True):
            layer.load_state_dict(other.state_dict())
    return neck


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bottom_up", [1, 10, 100, 1000, 1000]), ("top_down", [1000, 1000, 1000, 1000, 1000]), ("finest", [1111]),
        ("hierarchy", [1, 10, 100, 1000, 1000]),
    ],
)  # fmt: skip
def test_what_a_level_is_made_of(name, expected):
    neck = identity_(NECKS[name]([1] * 4, STRIDES, width=1))
    assert values(neck(constant(1, 10, 100, 1000))) == [[e] for e in expected]


def test_finest_is_p2_of_an_fpn():
    fpn, c = FPN(NARROW, STRIDES, width=8), maps()
    (p2,) = like_fpn(fpn, Finest(NARROW, STRIDES, width=8), slice(1))(c)
    torch.testing.assert_close(p2, fpn(c)[0])


def test_top_down_is_an_fpn_whose_finer_laterals_are_zero():
    fpn, c = FPN(NARROW, STRIDES, width=8), maps()
    top_down = like_fpn(fpn, TopDown(NARROW, STRIDES, width=8), slice(3, None))
    for lateral in fpn.lateral[:3]:
        nn.init.zeros_(lateral.conv.weight), nn.init.zeros_(lateral.conv.bias)
    for p, other in zip(top_down(c), fpn(c), strict=True):
        torch.testing.assert_close(p, other)


def test_a_level_of_bottom_up_is_the_coarsest_of_an_fpn_that_ends_there():
    fpn, c = FPN(NARROW, STRIDES, width=8), maps()
    p = like_fpn(fpn, BottomUp(NARROW, STRIDES, width=8))(c)
    for i in range(4):
        alone = FPN(NARROW[: i + 1], STRIDES[: i + 1], width=8)
        for name in ("lateral", "output"):
            for layer, other in zip(getattr(alone, name), getattr(fpn, name)):
                layer.load_state_dict(other.state_dict())
        torch.testing.assert_close(p[i], alone(c[: i + 1])[i])


def test_hierarchy_is_bottom_up_before_the_outputs():
    bottom_up, hierarchy, c = BottomUp(NARROW, STRIDES, width=8), Hierarchy(NARROW, STRIDES, width=8), maps()
    hierarchy.lateral.load_state_dict(bottom_up.lateral.state_dict())
    m = hierarchy(c)
    for p, output, x in zip(bottom_up(c), bottom_up.output, m):
        torch.testing.assert_close(p, output(x))
