"""Heads that turn a pooled region into a vector; adaptive feature pooling, with a first layer for every level."""

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny import OBJECTS, gradients, picture, target, tiny_model, unmoved

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


def test_two_fc_by_hand():
    head = TwoFC(2, 1, width=2)
    with torch.no_grad():
        head.fc1.weight.copy_(torch.tensor([[1.0, 1], [1, -1]]))
        head.fc2.weight.copy_(torch.tensor([[1.0, 2], [-1, 0]]))
    x = torch.tensor([[3.0, 1], [1, 3]])[:, :, None, None]
    assert head(x).tolist() == [[8, 0], [4, 0]]  # fc1: (4, 2) and (4, relu(-2)); fc2: 4 + 2 * 2 and 4 + 2 * 0


def test_the_first_layer_reads_channels_then_rows_then_columns():
    """As torchvision, Detectron2 and mmdetection: their weights fit, whatever the memory format."""
    head = TwoFC(3, 2, width=12)
    x = torch.arange(12.0).reshape(1, 3, 2, 2)
    with torch.no_grad():
        head.fc1.weight.copy_(torch.eye(12)), head.fc2.weight.copy_(torch.eye(12))
        assert head(x).tolist() == head(x.contiguous(memory_format=torch.channels_last)).tolist() == [list(range(12))]


def test_convolutions_keep_the_size_and_have_a_bias_without_a_norm():
    head = ConvFC(6, 5, convs=3, conv_width=8, width=4)
    assert [layer.conv.in_channels for layer in head.convs] == [6, 8, 8]
    assert all(layer.conv.bias is not None for layer in head.convs)
    assert head.fc1.in_features == 8 * 5 * 5


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


def test_every_region_is_read_from_every_level():
    """As from each level alone."""
    p, rois = pyramid(), torch.tensor([[0.0, 3, 5, 41, 60], [1, 10, 20, 500, 400], [1, 0, 0, 8, 8]])
    pool = AllLevelPool([6] * 5, STRIDES, size=3)
    found = pool(p, rois)
    assert len(found) == pool.branches == 4
    for x, level, stride in zip(found, p, STRIDES):
        alone = RoIPool([6], [stride], levels=1, size=3)
        torch.testing.assert_close(x, alone([level], rois))


def test_a_constant_level_gives_its_constant_to_all_regions():
    rois = torch.tensor([[0.0, 100, 100, 100 + side, 100 + side] for side in (10, 50, 200, 400)])
    p = [torch.full_like(x, k) for k, x in enumerate(pyramid(), start=2)]
    found = AllLevelPool([6] * 5, STRIDES, levels=3, size=2)(p, rois)
    assert [x.unique().tolist() for x in found] == [[2], [3], [4]]


def test_no_regions_give_empty_maps_of_every_level():
    found = AllLevelPool([6] * 5, STRIDES)(pyramid(), torch.zeros(0, 5))
    assert [x.shape for x in found] == [(0, 6, 7, 7)] * 4


def test_the_levels_are_two_to_those_that_the_neck_makes():
    for levels in (0, 1, 6):
        with pytest.raises(ValueError, match="levels: "):
            AllLevelPool([6] * 5, STRIDES, levels=levels)


def test_the_largest_after_the_first_layer_by_hand():
    """fc1 hands on 1 and 3 of the first region, relu(-2) and 1 of the second; fc2 doubles."""
    for fuse, expected in (("max", [[6], [2]]), ("sum", [[8], [2]])):
        head = AdaptiveTwoFC(1, 1, 2, width=1, fuse=fuse)
        with torch.no_grad():
            head.fc1[0].weight.fill_(1), head.fc1[1].weight.fill_(3), head.fc2.weight.fill_(2)
        x = torch.tensor([1.0, -2]).reshape(2, 1, 1, 1), torch.tensor([1.0, 1 / 3]).reshape(2, 1, 1, 1)
        torch.testing.assert_close(head(list(x)), torch.tensor(expected).float())


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


def test_one_map_a_region_is_refused_with_what_fits():
    for make in (AdaptiveTwoFC, AdaptiveConvFC):
        with pytest.raises(ValueError, match="type: all_levels"):
            make(6, 3, 1)


def full(box_head: dict, **sections):
    """A tiny PANet with adaptive feature pooling."""
    neck = {"type": "panet", "width": 32, "form": "authors", "norm": "group"}
    return tiny_model(neck=neck, roi_head={"pool": {"type": "all_levels"}, "box_head": box_head}, **sections)


@pytest.mark.parametrize("box_head", SECTIONS.values(), ids=SECTIONS)
def test_panet_in_full_learns_and_detects(box_head):
    model = full(box_head)
    assert unmoved(gradients(model, [picture(64, 96)], [OBJECTS])) == []
    gradients(model, [picture(64, 96)], [target()])
    with torch.no_grad():
        assert len(model.eval()([picture(64, 96)])[0]) > 0
        nothing = full(box_head, rpn={"selection": {"min_size": 1000.0}}).eval()
        assert len(nothing([picture(64, 96)])[0]) == 0


def test_pool_and_head_must_agree_on_the_number_of_maps():
    with pytest.raises(ConfigError, match="gives 4 maps a region"):
        tiny_model(roi_head={"pool": {"type": "all_levels"}})
    with pytest.raises(ConfigError, match="type: all_levels"):
        tiny_model(roi_head={"box_head": SECTIONS["two_fc"]})
    with pytest.raises(ConfigError, match=r"pool\.k0: unknown key"):  # it has no rule of sizes
        tiny_model(roi_head={"pool": {"type": "all_levels", "k0": 3}})
