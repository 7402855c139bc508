"""The constructor tree: a checked `model` section becomes a detector."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from detector.errors import ConfigError
from detector.modeling.parts import PARTS, ModelConfig
from detector.modeling.rcnn import GeneralizedRCNN
from detector.modeling.roi_heads.keypoint_head import KeypointBranch
from detector.modeling.roi_heads.mask_branch import MaskBranch
from detector.modeling.roi_heads.mask_scoring import MaskScoringBranch
from detector.modeling.roi_heads.point_rend import PointRendBranch
from detector.protocols import check_part
from detector.schema.signatures import parameters_of


def build_model(config: ModelConfig) -> GeneralizedRCNN:
    """Each constructor is given what its signature names of the parts before it.

    `new_backbone`, `new_box_head` and `new_mask` make another one, for a pyramid or a head that has several. Raises
    ConfigError with the dotted path where parts do not fit each other, or where the number of classes is not known.
    """
    if config.num_classes is None:
        raise ConfigError("model.num_classes: not given, and there are no training annotations to count them in")
    tree = _Tree(config)
    backbone = tree.make("backbone")
    neck = tree.make("neck", channels=backbone.channels, strides=backbone.strides)
    pyramid = tree.make("pyramid", backbone=backbone, neck=neck, new_backbone=tree.again("backbone"))
    anchors = tree.make("rpn.anchors", strides=pyramid.strides) if tree.wants("rpn", "anchors") else None
    rpn = tree.make("rpn", channels=pyramid.channels, anchors=anchors)
    maps = dict(channels=pyramid.channels, strides=pyramid.strides)
    pool = tree.make("roi_head.pool", **maps) if tree.wants("roi_head", "pool") else None
    if pool is not None and pool.branches > 1 and not tree.wants("roi_head.box_head", "branches"):
        raise ConfigError(f"model.roi_head.pool: gives {pool.branches} maps a region, its box_head takes one")
    region = {} if pool is None else dict(channels=pool.channels, size=pool.size, branches=pool.branches)
    new_box_head = tree.again("roi_head.box_head", **region, backbone=backbone)
    box_head = new_box_head() if tree.wants("roi_head", "box_head") else None
    roi_head = tree.make(
        "roi_head", pool=pool, box_head=box_head, new_box_head=new_box_head, num_classes=config.num_classes,
        lateral_strides=getattr(pyramid, "lateral_strides", None), **_branches(tree, config.num_classes, box_head, maps),
    )  # fmt: skip
    return GeneralizedRCNN(tree.make("preprocess"), pyramid, rpn, roi_head, target_fields=config.target_fields)


def _branches(tree: _Tree, num_classes: int, box_head: Any, maps: dict[str, Any]) -> dict[str, Any]:
    """What a second stage has beside its box head, where the configuration has it; by the names of its arguments."""
    made: dict[str, Any] = {}
    if "roi_head.mask_head" in tree.calls:
        made["new_mask"] = partial(_make_mask, tree, num_classes, box_head, **maps)
        if tree.wants("roi_head", "mask"):
            made["mask"] = made["new_mask"]()
    if "roi_head.semantic_head" in tree.calls:
        made["semantic_head"] = tree.make("roi_head.semantic_head", **maps)
    if "roi_head.keypoint_head" in tree.calls:
        pool = tree.make("roi_head.keypoint_pool", **maps)
        if pool.branches > 1:
            raise ConfigError(f"model.roi_head.keypoint_pool: gives {pool.branches} maps a region, its head takes one")
        made["keypoint"] = KeypointBranch(pool, tree.make("roi_head.keypoint_head", channels=pool.channels))
    return made


def _make_mask(tree: _Tree, num_classes: int, box_head: Any, **maps: Any) -> MaskBranch:
    """The mask branch, with a pool of its own or for the maps that the box head makes (C4)."""
    if "roi_head.mask_pool" not in tree.calls:
        region = dict(channels=box_head.width, size=box_head.map_size, branches=1)
        return MaskBranch(None, tree.make("roi_head.mask_head", **region, num_classes=num_classes))
    pool = tree.make("roi_head.mask_pool", **maps)
    if pool.branches > 1 and not tree.wants("roi_head.mask_head", "branches"):
        raise ConfigError(f"model.roi_head.mask_pool: gives {pool.branches} maps a region, its mask_head takes one")
    region = dict(channels=pool.channels, size=pool.size, branches=pool.branches)
    head = tree.make("roi_head.mask_head", **region, num_classes=num_classes)
    if "roi_head.point_head" in tree.calls:
        point_head = tree.make("roi_head.point_head", channels=maps["channels"][0], num_classes=num_classes)
        return PointRendBranch(pool, head, point_head, maps["strides"][0])
    if "roi_head.mask_iou_head" in tree.calls:
        return MaskScoringBranch(pool, head, tree.make("roi_head.mask_iou_head", **region, num_classes=num_classes))
    return MaskBranch(pool, head)


class _Tree:
    """The calls of a model, and how one of them is made with what the program supplies."""

    def __init__(self, config: ModelConfig):
        self.calls = config.calls

    def wants(self, key: str, argument: str) -> bool:
        """Whether the constructor of a part takes this argument."""
        return argument in parameters_of(self.calls[key].constructor)

    def make(self, key: str, **supplied: Any) -> Any:
        """A part. Raises ConfigError where it does not fit, or lacks what the others read of it."""
        constructor, arguments = self.calls[key]
        supplied = {name: value for name, value in supplied.items() if self.wants(key, name)}
        try:
            part = constructor(**supplied, **arguments)
        except (ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError) as error:  # RuntimeError: torch's
            raise ConfigError(f"model.{key} does not fit: {error}") from error
        slot = PARTS[key]
        if slot.is_module and not isinstance(part, nn.Module):
            name = type(part).__name__
            raise ConfigError(f"model.{key}: {name} must be a torch.nn.Module, so that its weights are found")
        check_part(part, slot.protocol, f"model.{key}")
        return part

    def again(self, key: str, **supplied: Any) -> Any:
        """A function that makes such a part each time it is called."""

        def new() -> Any:
            return self.make(key, **supplied)

        return new
