"""The names of MMDetection's checkpoints (2.0 and later). Classes (background last) and deltas lie as here."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from detector.interop.names import Row, translate

BACKBONE: list[Row] = [("backbone.{}", "pyramid.backbone.{}")]
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
RPN = [
    ("rpn_head.rpn_conv.{}", "rpn.conv.0.{}"),
    ("rpn_head.rpn_cls.{}", "rpn.objectness.{}"),
    ("rpn_head.rpn_reg.{}", "rpn.deltas.{}"),
]
BOX_HEAD = [
    ("roi_head.bbox_head.shared_fcs.0.{}", "roi_head.box_head.fc1.{}"),
    ("roi_head.bbox_head.shared_fcs.1.{}", "roi_head.box_head.fc2.{}"),
    ("roi_head.bbox_head.fc_cls.{}", "roi_head.class_score.{}"),
    ("roi_head.bbox_head.fc_reg.{}", "roi_head.box_delta.{}"),
]
# a row counts only where the model has the name; PAFPN's come first, whose `output` is another than FPN's
NAMES = BACKBONE + PAFPN + FPN + RPN + BOX_HEAD


def from_mmdetection(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An MMDetection state dict under our names, for a model whose state dict is `like`.

    Raises CheckpointError that lists every key which is left over, missing, or of another shape.
    """
    return translate(state, like, NAMES, "not an MMDetection checkpoint of this model")
