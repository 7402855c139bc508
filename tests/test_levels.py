"""The level rule of FPN, eq. (1): k = floor(4 + log2(sqrt(w * h) / 224)), clamped to the levels that exist."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detector.modeling.levels import fpn_level


def level_of(width: float, height: float | None = None, **rule: float) -> int:
    """The level, of P2 to P5, of a box with these sides whose corner is the origin."""
    box = torch.tensor([[0, 0, width, width if height is None else height]])
    return fpn_level(box, **{"k_min": 2, "k_max": 5} | rule).item()


@pytest.mark.parametrize(("border", "level"), [(112, 3), (224, 4), (448, 5)])
def test_the_border_belongs_to_the_level_above_it(border, level):
    """And so does one float32 step below: sqrt and log2 round the step away, in all three references alike."""
    just_below = torch.nextafter(torch.tensor(float(border)), torch.tensor(0.0)).item()
    assert just_below < border
    assert [level_of(side) for side in (border, just_below, border - 0.01)] == [level, level, level - 1]


def test_empty_tiny_and_huge_boxes_are_clamped_to_the_levels_that_exist():
    assert level_of(0) == level_of(0, 50) == 2
    assert fpn_level(torch.tensor([[9.0, 9, 3, 3]]), k_min=2, k_max=5).item() == 2  # reversed
    assert level_of(1) == level_of(1e-20) == 2
    assert level_of(2000) == level_of(1e15) == 5
    assert [level_of(side, k_min=3, k_max=4) for side in (20, 112, 224, 1000)] == [3, 3, 4, 4]
    assert [level_of(side, k_min=2, k_max=6) for side in (448, 896)] == [5, 6]
    assert fpn_level(torch.rand(7, 4), 2, 5).dtype == torch.int64
    assert fpn_level(torch.zeros(0, 4), 2, 5).shape == (0,)


def test_only_the_area_counts_beside_the_canonical_size_and_level():
    assert level_of(56, 224) == level_of(224, 56) == level_of(112) == 3
    assert fpn_level(torch.tensor([[1000.0, 500, 1224, 724], [-50, -50, 174, 174]]), 2, 5).tolist() == [4, 4]
    assert [level_of(side, s0=56) for side in (27.9, 28, 56, 112)] == [2, 3, 4, 5]
    assert [level_of(side, k0=3) for side in (223, 224, 448, 896)] == [2, 3, 4, 5]


@given(st.floats(1, 3000), st.floats(1, 3000))
def test_equals_the_formula(width, height):
    exact = 4 + math.log2(math.sqrt(width * height) / 224)
    if abs(exact - round(exact)) > 1e-5:  # away from a border float32 and float64 agree
        assert level_of(width, height) == min(max(math.floor(exact), 2), 5)
