"""Tensor names of Detectron2's checkpoints. Their layouts equal ours: background last, deltas (dx, dy, dw, dh)."""

from __future__ import annotations

from detector.interop.names import Framework, Row, from_conv1d, to_conv1d

STAGES = [(2, "res2", "layer1"), (3, "res3", "layer2"), (4, "res4", "layer3"), (5, "res5", "layer4")]


def stage(theirs: str, ours: str) -> list[Row]:
    """The rows of one stage of a ResNet."""
    return [
        (f"{theirs}.#.conv#.weight", f"{ours}.#.conv#.weight"),
        (f"{theirs}.#.conv#.norm.{{}}", f"{ours}.#.bn#.{{}}"),
        (f"{theirs}.#.shortcut.weight", f"{ours}.#.downsample.0.weight"),
        (f"{theirs}.#.shortcut.norm.{{}}", f"{ours}.#.downsample.1.{{}}"),
    ]


def _backbone(theirs: str) -> list[Row]:
    stem = [
        (f"{theirs}.stem.conv1.weight", "pyramid.backbone.conv1.weight"),
        (f"{theirs}.stem.conv1.norm.{{}}", "pyramid.backbone.bn1.{}"),
    ]
    return stem + [row for _, res, layer in STAGES for row in stage(f"{theirs}.{res}", f"pyramid.backbone.{layer}")]


FPN = [
    row
    for level in (2, 3, 4, 5)
    for row in (
        (f"backbone.fpn_lateral{level}.norm.{{}}", f"pyramid.neck.lateral.{level - 2}.norm.{{}}"),
        (f"backbone.fpn_lateral{level}.{{}}", f"pyramid.neck.lateral.{level - 2}.conv.{{}}"),
        (f"backbone.fpn_output{level}.norm.{{}}", f"pyramid.neck.output.{level - 2}.norm.{{}}"),
        (f"backbone.fpn_output{level}.{{}}", f"pyramid.neck.output.{level - 2}.conv.{{}}"),
    )
]
RPN = [
    ("proposal_generator.rpn_head.conv.{}", "rpn.conv.0.{}"),
    ("proposal_generator.rpn_head.objectness_logits.{}", "rpn.objectness.{}"),
    ("proposal_generator.rpn_head.anchor_deltas.{}", "rpn.deltas.{}"),
]
BOX_HEAD = [
    ("roi_heads.box_head.fc#.{}", "roi_head.stage.box_head.fc#.{}"),
    ("roi_heads.box_predictor.cls_score.{}", "roi_head.stage.class_score.{}"),
    ("roi_heads.box_predictor.bbox_pred.{}", "roi_head.stage.box_delta.{}"),
]
BOX_HEAD_GN = [
    *(
        (f"roi_heads.box_head.conv{i}.norm.{{}}", f"roi_head.stage.box_head.convs.{i - 1}.norm.{{}}")
        for i in range(1, 5)
    ),
    *((f"roi_heads.box_head.conv{i}.{{}}", f"roi_head.stage.box_head.convs.{i - 1}.conv.{{}}") for i in range(1, 5)),
]
CASCADE = [
    ("roi_heads.box_head.#.fc#.{}", "roi_head.stages.#.box_head.fc#.{}"),
    ("roi_heads.box_predictor.#.cls_score.{}", "roi_head.stages.#.class_score.{}"),
    ("roi_heads.box_predictor.#.bbox_pred.{}", "roi_head.stages.#.box_delta.{}"),
]
MASK_LAYERS = [
    *((f"mask_fcn{i}.norm.{{}}", f"convs.{i - 1}.norm.{{}}") for i in range(1, 9)),
    *((f"mask_fcn{i}.{{}}", f"convs.{i - 1}.conv.{{}}") for i in range(1, 9)),
    ("deconv.{}", "deconv.{}"),
    ("predictor.{}", "predictor.{}"),
]
MASK_HEAD = [
    (f"roi_heads.mask_head.{theirs}", f"{ours}.head.{layer}")
    for ours in ("roi_head.mask", "roi_head.masks.0")  # the second one in a cascade
    for theirs, layer in MASK_LAYERS
]
POINT_REND = [
    (f"roi_heads.{theirs}.{{}}", f"roi_head.mask.{ours}.{{}}")
    for coarse, fc, points in (
        ("mask_head.coarse_head", "fc", "mask_head.point_head"),
        ("mask_coarse_head", "coarse_mask_fc", "mask_point_head"),  # files of early 2020
    )
    for theirs, ours in (
        (f"{coarse}.reduce_channel_dim_conv", "head.reduce"),
        (f"{coarse}.reduce_spatial_dim_conv", "head.downsample"),
        (f"{coarse}.{fc}#", "head.fc#"),
        (f"{coarse}.prediction", "head.logits"),
        *((f"{points}.fc{i + 1}", f"point_head.layers.{i}") for i in range(8)),
        (f"{points}.predictor", "point_head.predictor"),
    )
]
KEYPOINTS = [
    *(
        (f"roi_heads.keypoint_head.conv_fcn{i + 1}.{{}}", f"roi_head.keypoint.head.convs.{i}.conv.{{}}")
        for i in range(8)
    ),
    ("roi_heads.keypoint_head.score_lowres.{}", "roi_head.keypoint.head.upsample.{}"),
]
RES5 = stage("roi_heads.res5", "roi_head.stage.box_head.layer4")
DETECTRON2 = Framework(
    name="Detectron2",
    marker=r"backbone\.bottom_up\.|proposal_generator\.|roi_heads\.(box_head\.(\d+\.)?(fc|conv)1|res5)\.",
    rows=RPN + BOX_HEAD + BOX_HEAD_GN + RES5 + CASCADE + MASK_HEAD + POINT_REND + KEYPOINTS,
    variants=[
        # with an FPN the ResNet is its bottom_up; without one it is the backbone itself
        {
            "pyramid.neck.": _backbone("backbone.bottom_up") + FPN,
            "pyramid.backbone.": _backbone("backbone"),
        }
    ],
    import_layout=from_conv1d,
    export_layout=to_conv1d,
    ignorable=[r"pixel_(mean|std)", r"proposal_generator\.anchor_generator\..*"],
)
