"""Tensor names and class order of torchvision's fasterrcnn_, maskrcnn_ (v1, v2) and keypointrcnn_resnet50_fpn.

In torchvision the background comes first and has four deltas and a mask, which are never used; here it comes last and has
none.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from detector.errors import CheckpointError
from detector.interop.classes import COCO_80
from detector.interop.names import Framework, Row

MASKS = "roi_head.mask.head.predictor."
ROWS: list[Row] = [
    ("backbone.body.{...}", "pyramid.backbone.{...}"),
    ("backbone.fpn.inner_blocks.#.0.{}", "pyramid.neck.lateral.#.conv.{}"),
    ("backbone.fpn.inner_blocks.#.1.{}", "pyramid.neck.lateral.#.norm.{}"),
    ("backbone.fpn.layer_blocks.#.0.{}", "pyramid.neck.output.#.conv.{}"),
    ("backbone.fpn.layer_blocks.#.1.{}", "pyramid.neck.output.#.norm.{}"),
    ("rpn.head.conv.#.0.{}", "rpn.conv.#.{}"),
    ("rpn.head.cls_logits.{}", "rpn.objectness.{}"),
    ("rpn.head.bbox_pred.{}", "rpn.deltas.{}"),
    ("roi_heads.box_predictor.cls_score.{}", "roi_head.stage.class_score.{}"),
    ("roi_heads.box_predictor.bbox_pred.{}", "roi_head.stage.box_delta.{}"),
    ("roi_heads.mask_head.#.0.{}", "roi_head.mask.head.convs.#.conv.{}"),
    ("roi_heads.mask_head.#.1.{}", "roi_head.mask.head.convs.#.norm.{}"),
    ("roi_heads.mask_predictor.conv5_mask.{}", "roi_head.mask.head.deconv.{}"),
    ("roi_heads.mask_predictor.mask_fcn_logits.{}", "roi_head.mask.head.predictor.{}"),
]
# the published v1 file has the names of 2019, from before some layers were put into containers
ROWS_2019: list[Row] = [
    row
    for part in ("weight", "bias")
    for row in (
        (f"backbone.fpn.inner_blocks.#.{part}", f"pyramid.neck.lateral.#.conv.{part}"),
        (f"backbone.fpn.layer_blocks.#.{part}", f"pyramid.neck.output.#.conv.{part}"),
        (f"rpn.head.conv.{part}", f"rpn.conv.0.{part}"),
        *(
            (f"roi_heads.mask_head.mask_fcn{i}.{part}", f"roi_head.mask.head.convs.{i - 1}.conv.{part}")
            for i in range(1, 5)
        ),
    )
]
TWO_FC: list[Row] = [
    ("roi_heads.box_head.fc6.{}", "roi_head.stage.box_head.fc1.{}"),
    ("roi_heads.box_head.fc7.{}", "roi_head.stage.box_head.fc2.{}"),
]
CONV_FC: list[Row] = [  # v2: four convolutions, a flatten, a linear layer
    ("roi_heads.box_head.#.0.{}", "roi_head.stage.box_head.convs.#.conv.{}"),
    ("roi_heads.box_head.#.1.{}", "roi_head.stage.box_head.convs.#.norm.{}"),
    ("roi_heads.box_head.5.{}", "roi_head.stage.box_head.fc1.{}"),
]
KEYPOINTS: list[Row] = [  # of every convolution a ReLU follows
    *((f"roi_heads.keypoint_head.{2 * i}.{{}}", f"roi_head.keypoint.head.convs.{i}.conv.{{}}") for i in range(8)),
    ("roi_heads.keypoint_predictor.kps_score_lowres.{}", "roi_head.keypoint.head.upsample.{}"),
]


def _background_last(name: str, tensor: Tensor, like: Tensor) -> Tensor:
    """Move the background to the end and drop its deltas and its mask; for 80 classes select COCO's 80 real columns of the 91."""
    if not tensor.ndim or not len(tensor):
        return tensor  # fits no model: reported by the comparison of shapes
    if name.startswith("roi_head.stage.class_score"):
        columns = COCO_80 if len(tensor) == 91 and len(like) == 81 else range(1, len(tensor))
        return tensor[[*columns, 0]]
    if name.startswith("roi_head.stage.box_delta"):
        if len(tensor) % 4:
            return tensor
        boxes = tensor.unflatten(0, (-1, 4))
        columns = COCO_80 if len(boxes) == 91 and len(like) == 320 else range(1, len(boxes))
        return boxes[list(columns)].flatten(0, 1)
    if name.startswith(MASKS):
        return tensor[list(COCO_80 if len(tensor) == 91 and len(like) == 80 else range(1, len(tensor)))]
    return tensor


def _background_first(name: str, tensor: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Move the background to the front; its deltas and its mask are 0."""
    if name.startswith("roi_head.stage.class_score"):
        return tensor.roll(1, dims=0)
    if name.startswith("roi_head.stage.box_delta"):
        if len(tensor) != 4 * (len(state["roi_head.stage.class_score.bias"]) - 1):
            raise CheckpointError("torchvision does not have this model: its deltas are class-agnostic")
        return torch.cat([torch.zeros_like(tensor[:4]), tensor])
    if name.startswith(MASKS):
        if len(tensor) != len(state["roi_head.stage.class_score.bias"]) - 1:
            raise CheckpointError("torchvision does not have this model: its masks are class-agnostic")
        return torch.cat([torch.zeros_like(tensor[:1]), tensor])
    return tensor


TORCHVISION = Framework(
    name="torchvision",
    marker=r"backbone\.body\.",
    rows=ROWS + ROWS_2019 + KEYPOINTS,
    variants=[{"roi_head.stage.box_head.convs.": CONV_FC, "roi_head.stage.box_head.": TWO_FC}],
    import_layout=_background_last,
    export_layout=_background_first,
)
