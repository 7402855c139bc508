"""Heads that turn a pooled region into a vector; adaptive feature pooling, with a first layer for every level."""

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny import tiny_model

from detector.errors import ConfigError
from detector.modeling.layers import fold_norms
from detector.modeling.roi_heads.adaptive_head import AdaptiveConvFC, AdaptiveTwoFC
from detector.modeling.roi_heads.box_head import ConvFC, TwoFC
from detector.modeling.roi_heads.pool import AllLevelPool, RoIPool

SIZES = dict(convs=2, conv_width=32, width=16)
HEADS = {
    "two_fc": lambda: TwoFC(6, 7, width=16),
    "conv_fc": lambda: ConvFC(6, 7, **SIZES),
    "conv_fc with group norm": lambda: ConvFC(6, 7, **SIZES, norm="group"),
    "conv_fc with batch norm": lambda: ConvFC(6, 7, **SIZES, norm="batch"),
    "conv_fc with frozen norm": lambda: ConvFC(6, 7, **SIZES, norm="frozen"),
}


@pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)
def test_rows_are_vectors_every_parameter_has_a_gradient_and_folding_keeps_the_function(make):
    head = make()
    out = head(torch.randn(8, 6, 7, 7))  # moves the statistics of batch norms away from 0 and 1
    assert out.shape == (8, head.width) == (8, 16) and (out >= 0).all()
    (out * torch.randn(8, 16)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
    x = torch.randn(4, 6, 7, 7)
    expected = head.eval()(x)
    torch.testing.assert_close(fold_norms(head)(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)
def test_no_regions(make):
    head = make()
    before = {k: v.clone() for k, v in head.state_dict().items() if "running" in k}
    out = head(torch.zeros(0, 6, 7, 7))
    assert out.shape == (0, 16)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    assert all(torch.equal(head.state_dict()[k], v) for k, v in before.items())  # nothing is no statistic


STRIDES = [4, 8, 16, 32, 64]
ADAPTIVE = {
    "two_fc": lambda **settings: AdaptiveTwoFC(6, 3, 4, width=16, **settings),
    "conv_fc": lambda **settings: AdaptiveConvFC(6, 3, 4, convs=3, conv_width=32, width=16, **settings),
    "conv_fc with norm": lambda **s: AdaptiveConvFC(6, 3, 4, convs=3, conv_width=32, width=16, norm="group", **s),
}
each_head = pytest.mark.parametrize("make", ADAPTIVE.values(), ids=ADAPTIVE)


def views(regions: int = 5) -> list[torch.Tensor]:
    return [torch.randn(regions, 6, 3, 3, requires_grad=True) for _ in range(4)]


def pyramid() -> list[torch.Tensor]:
    return [torch.randn(2, 6, 512 // s, 512 // s) for s in STRIDES]


def test_every_region_is_read_from_every_level_as_from_each_alone():
    p, rois = pyramid(), torch.tensor([[0.0, 3, 5, 41, 60], [1, 10, 20, 500, 400], [1, 0, 0, 8, 8]])
    pool = AllLevelPool([6] * 5, STRIDES, size=3)
    found = pool(p, rois)
    assert len(found) == pool.branches == 4 and len(AllLevelPool([6] * 5, STRIDES, levels=3)(p, rois)) == 3
    for x, level, stride in zip(found, p, STRIDES):
        alone = RoIPool([6], [stride], levels=1, size=3)
        torch.testing.assert_close(x, alone([level], rois))
    found = AllLevelPool([6] * 5, STRIDES)(pyramid(), torch.zeros(0, 5))
    assert [x.shape for x in found] == [(0, 6, 7, 7)] * 4
    for levels in (0, 1, 6):
        with pytest.raises(ValueError, match="levels: "):
            AllLevelPool([6] * 5, STRIDES, levels=levels)


@pytest.mark.parametrize("fuse", ["max", "sum"])
def test_written_out(fuse):
    def layer(x, part):
        x = F.conv2d(x, part.conv.weight, padding=1)
        return F.group_norm(x, 32, part.norm.weight, part.norm.bias).clamp(min=0)

    def fused(maps):
        return torch.stack(maps).amax(dim=0) if fuse == "max" else torch.stack(maps).sum(dim=0)

    head, xs = AdaptiveTwoFC(6, 3, 4, width=16, fuse=fuse), views()
    first = [F.relu(x.reshape(5, -1) @ fc.weight.T + fc.bias) for fc, x in zip(head.fc1, xs)]
    torch.testing.assert_close(head(xs), F.relu(head.fc2(fused(first))))
    head = AdaptiveConvFC(6, 3, 4, convs=3, conv_width=32, width=16, norm="group", fuse=fuse)
    x = fused([layer(x, conv) for conv, x in zip(head.conv1, xs)])
    assert len(head.convs) == 2
    for conv in head.convs:
        x = layer(x, conv)
    torch.testing.assert_close(head(xs), F.relu(head.fc1(x.flatten(1))))


@each_head
def test_every_parameter_and_every_view_has_a_gradient(make):
    for fuse, regions in (("max", 5), ("sum", 5), ("max", 0)):
        head, xs = make(fuse=fuse), views(regions)
        out = head(xs)
        assert out.shape == (regions, head.width) == (regions, 16)
        (out * torch.randn_like(out)).sum().backward()
        assert all(p.grad is not None and bool(p.grad.any()) == (regions > 0) for p in head.parameters())
        assert all(x.grad.any() for x in xs) or not regions


def test_fold_keeps_the_function():
    head = AdaptiveConvFC(6, 3, 4, convs=2, conv_width=8, width=16, norm="frozen")
    for layer in [*head.conv1, *head.convs]:
        layer.norm.weight.uniform_(0.5, 1.5), layer.norm.running_mean.normal_()
    xs = views()
    expected = head(xs)
    torch.testing.assert_close(fold_norms(head)(xs), expected)


def test_pool_and_head_must_agree_on_the_number_of_maps():
    with pytest.raises(ConfigError, match="gives 4 maps a region"):
        tiny_model(roi_head={"pool": {"type": "all_levels"}})
    with pytest.raises(ConfigError, match="type: all_levels"):
        tiny_model(roi_head={"box_head": {"type": "adaptive_two_fc", "width": 32}})
    with pytest.raises(ConfigError, match=r"pool\.k0: unknown key"):  # it has no rule of sizes
        tiny_model(roi_head={"pool": {"type": "all_levels", "k0": 3}})
    for make in (AdaptiveTwoFC, AdaptiveConvFC):
        with pytest.raises(ValueError, match="type: all_levels"):
            make(6, 3, 1)
