"""Soft RoI selection: against slow loops, one level chosen by hand, empties, and a gradient everywhere."""

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny import OBJECTS, gradients, picture, tiny_model
from torch import Tensor, nn
from torchvision.ops import roi_align

from detector.modeling.roi_heads.pool import RoIPool
from detector.modeling.roi_heads.soft_pool import SoftRoIPool

CHANNELS, STRIDES = [6] * 5, [4, 8, 16, 32, 64]
ROIS = torch.tensor([[0, 3, 5, 41, 60], [1, 10.5, 7.25, 30.125, 9.75], [1, 0, 0, 127, 127], [0, 50, 50, 50, 50]])


def pyramid() -> list[Tensor]:
    """P2..P6 of two images of 128 x 128 pixels."""
    return [torch.randn(2, 6, 128 // s, 128 // s, requires_grad=True) for s in STRIDES]


def slow_pool(pool: SoftRoIPool, p: list[Tensor], rois: Tensor) -> Tensor:
    """(R, C, size, size), pixel by pixel, each level pooled by torchvision."""
    maps = [roi_align(x, rois, pool.size, 1 / stride, 2, True) for x, stride in zip(p[:4], STRIDES)]
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
    pool, p = SoftRoIPool(CHANNELS, STRIDES, size=size), pyramid()
    nn.init.normal_(pool.attention[2].bias)
    torch.testing.assert_close(pool(p, ROIS), slow_pool(pool, p, ROIS), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_weights_of_the_levels_are_independent():
    """A level with all the weight is read alone, whatever the region's size; they do not sum to 1."""
    pool, p = SoftRoIPool(CHANNELS, STRIDES), pyramid()
    nn.init.zeros_(pool.attention[2].weight)
    for level in range(4):
        nn.init.constant_(pool.attention[2].bias, -200.0)
        pool.attention[2].bias[level] = 200.0
        alone = RoIPool(CHANNELS, STRIDES[level:], levels=1)
        torch.testing.assert_close(pool(p, ROIS), alone(p[level:], ROIS))
    nn.init.constant_(pool.attention[2].bias, 200.0)
    torch.testing.assert_close(pool([torch.ones_like(x) for x in p], ROIS[:1]), torch.full((1, 6, 7, 7), 4.0))


def test_no_regions_are_no_features_and_a_gradient():
    pool = SoftRoIPool(CHANNELS, STRIDES)
    assert (pool.branches, pool.channels, pool.size) == (1, 6, 7)
    found = pool(pyramid(), torch.zeros(0, 5))
    assert found.shape == (0, 6, 7, 7)
    found.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in pool.parameters())


def test_every_parameter_and_every_level_but_p6_has_a_gradient():
    pool, p = SoftRoIPool(CHANNELS, STRIDES), pyramid()
    pool(p, ROIS).square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in [*p[:4], *pool.parameters()])
    assert p[4].grad is None


def test_runs_in_bfloat16():
    with torch.autocast("cpu", torch.bfloat16):
        found = SoftRoIPool(CHANNELS, STRIDES)([x.bfloat16() for x in pyramid()], ROIS)
    assert found.dtype == torch.bfloat16 and found.isfinite().all()


def test_more_levels_than_the_neck_makes_are_refused():
    with pytest.raises(ValueError, match="levels: 4 wanted, the neck makes 3"):
        SoftRoIPool(CHANNELS[:3], STRIDES[:3])


def test_a_dilated_c5_is_as_good_a_level_as_any():
    """No rule of sizes has to find it."""
    model = tiny_model(backbone={"dilated_c5": True}, roi_head={"pool": {"type": "soft"}})
    gradients(model, [picture(64, 96)], [OBJECTS])
    assert len(model.eval()([picture(64, 96)])[0]) > 0
