"""Tensor names of MMDetection's checkpoints (2.0 and later). Layouts equal ours: background last, deltas (dx, dy, dw, dh)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from detector.interop.names import Framework, Row, from_conv1d, to_conv1d

BACKBONE: list[Row] = [("backbone.{...}", "pyramid.backbone.{...}")]
FPN = [
    ("neck.lateral_convs.#.conv.{}", "pyramid.neck.lateral.#.conv.{}"),
    ("neck.lateral_convs.#.bn.{}", "pyramid.neck.lateral.#.norm.{}"),
    ("neck.fpn_convs.#.conv.{}", "pyramid.neck.output.#.conv.{}"),
    ("neck.fpn_convs.#.bn.{}", "pyramid.neck.output.#.norm.{}"),
]
PAFPN = [
    ("neck.lateral_convs.#.conv.{}", "pyramid.neck.fpn.lateral.#.conv.{}"),
    ("neck.fpn_convs.#.conv.{}", "pyramid.neck.fpn.output.#.conv.{}"),
    ("neck.downsample_convs.#.conv.{}", "pyramid.neck.down.#.conv.{}"),
    ("neck.pafpn_convs.#.conv.{}", "pyramid.neck.output.#.conv.{}"),
]
BFP = [
    ("neck.0.lateral_convs.#.conv.{}", "pyramid.neck.fpn.lateral.#.conv.{}"),
    ("neck.0.fpn_convs.#.conv.{}", "pyramid.neck.fpn.output.#.conv.{}"),
    *((f"neck.1.refine.{name}.conv.{{}}", f"pyramid.neck.refine.{name}.{{}}") for name in ("theta", "phi", "g")),
    ("neck.1.refine.conv_out.conv.{}", "pyramid.neck.refine.out.{}"),
    ("neck.1.refine.conv.{}", "pyramid.neck.refine.conv.{}"),
]
# two of our seven cells are pairs of cells there, whose second one has the convolution
NAS_CELLS = {name: name for name in ("gp_64_4", "sum_44_4", "sum_43_3", "sum_34_4", "gp_75_6")}
NAS_CELLS |= {"sum_55_5": "gp_43_5", "sum_77_7": "gp_54_7"}
NAS_FPN = [
    ("neck.extra_downsamples.#.0.conv.{}", "pyramid.neck.extra.#.conv.{}"),
    ("neck.extra_downsamples.#.0.bn.{}", "pyramid.neck.extra.#.norm.{}"),
] + [
    (f"neck.fpn_stages.#.{theirs}.out_conv.{bn}.{{}}", f"pyramid.neck.stacks.#.{ours}.{norm}.{{}}")
    for theirs, ours in NAS_CELLS.items()
    for bn, norm in (("conv", "conv"), ("bn", "norm"))
]
RFP = [
    ("neck.rfp_modules.#.{...}", "pyramid.unrolled.#.{...}"),
    ("neck.rfp_aspp.aspp.#.{}", "pyramid.aspp.views.#.{}"),
    ("neck.rfp_weight.{}", "pyramid.gate.{}"),
]
RPN = [
    ("rpn_head.rpn_conv.{}", "rpn.conv.0.{}"),
    ("rpn_head.rpn_cls.{}", "rpn.objectness.{}"),
    ("rpn_head.rpn_reg.{}", "rpn.deltas.{}"),
]
BOX_HEAD = [
    ("roi_head.bbox_head.shared_fcs.0.{}", "roi_head.stage.box_head.fc1.{}"),
    ("roi_head.bbox_head.shared_fcs.1.{}", "roi_head.stage.box_head.fc2.{}"),
    ("roi_head.bbox_head.fc_cls.{}", "roi_head.stage.class_score.{}"),
    ("roi_head.bbox_head.fc_reg.{}", "roi_head.stage.box_delta.{}"),
]
RES5: list[Row] = [("roi_head.shared_head.layer4.{...}", "roi_head.stage.box_head.layer4.{...}")]
CASCADE = [
    ("roi_head.bbox_head.#.shared_fcs.0.{}", "roi_head.stages.#.box_head.fc1.{}"),
    ("roi_head.bbox_head.#.shared_fcs.1.{}", "roi_head.stages.#.box_head.fc2.{}"),
    ("roi_head.bbox_head.#.fc_cls.{}", "roi_head.stages.#.class_score.{}"),
    ("roi_head.bbox_head.#.fc_reg.{}", "roi_head.stages.#.box_delta.{}"),
]
MASK_LAYERS = [
    ("convs.#.conv.{}", "convs.#.conv.{}"),
    ("convs.#.bn.{}", "convs.#.norm.{}"),
    ("upsample.{}", "deconv.{}"),
    ("conv_logits.{}", "predictor.{}"),
]
MASK_HEAD = [
    (f"roi_head.mask_head.{theirs}{layer}", f"roi_head.{ours}.head.{own}")
    for theirs, ours in (("", "mask"), ("#.", "masks.#"))  # the second one in a cascade
    for layer, own in MASK_LAYERS
]


def _one_mask_head_for_each_stage(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detectron2's cascade has one mask head. The mean of the masks of equal heads is the mask of one."""
    stages = {name.split(".")[2] for name in state if name.startswith("roi_head.stages.")}
    heads = {name.split(".")[2] for name in state if name.startswith("roi_head.masks.")}
    if len(heads) != 1:
        return dict(state)
    first = {
        name.removeprefix("roi_head.masks.0."): tensor for name, tensor in state.items() if "roi_head.masks." in name
    }
    return dict(state) | {
        f"roi_head.masks.{number}.{name}": tensor for number in sorted(stages) for name, tensor in first.items()
    }


HTC = [
    ("roi_head.semantic_head.lateral_convs.#.conv.{}", "roi_head.semantic_head.lateral.#.conv.{}"),
    ("roi_head.semantic_head.convs.#.conv.{}", "roi_head.semantic_head.convs.#.conv.{}"),
    ("roi_head.semantic_head.conv_embedding.conv.{}", "roi_head.semantic_head.embedding.conv.{}"),
    ("roi_head.semantic_head.conv_logits.{}", "roi_head.semantic_head.logits.{}"),
    # counted there by the mask head that they lead into
    *((f"roi_head.mask_head.{i + 1}.conv_res.conv.{{}}", f"roi_head.flow.{i}.conv.{{}}") for i in range(9)),
]
MASK_IOU = [
    ("roi_head.mask_iou_head.convs.#.{}", "roi_head.mask.iou_head.convs.#.{}"),
    ("roi_head.mask_iou_head.fcs.0.{}", "roi_head.mask.iou_head.fc1.{}"),
    ("roi_head.mask_iou_head.fcs.1.{}", "roi_head.mask.iou_head.fc2.{}"),
    ("roi_head.mask_iou_head.fc_mask_iou.{}", "roi_head.mask.iou_head.iou.{}"),
]
POINT_REND = [
    ("roi_head.mask_head.downsample_conv.conv.{}", "roi_head.mask.head.downsample.{}"),
    ("roi_head.mask_head.fcs.0.{}", "roi_head.mask.head.fc1.{}"),
    ("roi_head.mask_head.fcs.1.{}", "roi_head.mask.head.fc2.{}"),
    ("roi_head.mask_head.fc_logits.{}", "roi_head.mask.head.logits.{}"),
    ("roi_head.point_head.fcs.#.conv.{}", "roi_head.mask.point_head.layers.#.{}"),
    ("roi_head.point_head.fc_logits.{}", "roi_head.mask.point_head.predictor.{}"),
]
MMDETECTION = Framework(
    name="MMDetection",
    marker=r"neck\.|rpn_head\.|roi_head\.bbox_head\.",
    rows=BACKBONE + RFP + RPN + BOX_HEAD + RES5 + CASCADE + MASK_HEAD + MASK_IOU + POINT_REND + HTC,
    variants=[
        {
            "pyramid.neck.down.": PAFPN,
            "pyramid.neck.refine.": BFP,
            "pyramid.neck.stacks.": NAS_FPN + FPN,
            "pyramid.neck.": FPN,
        }
    ],
    import_layout=from_conv1d,
    export_layout=to_conv1d,
    export_parts=_one_mask_head_for_each_stage,
)
