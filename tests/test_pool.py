"""RoIAlign equals torchvision's; a region is read from the level of its size, FPN eq. (1), in its own image."""

import itertools
import math

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops.poolers import LevelMapper

from detector.modeling.levels import fpn_level
from detector.modeling.roi_heads.pool import RoIPool, roi_align

CHANNELS, STRIDES = [6] * 5, [4, 8, 16, 32, 64]
each_alignment = pytest.mark.parametrize("aligned", [False, True])

ROIS = torch.tensor(
    [
        [0, 3, 5, 41, 60],
        [1, 10.5, 7.25, 30.125, 9.75],
        [0, -20, -30, 200, 300],  # far beyond the map on all sides
        [1, -50, -50, -10, -10],  # outside altogether
        [1, 90, 60, 95.9, 63.9],  # in the last cell
        [0, 95, 63, 130, 99],  # begins there and leaves
        [1, 12, 12, 12.01, 12.01],  # thinner than a cell
        [0, 12, 12, 12, 12],  # without area
        [1, 40, 40, 20, 20],  # reversed
        [0, 1e6, 1e6, 2e6, 2e6],
    ]
)


def feature_map(*, channels_last: bool = True, height: int = 16, width: int = 24) -> torch.Tensor:
    x = torch.randn(2, 6, height, width)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def theirs(x: torch.Tensor, rois: torch.Tensor, size: int, scale: float, samples: int, aligned: bool) -> torch.Tensor:
    return torchvision.ops.roi_align(x.contiguous(), rois, size, scale, samples, aligned)


def pyramid() -> list[torch.Tensor]:
    """P2..P6 of two images of 512 x 512 pixels."""
    return [torch.randn(2, 6, 512 // s, 512 // s) for s in STRIDES]


def numbered_pyramid() -> list[torch.Tensor]:
    """The same, every level filled with its number: 2 to 6."""
    return [torch.full_like(x, k) for k, x in enumerate(pyramid(), start=2)]


@each_alignment
def test_values_and_gradients_equal_torchvisions(aligned):
    corners = torch.rand(300, 2, 2) * torch.tensor([140.0, 100]) - 20
    low, high = corners.amin(dim=1), corners.amax(dim=1)
    rois = torch.cat([ROIS, torch.cat([torch.randint(0, 2, (300, 1)), low, high], dim=1)])
    for samples, size, channels_last in itertools.product((1, 2, 3), (1, 3, 7), (False, True)):
        x = feature_map(channels_last=channels_last).requires_grad_()
        both = [align(x, rois, size, 0.25, samples, aligned) for align in (roi_align, theirs)]
        torch.testing.assert_close(*both, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(*(out[: len(ROIS)] for out in both), rtol=1e-4, atol=1e-5)
        weight = torch.randn(len(ROIS), 6, size, size)
        grads = [torch.autograd.grad((out[: len(ROIS)] * weight).sum(), x)[0] for out in both]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_a_ramp_is_read_at_the_centres_of_the_bins():
    """The value of a cell is its column, and its centre lies at column + 0.5; unaligned, it lies at its column."""
    ramp = torch.arange(12.0).expand(1, 1, 12, 12)
    roi = torch.tensor([[0.0, 2, 2, 6, 6]])  # two bins, with centres at x = 3 and 5
    for aligned, expected in ((True, [2.5, 4.5]), (False, [3, 5])):
        assert roi_align(ramp, roi, 2, 1.0, 2, aligned)[0, 0].tolist() == [expected] * 2


def test_outside_the_map_is_zero():
    rois = torch.tensor([[0.0, -50, -50, -10, -10], [0, 2, 2, 6, 6]])
    assert roi_align(torch.ones(1, 1, 8, 8), rois, 2, 1.0, 2, True).sum(dim=(1, 2, 3)).tolist() == [0, 4]


def test_a_map_of_one_cell():
    x, args = torch.randn(1, 3, 1, 1), (torch.tensor([[0.0, 0, 0, 32, 32]]), 7, 1 / 32, 2, True)
    torch.testing.assert_close(roi_align(x, *args), theirs(x, *args))


def roi(side: float, image: int = 0) -> list[float]:
    return [image, 0, 0, side, side]


def test_every_region_is_read_from_the_level_of_its_size():
    sides = (500, 20, 111, 112, 230, 3, 28, 27, 56)
    rois = torch.tensor([roi(side) for side in sides])
    for settings, expected in (
        ({}, [5, 2, 2, 3, 4, 2, 2, 2, 2]),
        ({"levels": 1}, [2] * 9),
        ({"levels": 2}, [3, 2, 2, 3, 3, 2, 2, 2, 2]),
        ({"canonical_size": 56}, [5, 2, 4, 5, 5, 2, 3, 2, 4]),
        ({"canonical_size": 56, "k0": 3}, [5, 2, 3, 4, 5, 2, 2, 2, 3]),
    ):
        pooled = RoIPool(CHANNELS, STRIDES, size=1, **settings)(numbered_pyramid(), rois)
        assert pooled[:, 0, 0, 0].tolist() == expected, settings


def test_regions_keep_their_order_and_every_region_its_image():
    p = pyramid()
    rois = torch.tensor([roi(300, 1), roi(20, 0), roi(20, 1), roi(300, 0), roi(120, 1)])
    pool = RoIPool(CHANNELS, STRIDES)
    together, alone = pool(p, rois), [pool(p, r[None]) for r in rois]
    torch.testing.assert_close(together, torch.cat(alone))
    assert not torch.equal(together[1], together[2])


@pytest.mark.parametrize("samples", [0, 2])
def test_any_number_of_samples_any_precision_and_no_regions(samples):
    rois = torch.tensor([[0.0, 10, 12, 60, 70], [1, 5, 5, 19, 50]])
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.05)):
        p = [x.to(dtype).requires_grad_() for x in pyramid()[:4]]
        pool = RoIPool(CHANNELS[:4], STRIDES[:4], samples=samples, aligned=False)
        expected = theirs(p[0].float(), rois, 7, 0.25, samples, False)
        torch.testing.assert_close(pool(p, rois).float(), expected, rtol=tolerance, atol=tolerance)
        pooled = pool(p, torch.zeros(0, 5))
        assert pooled.shape == (0, 6, 7, 7) and pooled.dtype == dtype
        pooled.sum().backward()
        assert all(x.grad is not None and x.grad.abs().sum() == 0 for x in p)


def test_bad_numbers_stay_in_their_own_image():
    for value in (math.nan, math.inf):
        p = pyramid()
        p[0][0] = value
        pooled = RoIPool(CHANNELS, STRIDES)(p, torch.tensor([roi(20, 0), roi(20, 1)]))
        assert not pooled[0].isfinite().any() and pooled[1].isfinite().all()


def test_there_must_be_so_many_levels():
    for levels in (0, -1, 6):
        with pytest.raises(ValueError, match="levels: "):
            RoIPool(CHANNELS, STRIDES, levels=levels)


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


def test_just_below_a_border_the_rounding_of_each_framework_decides():
    """One step is 2**-17 pixels below 112 and 2**-15 below 448; torchvision's own function is asked as well."""
    steps = torch.arange(1, 60)
    for border in (112.0, 224.0, 448.0):
        below = border - steps * (border - torch.nextafter(torch.tensor(border), torch.tensor(0.0)))
        boxes = torch.stack([0 * below, 0 * below, below, below], dim=1)
        upper = {
            name: fpn_level(boxes, 2, 5, rounding=name) - 2 for name in ("detectron2", "torchvision", "mmdetection")
        }
        assert upper["torchvision"].equal(LevelMapper(2, 5)([boxes]))
        assert upper["mmdetection"].equal(torch.log2(below / 56 + 1e-6).floor().long())
        counts = {name: int((level == level[0]).sum()) for name, level in upper.items()}
        assert counts["detectron2"] <= counts["mmdetection"] < counts["torchvision"] < len(steps)
    boxes = torch.tensor([[0, 0, 112 - 7e-5, 112 - 7e-5], [0, 0, 0, 9], [0, 0, 2000, 2000]])
    for rounding, first in (("detectron2", 2), ("torchvision", 3), ("mmdetection", 2)):
        assert fpn_level(boxes, 2, 5, rounding=rounding).tolist() == [first, 2, 5]
        rois = torch.cat([torch.zeros(3, 1), boxes], dim=1)
        p = [torch.full((1, 1, 600 // stride, 600 // stride), stride.bit_length() - 1.0) for stride in (4, 8, 16, 32)]
        pooled = RoIPool([1] * 4, [4, 8, 16, 32], level_rounding=rounding)(p, rois)
        assert pooled[0].mean().item() == pytest.approx(first)


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
