"""The only reader of configuration: names -> constructors. A new neck is a new file and one line below."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detector.backbones.resnet import ResNet
from detector.config import check_call, check_keys, parameters_of, read_config
from detector.data.coco import CocoDataset
from detector.data.settings import DataSettings
from detector.data.transforms import ColorJitter, Compose, HorizontalFlip, LargeScaleJitter, Resize, VerticalFlip
from detector.errors import ConfigError
from detector.geometry.anchors import AnchorGenerator
from detector.heads.adaptive_head import AdaptiveConvFC, AdaptiveTwoFC
from detector.heads.auxiliary import AuxiliaryRoIHead
from detector.heads.box_head import ConvFC, TwoFC
from detector.heads.cascade import Cascade
from detector.heads.pool import AllLevelPool, RoIPool
from detector.heads.precomputed import Precomputed
from detector.heads.proposals_only import ProposalsOnly
from detector.heads.res5 import Res5
from detector.heads.roi_head import RoIHead
from detector.heads.rpn import RPN
from detector.heads.soft_pool import SoftRoIPool
from detector.necks.ablations import BottomUp, Finest, Hierarchy, TopDown
from detector.necks.augfpn import AugFPN
from detector.necks.bfp import BFP
from detector.necks.bifpn import BiFPN
from detector.necks.fpn import FPN
from detector.necks.nas_fpn import NASFPN
from detector.necks.panet import PANet
from detector.necks.pyramid import Pyramid
from detector.necks.rfp import RecursivePyramid
from detector.necks.single import Single
from detector.pixels import Pixels
from detector.rcnn import GeneralizedRCNN
from detector.training.recipe import Recipe

BACKBONES = {"resnet": ResNet}
NECKS = {
    "fpn": FPN,
    "panet": PANet,
    "bifpn": BiFPN,
    "nas_fpn": NASFPN,
    "augfpn": AugFPN,
    "bfp": BFP,
    "single": Single,
    "bottom_up": BottomUp,
    "top_down": TopDown,
    "finest": Finest,
    "hierarchy": Hierarchy,
}
PYRAMIDS = {"plain": Pyramid, "recursive": RecursivePyramid}
RPNS = {"rpn": RPN, "precomputed": Precomputed}
POOLS = {"by_level": RoIPool, "all_levels": AllLevelPool, "soft": SoftRoIPool}
ROI_HEADS = {"standard": RoIHead, "cascade": Cascade, "auxiliary": AuxiliaryRoIHead, "none": ProposalsOnly}
BOX_HEADS = {
    "two_fc": TwoFC,
    "conv_fc": ConvFC,
    "adaptive_two_fc": AdaptiveTwoFC,
    "adaptive_conv_fc": AdaptiveConvFC,
    "res5": Res5,
}
DATASETS = {"coco": CocoDataset}
TRANSFORMS = {
    "horizontal_flip": HorizontalFlip,
    "vertical_flip": VerticalFlip,
    "color_jitter": ColorJitter,
    "large_scale_jitter": LargeScaleJitter,
}

Call = tuple[Callable, dict[str, Any]]  # a constructor and its keyword arguments


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The checked configuration of a YAML file with `key.path=value` overrides.

    Raises ConfigError with file and dotted path for whatever does not fit the constructors' signatures.
    """
    config = read_config(path, overrides)
    try:
        check_config(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return config


def check_config(config: Mapping[str, Any], *, trust: bool = True) -> None:
    """Compare every section with the signature that it will call. `trust` follows dotted paths of own parts."""
    check_keys(config, ("model", "data", "train"), "configuration")
    rpn, _ = model_calls(config.get("model", {}), trust=trust)["rpn"]
    if "data" in config:
        data_settings(config["data"], trust=trust).check_proposals(wanted=rpn is Precomputed)
    if "train" in config:
        check_call(Recipe, config["train"], "train")
        Recipe(**config["train"])  # its values, too, are checked before anything starts


def resolve(section: Any, table: Mapping[str, type], where: str, *, supplied: Sequence[str] = (), trust: bool) -> Call:
    """The constructor that a section's `type` names (the first of `table` by default) and its checked arguments.

    A text stands for a section with that type and nothing else: it replaces what a base says, whatever type that has.
    """
    section = {"type": section} if isinstance(section, str) else section
    check_keys(section, list(section) if isinstance(section, Mapping) else (), where)
    arguments = dict(section)
    constructor = named(arguments.pop("type", next(iter(table))), table, where, trust=trust)
    check_call(constructor, arguments, where, supplied)
    return constructor, arguments


def named(name: Any, table: Mapping[str, type], where: str, *, trust: bool) -> Callable:
    """What a `type` names: an entry of `table`, or with `trust` the dotted path of your own."""
    if isinstance(name, str) and name in table:
        return table[name]
    if isinstance(name, str) and "." in name:
        return _import(name, where, trust)
    raise ConfigError(f"{where}.type: {name!r} is none of {', '.join(table)}, nor the dotted path of your own")


def _import(path: str, where: str, trust: bool) -> Callable:
    if not trust:
        raise ConfigError(f"{where}.type: this checkpoint wants to run code of yours, {path}; say --trust to allow it")
    module, _, name = path.rpartition(".")
    try:
        part = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # the last two: a path with an empty part
        raise ConfigError(f"{where}.type: {path} cannot be imported ({error}); is it on PYTHONPATH?") from error
    if not callable(part):
        raise ConfigError(f"{where}.type: {path} is neither a class nor a function")
    return part


def model_calls(model: Any, *, trust: bool) -> dict[str, Call]:
    """Every part of a model with its checked arguments, nothing built yet."""
    check_keys(model, ("backbone", "neck", "pyramid", "rpn", "roi_head", "pixels", "num_classes"), "model")
    classes = model.get("num_classes")
    if classes is not None and (not isinstance(classes, int) or isinstance(classes, bool) or classes < 1):
        raise ConfigError(f"model.num_classes: expected a whole number above 0, got {classes!r}")
    rpn, anchors = _without(model.get("rpn", {}), "model.rpn", "anchors")
    roi_head, pool, box_head = _without(model.get("roi_head", {}), "model.roi_head", "pool", "box_head")

    def part(section, table, where, *supplied):
        return resolve(section, table, f"model.{where}", supplied=supplied, trust=trust)

    calls = {
        "pixels": part(model.get("pixels", {}), {"pixels": Pixels}, "pixels"),
        "backbone": part(model.get("backbone", {}), BACKBONES, "backbone"),
        "neck": part(model.get("neck", {}), NECKS, "neck", "channels", "strides"),
        "pyramid": part(model.get("pyramid", {}), PYRAMIDS, "pyramid", "backbone", "neck", "new_backbone"),
        "anchors": part(anchors, {"anchors": AnchorGenerator}, "rpn.anchors", "strides"),
        "rpn": part(rpn, RPNS, "rpn", "channels", "anchors"),
        "pool": part(pool, POOLS, "roi_head.pool", "channels", "strides"),
        "box_head": part(box_head, BOX_HEADS, "roi_head.box_head", "channels", "size", "branches", "backbone"),
        "roi_head": part(
            roi_head, ROI_HEADS, "roi_head", "pool", "box_head", "new_box_head", "num_classes", "raw_strides"
        ),
    }
    _check_read(calls, {"anchors": anchors, "pool": pool, "box_head": box_head})
    return calls


def _check_read(calls: dict[str, Call], nested: dict[str, Any]) -> None:
    """A section that nothing would read, and a detector that would learn nothing, are errors."""
    for name, owner in (("anchors", "rpn"), ("pool", "roi_head"), ("box_head", "roi_head")):
        if nested[name] and not {name, f"new_{name}"} & parameters_of(calls[owner][0])[0].keys():
            raise ConfigError(f"model.{owner}.{name}: this type of {owner} has none; remove the section")
    if calls["rpn"][0] is Precomputed and calls["roi_head"][0] is ProposalsOnly:
        raise ConfigError(
            "model: given proposals (rpn precomputed) and no second stage (roi_head none) leave nothing to learn"
        )


def _without(section: Any, where: str, *nested: str) -> list[Any]:
    """A section without its nested sections, then those ({} where left out)."""
    section = {"type": section} if isinstance(section, str) else section
    check_keys(section, list(section) if isinstance(section, Mapping) else (), where)
    return [{k: v for k, v in section.items() if k not in nested}] + [section.get(name, {}) for name in nested]


def build_detector(config: Mapping[str, Any], *, trust: bool = True) -> GeneralizedRCNN:
    """The constructor tree of a configuration, channels-last, with fresh weights (or the backbone's).

    Each constructor is given what its signature names of the parts before it: `new_backbone` and `new_box_head` make
    another one, for a pyramid or a head that has several.

    Raises ConfigError where parts do not fit each other, or where `model.num_classes` is not known.
    """
    model = config.get("model", {})
    calls = model_calls(model, trust=trust)
    if model.get("num_classes") is None:
        raise ConfigError("model.num_classes: not given, and there are no training annotations to count them in")

    def make(name: str, **supplied):
        constructor, arguments = calls[name]
        wanted, _ = parameters_of(constructor)
        try:
            return constructor(**{key: value for key, value in supplied.items() if key in wanted}, **arguments)
        except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:  # a width of -1 is a RuntimeError
            raise ConfigError(f"model: {name} does not fit: {error}") from error

    def wants(name: str, argument: str) -> bool:
        return argument in parameters_of(calls[name][0])[0]

    backbone = make("backbone")
    neck = make("neck", channels=backbone.channels, strides=backbone.strides)
    pyramid = make("pyramid", backbone=backbone, neck=neck, new_backbone=lambda: make("backbone"))
    anchors = make("anchors", strides=pyramid.strides) if wants("rpn", "anchors") else None
    rpn = make("rpn", channels=pyramid.channels, anchors=anchors)
    pool = make("pool", channels=pyramid.channels, strides=pyramid.strides) if wants("roi_head", "pool") else None
    if pool is not None and pool.branches > 1 and not wants("box_head", "branches"):
        raise ConfigError(f"model.roi_head.pool: gives {pool.branches} maps a region, its box_head takes one")

    def new_box_head() -> nn.Module:
        return make("box_head", channels=pool.channels, size=pool.size, branches=pool.branches, backbone=backbone)

    box_head = new_box_head() if wants("roi_head", "box_head") else None
    roi_head = make(
        "roi_head", pool=pool, box_head=box_head, new_box_head=new_box_head, num_classes=model["num_classes"],
        raw_strides=getattr(pyramid, "raw_strides", None),
    )  # fmt: skip
    detector = GeneralizedRCNN(make("pixels"), pyramid, rpn, roi_head)
    return detector.to(memory_format=torch.channels_last)


def data_settings(data: Any, *, trust: bool = True) -> DataSettings:
    """The checked `data` section."""
    check_call(DataSettings, data, "data")
    settings = DataSettings(**data)
    _check_dataset(named(settings.type, DATASETS, "data", trust=trust), settings)
    _transforms(settings, trust)
    return settings


def _check_dataset(make: Callable, settings: DataSettings) -> None:
    """A data set of the user's own must take what `build_dataset` will give it."""
    try:
        inspect.signature(make).bind("images", "annotations", **_dataset_options(settings, "train", None, None))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"data.type: {settings.type} cannot be called like CocoDataset ({error})") from error


def _dataset_options(
    settings: DataSettings, split: str, class_names: list[str] | None, transform: Compose | None
) -> dict[str, Any]:
    """What a data set is given beside its two paths."""
    options = {
        "classes": settings.classes,
        "class_names": class_names,
        "keep_empty": settings.keep_empty or split != "train",
        "max_pixels": settings.max_pixels,
        "transform": transform,
    }
    proposals = settings.split(split).get("proposals")
    return options if proposals is None else options | {"proposals": Path(settings.root) / proposals}


def build_dataset(
    config: Mapping[str, Any], split: str, *, class_names: list[str] | None = None, trust: bool = True
) -> CocoDataset:
    """A split of the `data` section; "train" comes with its transforms. `class_names` are those of the training split.

    A data set of your own (`type`) is called like CocoDataset and has its attributes.

    Raises ConfigError for a split that the configuration lacks, DataError for what is wrong with its files.
    """
    if "data" not in config:
        raise ConfigError("data: the configuration has no such section; name an image folder and an annotation file")
    settings = data_settings(config["data"], trust=trust)
    paths = [Path(settings.root) / settings.split(split)[key] for key in ("images", "annotations")]
    transform = training_transform(settings, trust=trust) if split == "train" else None
    make = named(settings.type, DATASETS, "data", trust=trust)
    return make(*paths, **_dataset_options(settings, split, class_names, transform))


def training_transform(settings: DataSettings, *, trust: bool = True) -> Compose:
    """Resize (unless large-scale jitter does), then `data.transforms` in order."""
    parts = _transforms(settings, trust)
    scaled = any(isinstance(part, LargeScaleJitter) for part in parts)  # a second resampling would only blur
    return Compose(parts if scaled else [Resize(**settings.resize), *parts])


def _transforms(settings: DataSettings, trust: bool) -> list[Callable]:
    parts = []
    for i, section in enumerate(settings.transforms):
        constructor, arguments = resolve(section, TRANSFORMS, f"data.transforms[{i}]", trust=trust)
        try:
            parts.append(constructor(**arguments))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"data.transforms[{i}]: {error}") from error
    return parts
