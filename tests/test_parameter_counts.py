"""As many parameters as the published heads and systems (test_necks.py and test_resnet.py have necks and backbones)."""

import pytest
import torch
from helpers.golden_rules import PROJECT
from helpers.necks import count
from torch import nn

from detector.config.config import build_detector, load_config
from detector.modeling.anchors import AnchorGenerator
from detector.modeling.backbones.sac import SAC
from detector.modeling.recursive_pyramid import ASPP
from detector.modeling.roi_heads.adaptive_head import AdaptiveConvFC, AdaptiveTwoFC
from detector.modeling.roi_heads.box_head import ConvFC, TwoFC
from detector.modeling.roi_heads.roi_head import RoIHead
from detector.modeling.rpn import RPN


def rpn(channels: int, *, levels: int = 1, sizes: int = 5, **settings) -> RPN:
    anchors = AnchorGenerator([16] * levels, [[32.0 * (i + 1) for i in range(sizes)]] * levels)
    return RPN([channels] * levels, anchors, **settings)


class Predictor(nn.Module):
    """A RoIHead without its box head of width 1024."""

    def __init__(self, classes: int, **settings):
        super().__init__()
        body = nn.Identity()
        body.width = 1024
        self.head = RoIHead(nn.Identity(), body, classes, **settings)


PARTS = {
    "RPN": (lambda: rpn(256, levels=5, sizes=1), 593_935),
    "RPN on C4": (lambda: rpn(1024), 9_515_083),
    "RPN on dilated C5": (lambda: rpn(2048), 37_904_459),
    "RPN on C5, 512 wide": (lambda: rpn(2048, width=512), 2048 * 512 * 9 + 512 + 75 * 513),
    "2fc": (lambda: TwoFC(256, 7), 13_895_680),
    "2fc on dilated C5": (lambda: TwoFC(2048, 7), 103_811_072),
    "4conv1fc": (lambda: ConvFC(256, 7), 15_206_400),
    "4conv1fc, group norm": (lambda: ConvFC(256, 7, norm="group"), 15_207_424),
    "adaptive 2fc": (lambda: AdaptiveTwoFC(256, 7, 4), 13_895_680 + 38_538_240),
    "adaptive 4conv1fc": (  # three further copies of the first convolution and its norm
        lambda: AdaptiveConvFC(256, 7, 4, norm="group"),
        15_207_424 + 3 * (9 * 256 * 256 + 2 * 256),
    ),
    "deformable SAC of 512 planes": (  # 9 * 512 ** 2 are those of the plain convolution
        lambda: SAC(512, 512, 3, padding=1, bias=False, deformable=True),
        9 * 512**2 + 3_051_045,
    ),
    "ASPP": (lambda: ASPP(256), 327_936),
    "predictor": (lambda: Predictor(80), 411_025),
    "predictor of one class": (lambda: Predictor(1), 2050 + 4100),
    "predictor, class-agnostic": (lambda: Predictor(80, class_agnostic=True), 87_125),
    "predictor, torchvision": (lambda: Predictor(90), 466_375 - 4 * 1025),  # without four rows of the background's box
}


@pytest.mark.parametrize("part", PARTS)
def test_part(part):
    make, parameters = PARTS[part]
    with torch.device("meta"):
        assert count(make()) == parameters


FASTER_RCNN = 23_454_912 + 593_935 + 13_895_680 + 411_025  # but for the neck
MASK_HEAD, KEYPOINTS = 2_643_280, 17_698_816 + 139_281
PANET = FASTER_RCNN - 13_895_680 + 15_207_424 + 1_771_008 + 3_346_432 + 3_543_552
# three heads, and into the last two of masks a convolution
HTC = 23_454_912 + 593_935 + 3_344_384 + 3 * (13_895_680 + 87_125 + MASK_HEAD) + 2 * 65_792
FEEDBACK = 131_584 + 263_168 + 526_336  # the convolutions through which P3..P5 join the second backbone
SYSTEMS = {
    "rpn_r50_fpn_1x_coco": 23_454_912 + 3_344_384 + 593_935,
    "fast_rcnn_r50_fpn_1x_coco": 23_454_912 + 3_344_384 + 13_895_680 + 411_025,
    "compat/torchvision_fasterrcnn_resnet50_fpn": 41_755_286 - 4 * 1025,
    "compat/torchvision_fasterrcnn_resnet50_fpn_v2": 43_712_278 - 4 * 1025,
    "faster_rcnn_r50_fpn_1x_coco": FASTER_RCNN + 3_344_384,
    "panet_r50_1x_coco": FASTER_RCNN + 3_344_384 + 3_540_480,
    "panet_full_r50_1x_coco": PANET,
    "augfpn_r50_1x_coco": FASTER_RCNN + 3_344_384 + 1_573_632 + 203_779 + 271_620 + 13_895_680 + 411_025,  # two heads
    "libra_r50_1x_coco": FASTER_RCNN + 3_344_384 + 4 * 256 * 257,
    "cascade_r50_1x_coco": 23_454_912 + 593_935 + 3_344_384 + 3 * (13_895_680 + 87_125),
    # norms whose affine map trains, twice; the gate
    "rfp_r50_1x_coco": FASTER_RCNN + 3_344_384 + 53_120 + 23_508_032 + 327_936 + 257 + FEEDBACK,
    "bottom_up_r50_1x_coco": FASTER_RCNN + 3_344_384,
    "top_down_r50_1x_coco": FASTER_RCNN + 2_884_864,
    "finest_r50_1x_coco": FASTER_RCNN + 1_574_144 + 12 * 5 * 257,  # an RPN of 15 anchors in place of 3
    "hierarchy_r50_1x_coco": FASTER_RCNN + 984_064,
    "c4_r50_1x_coco": 23_454_912 + 9_515_083 + 401 * 2049,
    "c5_r50_1x_coco": 23_454_912 + 9_476_171 + 103_811_072 + 411_025,
    "dc5_r50_1x_coco": 23_454_912 + 37_904_459 + 103_811_072 + 411_025,
    "compat/detectron2_faster_rcnn_R_50_C4": 23_454_912 + 9_515_083 + 401 * 2049,
    "mask_rcnn_r50_fpn_1x_coco": FASTER_RCNN + 3_344_384 + MASK_HEAD,
    "mask_rcnn_c4_r50_1x_coco": 23_454_912 + 9_515_083 + 401 * 2049 + 2048 * 256 * 4 + 256 + 20_560,
    "mask_rcnn_dc5_r50_1x_coco": 23_454_912 + 37_904_459 + 103_811_072 + 411_025 + MASK_HEAD + 1792 * 256 * 9,
    "cascade_mask_r50_1x_coco": 23_454_912 + 593_935 + 3_344_384 + 3 * (13_895_680 + 87_125) + MASK_HEAD,
    "compat/mmdetection_cascade_mask_rcnn_r50_fpn": 23_508_032
    + 593_935
    + 3_344_384
    + 3 * (13_895_680 + 87_125 + MASK_HEAD),
    "keypoint_rcnn_r50_fpn_1x_coco": FASTER_RCNN + 3_344_384 + KEYPOINTS,
    "compat/torchvision_keypointrcnn_resnet50_fpn": 59_137_258 - 4 * 1025,
    "htc_without_semantic_r50_1x_coco": HTC,
    "htc_r50_1x_coco": HTC + 2_802_103,
    "mask_scoring_r50_1x_coco": FASTER_RCNN + 3_344_384 + MASK_HEAD + 16_340_304,
    "pointrend_r50_1x_coco": FASTER_RCNN + 3_344_384 + 18_176_080 + 285_776,
    "panet_mask_r50_1x_coco": PANET + 7 * (256 * 256 * 9 + 2 * 256) + 262_400 + 20_560 + 20_555_280,
    # torchvision's background has a mask that nothing reads
    "compat/torchvision_maskrcnn_resnet50_fpn": 44_401_393 - 4 * 1025 - 257,
    "compat/torchvision_maskrcnn_resnet50_fpn_v2": 46_359_409 - 4 * 1025 - 257,
    "compat/detectron2_faster_rcnn_R_50_DC5": 23_454_912 + 37_904_459 + 103_811_072 + 411_025,
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_system(system):
    """As its configuration builds it."""
    no_weights = ["model.backbone.weights=null", "model.backbone.frozen_stages=0"]
    config = load_config(PROJECT / f"configs/{system}.yaml", no_weights)
    config = config if config.model.num_classes else config.with_num_classes(80)
    with torch.device("meta"):
        assert count(build_detector(config)) == SYSTEMS[system]
