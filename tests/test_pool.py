"""RoIAlign equals torchvision's; a region is read from the level of its size, FPN eq. (1), or from all by soft selection."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers.tiny import OBJECTS, gradients, picture, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.ops.poolers import LevelMapper

from detector.modeling.levels import fpn_level
from detector.modeling.roi_heads.pool import RoIPool, roi_align
from detector.modeling.roi_heads.soft_pool import SoftRoIPool

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


def roi(side: float, image: int = 0) -> list[float]:
    return [image, 0, 0, side, side]


def test_every_region_is_read_from_the_level_of_its_size_of_those_that_there_are():
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
    for levels in (0, -1, 6):
        with pytest.raises(ValueError, match="levels: "):
            RoIPool(CHANNELS, STRIDES, levels=levels)


def test_regions_keep_their_order_and_every_region_its_image_and_its_bad_numbers():
    p = pyramid()
    rois = torch.tensor([roi(300, 1), roi(20, 0), roi(20, 1), roi(300, 0), roi(120, 1)])
    pool = RoIPool(CHANNELS, STRIDES)
    together, alone = pool(p, rois), [pool(p, r[None]) for r in rois]
    torch.testing.assert_close(together, torch.cat(alone))
    assert not torch.equal(together[1], together[2])
    for value in (math.nan, math.inf):
        p = pyramid()
        p[0][0] = value
        pooled = RoIPool(CHANNELS, STRIDES)(p, torch.tensor([roi(20, 0), roi(20, 1)]))
        assert not pooled[0].isfinite().any() and pooled[1].isfinite().all()


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


def level_of(width: float, height: float | None = None, **rule: float) -> int:
    """The level, of P2 to P5, of a box with these sides whose corner is the origin."""
    box = torch.tensor([[0, 0, width, width if height is None else height]])
    return fpn_level(box, **{"k_min": 2, "k_max": 5} | rule).item()


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


def test_levels_are_whole_numbers_that_exist_and_borders_belong_to_the_level_above():
    assert level_of(0) == level_of(0, 50) == level_of(1) == level_of(1e-20) == 2
    assert fpn_level(torch.tensor([[9.0, 9, 3, 3]]), k_min=2, k_max=5).item() == 2  # reversed
    assert level_of(2000) == level_of(1e15) == 5
    assert [level_of(side, k_min=3, k_max=4) for side in (20, 112, 224, 1000)] == [3, 3, 4, 4]
    assert [level_of(side, k_min=2, k_max=6) for side in (448, 896)] == [5, 6]
    assert fpn_level(torch.rand(7, 4), 2, 5).dtype == torch.int64
    assert fpn_level(torch.zeros(0, 4), 2, 5).shape == (0,)
    # sqrt and log2 round the step away, in Detectron2, torchvision and MMDetection alike; a hundredth of a pixel stays.
    for border, level in ((112, 3), (224, 4), (448, 5)):
        just_below = torch.nextafter(torch.tensor(float(border)), torch.tensor(0.0)).item()
        assert just_below < border and level_of(border) == level_of(just_below) == level
        assert level_of(border - 0.01) == level - 1


@given(st.floats(1, 3000), st.floats(1, 3000))
def test_equals_the_formula(width, height):
    exact = 4 + math.log2(math.sqrt(width * height) / 224)
    if abs(exact - round(exact)) > 1e-5:  # away from a border float32 and float64 agree
        assert level_of(width, height) == min(max(math.floor(exact), 2), 5)


SOME_ROIS = torch.tensor([[0, 3, 5, 41, 60], [1, 10.5, 7.25, 30.125, 9.75], [1, 0, 0, 127, 127], [0, 50, 50, 50, 50]])


def small_pyramid() -> list[Tensor]:
    """P2..P6 of two images of 128 x 128 pixels."""
    return [torch.randn(2, 6, 128 // s, 128 // s, requires_grad=True) for s in STRIDES]


def slow_pool(pool: SoftRoIPool, p: list[Tensor], rois: Tensor) -> Tensor:
    """(R, C, size, size), pixel by pixel, each level pooled by torchvision."""
    maps = [theirs(x, rois, pool.size, 1 / stride, 2, True) for x, stride in zip(p[:4], STRIDES)]
    first, last = pool.attention[0], pool.attention[2]
    out = torch.zeros_like(maps[0])
    for r in range(len(rois)):
        joined = torch.cat([x[r] for x in maps])  # (4 * C, size, size)
        hidden = torch.einsum("oc,cyx->oyx", first.weight[:, :, 0, 0], joined) + first.bias[:, None, None]
        hidden = F.pad(hidden.clamp(min=0), (1, 1, 1, 1))
        for y in range(pool.size):
            for x in range(pool.size):
                window = hidden[:, y : y + 3, x : x + 3]
                for level in range(4):
                    logit = (last.weight[level] * window).sum() + last.bias[level]
                    out[r, :, y, x] += maps[level][r, :, y, x] / (1 + torch.exp(-logit))
    return out


@torch.no_grad()
@pytest.mark.parametrize("size", [3, 7])
def test_equals_slow_loops(size):
    pool, p = SoftRoIPool(CHANNELS, STRIDES, size=size), small_pyramid()
    nn.init.normal_(pool.attention[2].bias)
    torch.testing.assert_close(pool(p, SOME_ROIS), slow_pool(pool, p, SOME_ROIS), rtol=1e-4, atol=1e-5)


def test_every_parameter_and_every_level_but_p6_has_a_gradient_which_is_zero_without_regions():
    pool, p = SoftRoIPool(CHANNELS, STRIDES), small_pyramid()
    pool(p, SOME_ROIS).square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in [*p[:4], *pool.parameters()])
    assert p[4].grad is None
    pool = SoftRoIPool(CHANNELS, STRIDES)
    assert (pool.branches, pool.channels, pool.size) == (1, 6, 7)
    found = pool(small_pyramid(), torch.zeros(0, 5))
    assert found.shape == (0, 6, 7, 7)
    found.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in pool.parameters())


def test_more_levels_than_the_neck_makes_are_refused_and_a_dilated_c5_is_as_good_as_any():
    with pytest.raises(ValueError, match="levels: 4 wanted, the neck makes 3"):
        SoftRoIPool(CHANNELS[:3], STRIDES[:3])
    # No rule of sizes has to find it.
    model = tiny_model(backbone={"dilated_c5": True}, roi_head={"pool": {"type": "soft"}})
    gradients(model, [picture(64, 96)], [OBJECTS])
    assert len(model.eval()([picture(64, 96)])[0]) > 0
