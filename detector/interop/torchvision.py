"""Checkpoints of torchvision's fasterrcnn_resnet50_fpn (v1, v2), in and out: names, and the order of classes.

torchvision puts the background first and gives it four deltas that nothing reads; here it comes last and has none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_Weights,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
)  # fmt: skip

from detector.interop.names import translate

# COCO's 80 categories within torchvision's columns 1..90
COCO_80 = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]

NAMES = [
    ("backbone.body.{}", "pyramid.backbone.{}"),
    ("backbone.fpn.inner_blocks.#.0.{}", "pyramid.neck.lateral.#.conv.{}"),
    ("backbone.fpn.inner_blocks.#.1.{}", "pyramid.neck.lateral.#.norm.{}"),
    ("backbone.fpn.layer_blocks.#.0.{}", "pyramid.neck.output.#.conv.{}"),
    ("backbone.fpn.layer_blocks.#.1.{}", "pyramid.neck.output.#.norm.{}"),
    ("rpn.head.conv.#.0.{}", "rpn.conv.#.{}"),
    ("rpn.head.cls_logits.{}", "rpn.objectness.{}"),
    ("rpn.head.bbox_pred.{}", "rpn.deltas.{}"),
    ("roi_heads.box_head.fc6.{}", "roi_head.box_head.fc1.{}"),
    ("roi_heads.box_head.fc7.{}", "roi_head.box_head.fc2.{}"),
    ("roi_heads.box_head.5.{}", "roi_head.box_head.fc1.{}"),  # v2: four convolutions, a flatten, then this
    ("roi_heads.box_head.#.0.{}", "roi_head.box_head.convs.#.conv.{}"),
    ("roi_heads.box_head.#.1.{}", "roi_head.box_head.convs.#.norm.{}"),
    ("roi_heads.box_predictor.cls_score.{}", "roi_head.class_score.{}"),
    ("roi_heads.box_predictor.bbox_pred.{}", "roi_head.box_delta.{}"),
]
# The published v1 file still has the names of 2019, without the levels of later containers.
OLD_NAMES = [
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)", r"\1.0.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
]


def from_torchvision(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A torchvision state dict under our names, for a model whose state dict is `like`.

    A model of 80 classes takes the 80 real categories of torchvision's 91 columns. Raises CheckpointError that lists every
    key which is left over, missing, or of another shape.
    """
    what = "not a torchvision checkpoint of this model"
    out = translate({_new_name(key): t for key, t in state.items()}, like, NAMES, what, change=_classes_in)
    return out | {k: v for k, v in like.items() if k not in out}  # a frozen norm does not count


def _new_name(key: str) -> str:
    for pattern, new in OLD_NAMES:
        key = re.sub(f"^{pattern}$", new, key)
    return key


def to_torchvision(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under torchvision's names, for a torchvision model whose state dict is `like`.

    Raises CheckpointError for a model that torchvision does not have. The counters of batch norms that are frozen here are
    left out; torchvision's norms start them at 0.
    """
    return translate(state, like, NAMES, "not a model that torchvision has", back=True, change=_classes_out)


def torchvision_like(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names and shapes (no data) of the torchvision model, v1 or v2, that our `state` should fit."""
    make = fasterrcnn_resnet50_fpn_v2 if "roi_head.box_head.convs.0.conv.weight" in state else fasterrcnn_resnet50_fpn
    with torch.device("meta"):
        model = make(weights=None, weights_backbone=None, num_classes=len(state["roi_head.class_score.bias"]))
    return model.state_dict()


def class_names_and_ids(columns: int, num_classes: int) -> tuple[list[str], list[int]]:
    """Class names and category ids of a model converted from `columns` columns, the background's included.

    torchvision's own 91 are COCO's ids, ten of which were never used; other models carry no names.
    """
    if columns != 91:
        return [f"class {i}" for i in range(1, num_classes + 1)], list(range(1, num_classes + 1))
    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    ids = COCO_80 if num_classes == 80 else list(range(1, 91))
    return [names[i] if i in COCO_80 else f"unused {i}" for i in ids], ids


def _classes_in(name: str, tensor: Tensor, like: Tensor) -> Tensor:
    """Background from first to last; its deltas go; 91 columns shrink to 81 where the model has 80 classes."""
    if name.startswith("roi_head.class_score"):
        columns = COCO_80 if len(tensor) == 91 and len(like) == 81 else range(1, len(tensor))
        return tensor[[*columns, 0]]
    if name.startswith("roi_head.box_delta"):
        if len(tensor) % 4:
            return tensor  # of another shape than any model's
        boxes = tensor.unflatten(0, (-1, 4))
        columns = COCO_80 if len(boxes) == 91 and len(like) == 320 else range(1, len(boxes))
        return boxes[list(columns)].flatten(0, 1)
    return tensor


def _classes_out(name: str, tensor: Tensor, _: Tensor) -> Tensor:
    if name.startswith("roi_heads.box_predictor.cls_score"):
        return tensor.roll(1, dims=0)
    if name.startswith("roi_heads.box_predictor.bbox_pred"):
        return torch.cat([torch.zeros_like(tensor[:4]), tensor])
    return tensor
