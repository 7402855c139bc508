"""A pyramid of one level: the coarsest map alone, and a detector on C4 whose box head is the ResNet's last stage."""

import pytest
import torch
from helpers.tiny import picture, tiny_model

from detector.errors import CheckpointError, ConfigError
from detector.interop.detectron2 import DETECTRON2
from detector.interop.mmdetection import MMDETECTION
from detector.interop.names import rename
from detector.modeling.backbones.resnet import ResNet
from detector.modeling.layers import FrozenBatchNorm, GroupNorm, fold_norms
from detector.modeling.necks.single import Single
from detector.modeling.roi_heads.res5 import Res5

ONE_LEVEL = {
    "neck": {"type": "single"},
    "rpn": {"anchors": {"sizes": [[16, 32, 64, 96, 128]]}},
    "roi_head": {"pool": {"levels": 1}},
}


def test_the_coarsest_map_is_handed_on_as_it_is_and_more_levels_are_refused():
    single = Single([256, 512, 1024, 2048], [4, 8, 16, 32])
    c = [torch.randn(1, 2, side, side) for side in (8, 4, 2, 1)]
    (p,) = single(c)
    assert p is c[-1]
    assert single.channels == [2048] and single.strides == [32] and not list(single.parameters())
    # Of a dilated C5 the rule of levels would never read anything.
    for sections, message in (
        (ONE_LEVEL | {"roi_head": {}}, r"model\.roi_head\.pool.*levels: 4.*the neck makes 1"),
        (ONE_LEVEL | {"rpn": {}}, "5 lists of anchor sizes for 1 pyramid levels"),
        ({"backbone": {"dilated_c5": True}}, r"\[4, 8, 16, 16\].*neck \{type: single\}"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny_model(**sections)


IMAGES = [picture(64, 96, seed=1), picture(64, 96, seed=2)]
ROI_HEAD = {
    "pool": {"levels": 1, "size": 14}, "box_head": {"type": "res5"}, "sampling": {"batch_per_image": 16},
    "selection": {"score_threshold": 0.0},
}  # fmt: skip


def c4_model(**backbone):
    """The tiny detector with C4 for all."""
    rpn = ONE_LEVEL["rpn"] | {"selection": {"post_nms": [16, 16]}}
    return tiny_model(
        neck={"type": "single"}, rpn=rpn, roi_head=ROI_HEAD, backbone={"stages": 3, "width": 16} | backbone
    )


def head_of(depth: int = 18, **settings) -> Res5:
    backbone = ResNet(depth, stages=3, **settings)
    return Res5(backbone.channels[-1], 14, backbone)


@pytest.fixture(params=[18, 50])
def whole(request, tmp_path):
    """A plain network with weights worth keeping, and their file."""
    net = ResNet(request.param, width=16, norm="affine").eval()
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if "running" in name:
                tensor.uniform_(0.5, 1.5)
    torch.save(net.state_dict() | {"fc.weight": torch.zeros(3, 4), "fc.bias": torch.zeros(3)}, tmp_path / "net.pth")
    return net, str(tmp_path / "net.pth")


def test_the_head_is_the_stage_that_the_backbone_leaves_out_of_its_weights(whole, tmp_path):
    net, weights = whole
    backbone = ResNet(net.depth, width=16, norm="affine", stages=3, weights=weights).eval()
    head = Res5(backbone.channels[-1], 14, backbone).eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        c, expected = backbone(x), net(x)
        assert all(torch.equal(a, b) for a, b in zip(c, expected[:3], strict=True))
        assert torch.equal(head(c[-1]), expected[3].mean((2, 3)))
    net, _ = whole
    state = {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("layer4.1.")}
    torch.save(state, tmp_path / "short.pth")
    backbone = ResNet(net.depth, width=16, norm="affine", stages=3, weights=str(tmp_path / "short.pth"))
    with pytest.raises(CheckpointError, match=r"missing: 1\.conv1\.weight"):
        Res5(backbone.channels[-1], 14, backbone)


def test_the_stage_has_the_backbones_settings_and_what_it_needs_is_told():
    for norm, kind in (("frozen", FrozenBatchNorm), ("group", GroupNorm)):
        block = head_of(50, norm=norm, norm_eps=1e-3, stride_in="1x1", groups=2, width_per_group=32).layer4[0]
        assert type(block.bn2) is kind and block.bn2.eps == 1e-3
        assert block.conv1.stride == (2, 2) and block.conv2.stride == (1, 1) and block.conv2.groups == 2
    backbone = ResNet(18, stages=3, frozen_stages=4)
    assert not any(p.requires_grad for p in backbone.parameters())
    assert all(p.requires_grad for p in Res5(256, 14, backbone).parameters())
    for stages, neck, levels in ((4, "single", 1), (3, "fpn", 4)):  # a backbone with its own layer4, a neck
        rpn = {"anchors": {"sizes": [[16]] * levels}}
        with pytest.raises(ConfigError, match=r"res5 is the stage after C4.*stages: 3.*type: single"):
            tiny_model(backbone={"stages": stages}, neck={"type": neck}, rpn=rpn, roi_head=ROI_HEAD)
    with pytest.raises(ValueError, match="dilated_c5"):  # three stages have no C5 to dilate
        ResNet(18, stages=3, dilated_c5=True)


def test_no_regions_and_folding():
    head = head_of(norm="batch")
    out = head(torch.zeros(0, 256, 14, 14))
    assert out.shape == (0, 512)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    head, x = head_of(50, norm="batch"), torch.randn(2, 1024, 14, 14)
    head(x)  # moves the statistics away from 0 and 1
    head.eval()
    with torch.no_grad():
        expected = head(x)
        torch.testing.assert_close(fold_norms(head)(x), expected, rtol=1e-4, atol=1e-5)


def test_it_detects_and_has_the_names_of_other_frameworks():
    model = c4_model().eval()
    together, apart = model(IMAGES), [model([image])[0] for image in IMAGES]
    for a, b in zip(together, apart, strict=True):
        assert len(a) == len(b) > 0
        torch.testing.assert_close(a.scores, b.scores, rtol=1e-3, atol=1e-4)
    state, ours = c4_model().state_dict(), "roi_head.stage.box_head.layer4.0.conv1.weight"
    for theirs, framework in (("roi_heads.res5.0", DETECTRON2), ("roi_head.shared_head.layer4.0", MMDETECTION)):
        names = rename(f"{theirs}.conv1.weight", framework.rows_of(state))
        assert [name for name in names if name in state] == [ours]
