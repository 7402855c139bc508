"""NAS-FPN: constants by hand, the searched table of cells as a slow oracle, and resizing by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.necks import NARROW, STRIDES, constant, identity_, maps, values
from helpers.tiny import tiny_model
from torch import Tensor, nn

from detector.errors import ConfigError
from detector.modeling.necks.nas_fpn import NASFPN, PyramidNetwork, gate_high, gate_low, halve_ceil, halve_floor, resize

ODD = [(33, 41), (17, 21), (9, 11), (5, 6)]
FORMS = ["authors", "mmdetection"]


def identity_nas_fpn(**settings) -> NASFPN:
    """One channel; every convolution is the identity."""
    return identity_(NASFPN([1, 1, 1, 1], STRIDES, width=1, norm=None, **{"stacks": 1} | settings))


# --- truth by hand


@pytest.mark.parametrize("form", FORMS)
def test_sums_of_one_stack(form):
    """The gates of large numbers are open, in both forms, so every cell adds. C2 does not count."""
    a, b, c = 1e2, 1e4, 1e6
    p3, p4, p5 = a + 2 * b + c, a + 4 * b + 2 * c, 2 * a + 6 * b + 4 * c
    p7, p6 = 2 * a + 8 * b + 6 * c, 4 * a + 14 * b + 10 * c
    assert values(identity_nas_fpn(form=form)(constant(7e6, a, b, c, finest=32))) == [[p3], [p4], [p5], [p6], [p7]]


def test_stacks_follow_one_another():
    a = identity_nas_fpn(stacks=3)(constant(0, 0, 0, 100, finest=32))
    once = identity_nas_fpn()
    expected = once.stacks[0](once.stacks[0](once(constant(0, 0, 0, 100, finest=32))))
    assert all(torch.equal(x, y) for x, y in zip(a, expected, strict=True))


def test_the_coarse_map_gates_the_fine_one_in_the_authors_form():
    """By its maximum: sigmoid(ln 3) = 3/4."""
    high, low = torch.tensor([[[[-5.0, math.log(3)]]]]), torch.tensor([[[[8.0, 4.0]]]])
    assert gate_low(high, low).flatten().tolist() == pytest.approx([1, math.log(3) + 3])


def test_the_fine_map_gates_the_coarse_one_in_mmdetections_form():
    """By its mean."""
    high, low = torch.tensor([[[[8.0, 4.0]]]]), torch.tensor([[[[0.0, 2 * math.log(3)]]]])
    assert gate_high(high, low).flatten().tolist() == pytest.approx([6, 2 * math.log(3) + 3])


def test_gates_are_of_every_image_and_channel_alone():
    high, low = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    for gate in (gate_low, gate_high):
        alone = torch.stack([gate(high[i : i + 1], low[i : i + 1])[0] for i in range(2)])
        assert torch.equal(gate(high, low), alone)
        assert torch.equal(gate(high[:, 1:2], low[:, 1:2]), gate(high, low)[:, 1:2])


def test_relu_comes_before_the_convolution_and_nothing_after_the_norm():
    cell = NASFPN([1, 1, 1, 1], STRIDES, width=1, stacks=1).stacks[0].sum_43_3.eval()
    nn.init.dirac_(cell.conv.weight)
    nn.init.constant_(cell.norm.bias, -7)
    assert cell(torch.full((1, 1, 4, 4), -3.0)).unique().tolist() == [-7]


def test_p6_and_p7_are_convolved_before_pooling_in_mmdetections_form():
    neck = identity_nas_fpn(form="mmdetection")
    for extra in neck.extra:
        extra.conv.weight.data.fill_(-1)
    seen = []
    neck.stacks[0].register_forward_pre_hook(lambda _, args: seen.extend(args[0]))
    c = constant(0, 0, 0, 0, finest=32)
    c[3] = torch.arange(16.0).reshape(1, 1, 4, 4)
    neck(c)
    assert seen[3].tolist() == [[[[0, -2], [-8, -10]]]] and seen[4].tolist() == [[[[10]]]]  # max of -C5, then of -P6


def test_resizing_up_repeats_the_nearest_pixel():
    x, like = torch.tensor([[[[1.0, 2]]]]), torch.zeros(1, 1, 2, 5)
    assert resize(x, like)[0, 0].tolist() == [[1, 1, 1, 2, 2]] * 2


def test_resizing_down_takes_the_maximum_of_blocks():
    x = torch.arange(32.0).reshape(1, 1, 4, 8)
    assert resize(x, torch.zeros(1, 1, 2, 2))[0, 0].tolist() == [[11, 15], [27, 31]]
    assert resize(x, torch.zeros(1, 1, 1, 2))[0, 0].tolist() == [[27, 31]]


def test_zeros_go_around_what_does_not_fit():
    """Five columns into two blocks of three: one zero, behind. Into four blocks of two: one before, two behind."""
    x = torch.tensor([[[[-5.0, -1, -3, -2, -4]]]])
    assert resize(x, torch.zeros(1, 1, 1, 2)).flatten().tolist() == [-1, 0]
    assert resize(x, torch.zeros(1, 1, 1, 4)).flatten().tolist() == [0, -1, -2, 0]
    assert resize(x.mT, torch.zeros(1, 1, 2, 1)).flatten().tolist() == [-1, 0]


@pytest.mark.parametrize(
    ("side", "ceil", "floor"), [(1, [0], [0]), (2, [1], [1]), (3, [1, 2], [1]), (5, [1, 3, 4], [1, 3])]
)
def test_halving(side, ceil, floor):
    x = torch.arange(float(side)).reshape(1, 1, 1, side)
    assert halve_ceil(x).flatten().tolist() == ceil and halve_floor(x).flatten().tolist() == floor
    assert halve_ceil(x.mT).flatten().tolist() == ceil and halve_floor(x.mT).flatten().tolist() == floor


# --- oracle

# the searched cells: level, operation, inputs; 0..4 are P3..P7, a cell's own number follows in order
CELLS = [
    ("gp_64_4", 4, (3, 1)), ("sum_44_4", 4, (5, 1)), ("sum_43_3", 3, (6, 0)), ("sum_34_4", 4, (7, 6)),
    ("gp_43_5", 5, (8, 7)), ("gp_54_7", 7, (9, 6)), ("gp_75_6", 6, (10, 9)),
]  # fmt: skip


def slow_resize(x: Tensor, height: int, width: int) -> Tensor:
    """Of (N, C, H, W), where one size divides the other."""
    h, w = x.shape[-2:]
    if h < height:
        return torch.stack([x[..., i * h // height, :] for i in range(height)], dim=-2)[
            ..., [j * w // width for j in range(width)]
        ]
    return x.unflatten(-1, (width, w // width)).unflatten(-3, (height, h // height)).amax(dim=(-1, -3))


def slow_stack(stack: PyramidNetwork, p: list[Tensor], form: str) -> list[Tensor]:
    """The rule of the search: an input that no cell has read is added when an output of its level is made."""
    found, unread = list(zip(range(3, 8), p)), set(range(5))
    for cell, level, inputs in CELLS:
        height, width = p[level - 3].shape[-2:]
        high, low = sorted(inputs, key=lambda i: -found[i][0])
        high, low = (slow_resize(found[i][1], height, width) for i in (high, low))
        unread -= set(inputs)
        if cell.startswith("sum"):
            out = high + low
        elif form == "authors":
            out = high + low / (1 + (-high.flatten(2).max(dim=2).values[..., None, None]).exp())
        else:
            out = low + high / (1 + (-low.mean(dim=3).mean(dim=2)[..., None, None]).exp())
        for i in [i for i in unread if found[i][0] == level]:
            out, unread = out + found[i][1], unread - {i}
        module = getattr(stack, cell)
        found.append((level, module.norm(F.conv2d(out.clamp(min=0), module.conv.weight, module.conv.bias, padding=1))))
    outputs = dict(found[7:])  # of two P4 the later one
    return [outputs[level] for level in range(3, 8)]


@pytest.mark.parametrize("form", FORMS)
def test_a_stack_is_the_searched_table_of_cells(form):
    stack = NASFPN(NARROW, STRIDES, width=8, stacks=1, form=form).stacks[0].eval()
    p = [torch.randn(2, 8, 16 >> i, 32 >> i) for i in range(5)]
    for found, expected in zip(stack(p), slow_stack(stack, p, form), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# --- sizes


@pytest.mark.parametrize("strides", [[4, 8, 16, 16], [8, 16]])
def test_maps_that_it_cannot_use_are_refused(strides):
    with pytest.raises(ValueError, match=r"of strides \[8, 16, 32\]"):
        NASFPN(NARROW[-len(strides) :], strides, width=8)


def test_a_detector_says_which_part_does_not_fit():
    with pytest.raises(ConfigError, match="neck does not fit: NAS-FPN"):
        tiny_model(neck={"type": "nas_fpn"}, backbone={"dilated_c5": True})


# --- inference copies and mixed precision


def test_its_inputs_are_left_as_they_were():
    """The in-place ReLU changes only maps that the cell made."""
    neck, c = NASFPN(NARROW, STRIDES, width=8, stacks=1).eval(), maps(ODD)
    before = [x.clone() for x in c]
    p = neck(c)
    assert all(torch.equal(x, y) for x, y in zip(c, before)) and all(x.min() < 0 for x in p)
    kept = [x.clone() for x in p]
    neck.stacks[0](p)
    assert all(torch.equal(x, y) for x, y in zip(p, kept))
