"""Pyramids without one of FPN's parts: by hand, against an FPN whose part is set to zero, sizes, and what reaches what."""

from __future__ import annotations

import pytest
import torch
from helpers.necks import (
    CHANNELS,
    EVEN,
    NARROW,
    ODD,
    ONE_PIXEL,
    STRIDES,
    constant,
    count,
    half,
    identity_,
    maps,
    values,
)
from helpers.tiny import OBJECTS, gradients, picture, target, tiny_model, unmoved
from torch import nn

from detector.modeling.necks.ablations import BottomUp, Finest, Hierarchy, TopDown
from detector.modeling.necks.fpn import FPN

NECKS = {"bottom_up": BottomUp, "top_down": TopDown, "finest": Finest, "hierarchy": Hierarchy}
each_neck = pytest.mark.parametrize("name", NECKS)


def sections(name: str) -> dict:
    """Of a tiny detector with this neck."""
    neck = {"neck": {"type": name, "width": 32}}
    if name != "finest":
        return neck
    return neck | {"rpn": {"anchors": {"sizes": [[16, 32, 64, 96, 128]]}}, "roi_head": {"pool": {"levels": 1}}}


def like_fpn(fpn: FPN, neck: nn.Module, levels: slice = slice(None)) -> nn.Module:
    """The neck with the weights of an FPN's same parts; `levels` of those with laterals, or outputs, that it has."""
    for name in ("lateral", "output"):
        ours, theirs = getattr(neck, name, []), getattr(fpn, name)
        part = theirs if len(ours) == len(theirs) else theirs[levels]
        for layer, other in zip(ours, part, strict=True):
            layer.load_state_dict(other.state_dict())
    return neck


# --- truth by hand


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bottom_up", [1, 10, 100, 1000, 1000]),
        ("top_down", [1000, 1000, 1000, 1000, 1000]),
        ("finest", [1111]),
        ("hierarchy", [1, 10, 100, 1000, 1000]),
    ],
)
def test_what_a_level_is_made_of(name, expected):
    neck = identity_(NECKS[name]([1] * 4, STRIDES, width=1))
    assert values(neck(constant(1, 10, 100, 1000))) == [[e] for e in expected]


def test_top_down_repeats_the_nearest_pixel():
    c = constant(0, 0, 0, 0)
    c[3] = torch.tensor([[[[1.0, 2], [3, 4]]]])
    p = identity_(TopDown([1] * 4, STRIDES, width=1))(c)
    assert p[2][0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert p[0][0, 0, :, 7].tolist() == [1] * 8 + [3] * 8 and p[0][0, 0, :, 8].tolist() == [2] * 8 + [4] * 8


# --- against an FPN


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


# --- sizes


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("bottom_up", 3_344_384),  # an FPN's: laterals 984,064, outputs 2,360,320
        ("top_down", 524_544 + 2_360_320),
        ("finest", 984_064 + 590_080),
        ("hierarchy", 984_064),
    ],
)
def test_parameters(name, parameters):
    with torch.device("meta"):
        assert count(NECKS[name](CHANNELS, STRIDES)) == parameters


@each_neck
@pytest.mark.parametrize("sizes", [ODD, EVEN, ONE_PIXEL])
def test_shapes_strides_and_channels(name, sizes):
    neck = NECKS[name](NARROW, STRIDES, width=8)
    expected = sizes[:1] if name == "finest" else [*sizes, half(sizes[-1])]
    assert [p.shape for p in neck(maps(sizes))] == [(2, 8, *size) for size in expected]
    assert neck.strides == [4, 8, 16, 32, 64][: len(expected)] and neck.channels == [8] * len(expected)


@each_neck
def test_as_many_maps_as_the_neck_was_made_for(name):
    with pytest.raises((ValueError, RuntimeError), match=r"zip|channels"):
        NECKS[name](NARROW, STRIDES, width=8)(maps()[:3])


# --- gradients


@pytest.mark.parametrize(
    ("name", "sees"),
    [
        ("bottom_up", lambda level, c: c == level),
        ("top_down", lambda level, c: c == 3),
        ("finest", lambda level, c: True),
        ("hierarchy", lambda level, c: c == level),
    ],
)
def test_a_level_sees_what_its_figure_says(name, sees):
    c = maps()
    for i, p in enumerate(NECKS[name](NARROW, STRIDES, width=8)(c)):
        reached = torch.autograd.grad(p.sum(), c, retain_graph=True, allow_unused=True)
        level = min(i, 3)  # P6 is a part of P5
        assert [g is not None for g in reached] == [sees(level, j) for j in range(4)]


@each_neck
def test_every_trainable_parameter_of_a_detector_has_a_gradient(name):
    model = tiny_model(**sections(name))
    assert unmoved(gradients(model, [picture(64, 96)], [OBJECTS])) == []
    gradients(model, [picture(64, 96)], [target()])
