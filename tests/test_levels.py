"""The level rule of FPN, eq. (1): k = floor(4 + log2(sqrt(w * h) / 224)), clamped to the levels that exist."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from detector.modeling.levels import fpn_level


def level_of(width: float, height: float | None = None, **rule: float) -> int:
    """The level, of P2 to P5, of a box with these sides whose corner is the origin."""
    box = torch.tensor([[0, 0, width, width if height is None else height]])
    return fpn_level(box, **{"k_min": 2, "k_max": 5} | rule).item()


def test_a_border_belongs_to_the_level_above_it_and_so_does_one_float32_step_less():
    """sqrt and log2 round the step away, in Detectron2, torchvision and MMDetection alike; a hundredth of a pixel stays."""
    for border, level in ((112, 3), (224, 4), (448, 5)):
        just_below = torch.nextafter(torch.tensor(float(border)), torch.tensor(0.0)).item()
        assert just_below < border and level_of(border) == level_of(just_below) == level
        assert level_of(border - 0.01) == level - 1


def test_boxes_are_clamped_to_the_levels_that_exist_and_empty_ones_go_to_the_finest():
    assert level_of(0) == level_of(0, 50) == level_of(1) == level_of(1e-20) == 2
    assert fpn_level(torch.tensor([[9.0, 9, 3, 3]]), k_min=2, k_max=5).item() == 2  # reversed
    assert level_of(2000) == level_of(1e15) == 5
    assert [level_of(side, k_min=3, k_max=4) for side in (20, 112, 224, 1000)] == [3, 3, 4, 4]
    assert [level_of(side, k_min=2, k_max=6) for side in (448, 896)] == [5, 6]


def test_only_the_area_counts():
    assert level_of(56, 224) == level_of(224, 56) == level_of(112) == 3
    boxes = torch.tensor([[0.0, 0, 224, 224], [1000, 500, 1224, 724], [-50, -50, 174, 174]])
    assert fpn_level(boxes, 2, 5).tolist() == [4, 4, 4]


def test_another_canonical_size_and_level():
    assert [level_of(side, s0=56) for side in (27.9, 28, 56, 112)] == [2, 3, 4, 5]
    assert [level_of(side, k0=3) for side in (223, 224, 448, 896)] == [2, 3, 4, 5]


def test_a_level_is_a_whole_number_for_every_box():
    assert fpn_level(torch.rand(7, 4), 2, 5).dtype == torch.int64
    assert fpn_level(torch.zeros(0, 4), 2, 5).shape == (0,)


@given(st.floats(1, 3000), st.floats(1, 3000))
def test_equals_the_formula(width, height):
    exact = 4 + math.log2(math.sqrt(width * height) / 224)
    if abs(exact - round(exact)) > 1e-5:  # away from a border float32 and float64 agree
        assert level_of(width, height) == min(max(math.floor(exact), 2), 5)
