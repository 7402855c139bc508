"""Adaptive feature pooling: every region from every level, a first layer for each, fused, then one head."""

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny import OBJECTS, gradients, picture, target, tiny_model, unmoved

from detector.errors import ConfigError
from detector.modeling.layers import fold_norms
from detector.modeling.roi_heads.adaptive_head import AdaptiveConvFC, AdaptiveTwoFC
from detector.modeling.roi_heads.pool import AllLevelPool, RoIPool

STRIDES = [4, 8, 16, 32, 64]
HEADS = {
    "two_fc": lambda **settings: AdaptiveTwoFC(6, 3, 4, width=16, **settings),
    "conv_fc": lambda **settings: AdaptiveConvFC(6, 3, 4, convs=3, conv_width=32, width=16, **settings),
    "conv_fc with norm": lambda **s: AdaptiveConvFC(6, 3, 4, convs=3, conv_width=32, width=16, norm="group", **s),
}
each_head = pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)
SECTIONS = {
    "two_fc": {"type": "adaptive_two_fc", "width": 32},
    "two_fc, sum": {"type": "adaptive_two_fc", "width": 32, "fuse": "sum"},
    "conv_fc": {"type": "adaptive_conv_fc", "convs": 2, "conv_width": 32, "width": 32, "norm": "group"},
}


def views(regions: int = 5) -> list[torch.Tensor]:
    """Four levels' maps of some regions."""
    return [torch.randn(regions, 6, 3, 3, requires_grad=True) for _ in range(4)]


def pyramid() -> list[torch.Tensor]:
    return [torch.randn(2, 6, 512 // s, 512 // s) for s in STRIDES]


def test_every_region_is_read_from_every_level_and_no_regions_give_empty_maps():
    """As from each level alone."""
    p, rois = pyramid(), torch.tensor([[0.0, 3, 5, 41, 60], [1, 10, 20, 500, 400], [1, 0, 0, 8, 8]])
    pool = AllLevelPool([6] * 5, STRIDES, size=3)
    found = pool(p, rois)
    assert len(found) == pool.branches == 4
    for x, level, stride in zip(found, p, STRIDES):
        alone = RoIPool([6], [stride], levels=1, size=3)
        torch.testing.assert_close(x, alone([level], rois))
    found = AllLevelPool([6] * 5, STRIDES, levels=3)(pyramid(), torch.zeros(0, 5))
    assert [x.shape for x in found] == [(0, 6, 7, 7)] * 3


@pytest.mark.parametrize("levels", [0, 1, 6])
def test_the_levels_are_two_to_those_that_the_neck_makes(levels):
    with pytest.raises(ValueError, match="levels: "):
        AllLevelPool([6] * 5, STRIDES, levels=levels)


@pytest.mark.parametrize("fuse", ["max", "sum"])
def test_two_fc_written_out(fuse):
    head, xs = AdaptiveTwoFC(6, 3, 4, width=16, fuse=fuse), views()
    first = torch.stack([F.relu(x.reshape(5, -1) @ fc.weight.T + fc.bias) for fc, x in zip(head.fc1, xs)])
    fused = first.max(dim=0).values if fuse == "max" else first.sum(dim=0)
    torch.testing.assert_close(head(xs), F.relu(head.fc2(fused)))


@pytest.mark.parametrize("fuse", ["max", "sum"])
def test_conv_fc_written_out(fuse):
    head, xs = AdaptiveConvFC(6, 3, 4, convs=3, conv_width=32, width=16, norm="group", fuse=fuse), views()

    def layer(x, part):
        x = F.conv2d(x, part.conv.weight, padding=1)
        return F.group_norm(x, 32, part.norm.weight, part.norm.bias).clamp(min=0)

    first = torch.stack([layer(x, conv) for conv, x in zip(head.conv1, xs)])
    x = first.max(dim=0).values if fuse == "max" else first.sum(dim=0)
    for conv in head.convs:
        x = layer(x, conv)
    assert len(head.convs) == 2
    torch.testing.assert_close(head(xs), F.relu(head.fc1(x.flatten(1))))


@each_head
@pytest.mark.parametrize("fuse", ["max", "sum"])
def test_every_parameter_and_every_view_has_a_gradient(make, fuse):
    head, xs = make(fuse=fuse), views()
    out = head(xs)
    assert out.shape == (5, head.width)
    (out * torch.randn_like(out)).sum().backward()
    for tensor in [*xs, *head.parameters()]:
        assert tensor.grad is not None and tensor.grad.abs().sum() > 0


@each_head
def test_no_regions_give_no_vectors_and_a_gradient_of_zero(make):
    head = make()
    out = head(views(0))
    assert out.shape == (0, 16)
    out.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_fold_keeps_the_function():
    head = AdaptiveConvFC(6, 3, 4, convs=2, conv_width=8, width=16, norm="frozen")
    for layer in [*head.conv1, *head.convs]:
        layer.norm.weight.uniform_(0.5, 1.5), layer.norm.running_mean.normal_()
    xs = views()
    expected = head(xs)
    torch.testing.assert_close(fold_norms(head)(xs), expected)


def full(box_head: dict, **sections):
    """A tiny PANet with adaptive feature pooling."""
    neck = {"type": "panet", "width": 32, "form": "authors", "norm": "group"}
    return tiny_model(neck=neck, roi_head={"pool": {"type": "all_levels"}, "box_head": box_head}, **sections)


@pytest.mark.parametrize("box_head", SECTIONS.values(), ids=SECTIONS)
def test_every_trainable_parameter_of_panet_in_full_has_a_gradient(box_head):
    model = full(box_head)
    assert unmoved(gradients(model, [picture(64, 96)], [OBJECTS])) == []
    gradients(model, [picture(64, 96)], [target()])


@torch.no_grad()
@pytest.mark.parametrize("box_head", SECTIONS.values(), ids=SECTIONS)
def test_something_is_found_and_nothing_where_there_is_no_proposal(box_head):
    assert len(full(box_head).eval()([picture(64, 96)])[0]) > 0
    assert len(full(box_head, rpn={"min_size": 1000.0}).eval()([picture(64, 96)])[0]) == 0


def test_mixed_precision_gives_losses_in_float32():
    with torch.autocast("cpu", torch.bfloat16):
        losses = full(SECTIONS["conv_fc"])([picture(64, 96)], [target((8, 8, 40, 50, 0))])
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()


def test_pool_and_head_must_agree_on_the_number_of_maps():
    with pytest.raises(ConfigError, match="gives 4 maps a region"):
        tiny_model(roi_head={"pool": {"type": "all_levels"}})
    with pytest.raises(ConfigError, match="type: all_levels"):
        tiny_model(roi_head={"box_head": SECTIONS["two_fc"]})
    with pytest.raises(ConfigError, match=r"pool\.k0: unknown key"):
        tiny_model(roi_head={"pool": {"type": "all_levels", "k0": 3}})
    for make in (AdaptiveTwoFC, AdaptiveConvFC):
        with pytest.raises(ValueError, match="type: all_levels"):
            make(6, 3, 1)
