"""DetectoRS' recursive feature pyramid: the feedback, where it joins, and the fusion of old and new levels."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny import picture, tiny_model
from torch import Tensor, nn

from detector.modeling.backbones.resnet import ResNet
from detector.modeling.layers import fold_norms
from detector.modeling.necks.fpn import FPN
from detector.modeling.necks.single import Single
from detector.modeling.pyramid import PlainPyramid
from detector.modeling.recursive_pyramid import ASPP, RecursivePyramid

WIDTH = 8


def small_resnet(depth: int = 18, **settings) -> ResNet:
    return ResNet(depth, **dict(width=8, norm="affine", frozen_stages=0) | settings)


def recursive(depth: int = 18, steps: int = 2, neck=FPN, **settings) -> RecursivePyramid:
    backbone = small_resnet(depth, **settings)
    neck = neck(backbone.channels, backbone.strides, width=WIDTH)
    return RecursivePyramid(backbone, neck, lambda: small_resnet(depth, **settings), steps=steps)


def scrambled(pyramid: RecursivePyramid) -> RecursivePyramid:
    """Feedback and gate that do something."""
    with torch.no_grad():
        for name, p in pyramid.named_parameters():
            if "rfp_conv" in name or name.startswith("gate"):
                p.normal_(std=0.3)
    return pyramid


def test_all_steps_share_the_neck_but_not_the_backbone_of_which_later_ones_take_feedback():
    for depth in [18, 50]:
        with torch.device("meta"):
            pyramid = recursive(depth, steps=3)
        names = [name for name, _ in pyramid.named_modules() if name.endswith("rfp_conv")]
        assert names == [f"unrolled.{i}.layer{n}.0.rfp_conv" for i in (0, 1) for n in (2, 3, 4)]
    pyramid = recursive(steps=3)
    backbones = [pyramid.backbone, *pyramid.unrolled]
    assert len({id(b.layer1[0].conv1.weight) for b in backbones}) == 3
    own = [name for name, _ in pyramid.named_parameters() if not name.startswith(("backbone.", "unrolled."))]
    plain = FPN(pyramid.backbone.channels, pyramid.backbone.strides, width=WIDTH)
    assert [name.removeprefix("neck.") for name in own if name.startswith("neck.")] == list(plain.state_dict())
    model = tiny_model(backbone={"norm": "batch"}, pyramid={"type": "recursive"}).train()
    for backbone in (model.pyramid.backbone, model.pyramid.unrolled[0]):
        assert not backbone.bn1.training and not any(p.requires_grad for p in backbone.layer1.parameters())
        assert backbone.layer2[0].bn1.training


def test_feedback_is_the_level_of_the_stage_that_it_joins_before_the_last_relu_of_a_block():
    block = small_resnet(50).layer2[0].eval()
    block.add_feedback(1)
    x, r = torch.randn(1, 32, 6, 6), torch.randn(1, 1, 3, 3)
    with torch.no_grad():
        plain = block(x)
        assert torch.equal(block(x, r), plain)  # no weight at first
        before = block.bn3(block.conv3(F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))))))
        before = before + block.downsample(x)
        block.rfp_conv.weight.fill_(2)
        block.rfp_conv.bias.fill_(-0.5)
        torch.testing.assert_close(block(x, r), F.relu(before + 2 * r - 0.5))
        block.rfp_conv.bias.fill_(-1e4)
        assert block(x, r).unique().tolist() == [0]  # and not below
    # P3 goes to layer2, which makes C3, and so on; nothing goes to layer1, and P6 nowhere.
    pyramid, seen = recursive(), []
    pyramid.unrolled[0].register_forward_pre_hook(lambda _, args: seen.append(args))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        pyramid(images)
        first = pyramid.neck(pyramid.backbone(images))
        [(again, feedback)] = seen
        assert torch.equal(again, images) and feedback[0] is None
        for r, p in zip(feedback[1:], first[1:4], strict=True):
            assert torch.equal(r, pyramid.aspp(p))


def test_four_views_of_a_pixel_in_their_order():
    aspp = ASPP(4)
    with torch.no_grad():
        for conv, bias in zip(aspp.views, (0.0, 0.0, 0.0, 0.5)):
            conv.weight.zero_()
            conv.bias.fill_(bias)
            conv.weight[:, 0, 0, 0] = 1  # of a 3x3, what lies to the upper left
    x = torch.zeros(1, 4, 16, 16)
    x[0, 0, 8, 8] = 256
    y = aspp(x)[0]
    assert y.shape == (4, 16, 16)
    for view, (row, col) in zip(y, [(8, 8), (11, 11), (14, 14)]):
        assert view[row, col] == 256 and view.sum() == 256
    assert y[3].unique().tolist() == [1.5]  # the mean of the map, everywhere
    y = ASPP(8)(torch.randn(2, 8, 9, 9))  # every view is rectified
    assert (y >= 0).all() and all((part == 0).any() and (part > 0).any() for part in y.chunk(4, dim=1)[:3])


def test_the_gate_is_the_new_pyramids_and_every_step_goes_on_from_the_fused_levels():
    pyramid = recursive()
    old, new = torch.zeros(1, WIDTH, 1, 2), torch.ones(1, WIDTH, 1, 2)
    new[..., 1] = 2
    with torch.no_grad():
        assert pyramid.fuse(old, new)[0, 0, 0].tolist() == [0.5, 1.0]
        pyramid.gate.weight[0, 0] = 1.0
        assert pyramid.fuse(old, new)[0, 0, 0].tolist() == pytest.approx([0.7310586, 2 * 0.8807971])
        pyramid.gate.bias.fill_(-50)
        assert pyramid.fuse(old, new).abs().max() < 1e-12
    # Means of 0 and 1, then of that and 4, then of that and 8.
    values = iter((1.0, 4.0, 8.0))
    neck = nn.Identity()
    neck.channels, neck.strides = [4, 4], [4, 8]
    pyramid = RecursivePyramid(Count(0.0), neck, lambda: Count(next(values)), steps=4)
    pyramid.aspp = nn.Identity()
    for level in pyramid(torch.zeros(1)):
        assert level.unique().tolist() == [5.125]
    assert [again.fed[0][1].unique().tolist() for again in pyramid.unrolled] == [[0], [0.5], [2.25]]


class Count(nn.Module):
    """A backbone and a neck at once: constant maps; the feedback is recorded."""

    def __init__(self, value: float):
        super().__init__()
        self.value, self.strides, self.channels, self.fed = value, [4, 8], [4, 4], []

    def add_feedback(self, channels: int) -> None:
        assert channels == 4

    def forward(self, x: Tensor, feedback: list | None = None) -> list[Tensor]:
        self.fed.append(feedback)
        return [torch.full((1, 4, 2, 2), self.value), torch.full((1, 4, 1, 1), self.value)]


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize("conv", ["plain", "sac"])
def test_with_equal_backbones_it_starts_as_the_plain_pyramid(depth, steps, conv):
    """As from the same ImageNet weights; in DetectoRS the convolutions, too, start as plain ones."""
    pyramid = recursive(depth, steps, conv=conv).eval()
    for again in pyramid.unrolled:
        again.load_state_dict(pyramid.backbone.state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for p, expected in zip(pyramid(images), PlainPyramid(pyramid.backbone, pyramid.neck)(images), strict=True):
            torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-5)


def test_folding_keeps_the_function_and_all_is_detected_in_bfloat16():
    pyramid = scrambled(recursive(conv="aws")).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = pyramid(images)
        for p, q in zip(fold_norms(copy.deepcopy(pyramid))(images), expected, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
    model = tiny_model(pyramid={"type": "recursive"}).eval().bfloat16()
    (found,) = model([picture(64, 96)])
    assert found.scores.isfinite().all() and found.boxes.isfinite().all()


def test_the_second_look_sees_every_level_of_the_first():
    """The fed-back levels reach every level of the output by the second look alone."""
    pyramid = scrambled(recursive())
    with torch.no_grad():
        pyramid.gate.weight.zero_()
        pyramid.gate.bias.fill_(50)  # only the new pyramid counts
    first: list[Tensor] = []
    pyramid.neck.register_forward_hook(lambda *args: first.extend(args[2]))
    for p in pyramid(torch.randn(1, 3, 128, 128)):
        reached = torch.autograd.grad(p.square().sum(), first[1:4], retain_graph=True)
        assert all(g.abs().sum() > 0 for g in reached)


def test_what_does_not_fit_is_refused():
    """Fewer than two looks, and a neck, a width, or a backbone that takes no feedback."""
    for steps in (0, 1, 11):
        with pytest.raises(ValueError, match=r"steps: expected a whole number in 2\.\.10"):
            recursive(steps=steps)
    with pytest.raises(ValueError, match=r"backbone's strides \[4, 8, 16, 32\].*as an FPN.*strides \[32\]"):
        recursive(neck=lambda channels, strides, width: Single(channels, strides))
    backbone = small_resnet()
    with pytest.raises(ValueError, match="divisible by 4"):
        RecursivePyramid(backbone, FPN(backbone.channels, backbone.strides, width=6), small_resnet)
    backbone = nn.Identity()
    backbone.channels, backbone.strides = [4, 4], [4, 8]
    with pytest.raises(ValueError, match="Identity has none"):
        RecursivePyramid(backbone, FPN([4, 4], [4, 8], width=8), nn.Identity)
