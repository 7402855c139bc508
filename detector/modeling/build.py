"""A configuration becomes a detector: the constructor tree. What can be built is in parts.py, data in data/dataset.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detector.config import check_call, check_keys, parameters_of, read_config
from detector.data.dataset import data_settings
from detector.errors import ConfigError
from detector.modeling.parts import DEFAULT_TYPES, check_part, model_calls
from detector.modeling.precomputed import Precomputed
from detector.modeling.rcnn import GeneralizedRCNN
from detector.recipe import Recipe


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The checked configuration of a YAML file with `key.path=value` overrides.

    Raises ConfigError with file and dotted path for whatever does not fit the constructors' signatures.
    """
    config = read_config(path, overrides, DEFAULT_TYPES)
    with in_file(path):
        check_config(config)
    return config


@contextmanager
def in_file(source: str | Path | None) -> Iterator[None]:
    """What is wrong with a configuration is said with the name of its file, where that is known."""
    try:
        yield
    except ConfigError as error:
        raise (ConfigError(f"{source}: {error}") if source else error) from error


def check_config(config: Mapping[str, Any], *, trust: bool = True) -> None:
    """Compare every section with the signature that it will call. `trust` follows dotted paths of own parts."""
    check_keys(config, ("model", "data", "train"), "configuration")
    rpn, _ = model_calls(config.get("model", {}), trust=trust)["rpn"]
    if "data" in config:
        data_settings(config["data"], trust=trust).check_proposals(wanted=rpn is Precomputed)
    if "train" in config:
        check_call(Recipe, config["train"], "train")
        Recipe(**config["train"])  # its values, too, are checked before anything starts


def build_detector(
    config: Mapping[str, Any], *, trust: bool = True, source: str | Path | None = None
) -> GeneralizedRCNN:
    """The detector of a configuration, channels-last, with fresh weights (or the backbone's).

    Raises ConfigError, with the name of the file `source` if it is given, where parts do not fit each other, or where
    `model.num_classes` is not known.
    """
    with in_file(source):
        return _tree(config.get("model", {}), trust).to(memory_format=torch.channels_last)


def _tree(model: Mapping[str, Any], trust: bool) -> GeneralizedRCNN:
    """Each constructor is given what its signature names of the parts before it.

    `new_backbone` and `new_box_head` make another one, for a pyramid or a head that has several.
    """
    calls = model_calls(model, trust=trust)
    if model.get("num_classes") is None:
        raise ConfigError("model.num_classes: not given, and there are no training annotations to count them in")

    def wants(key: str, argument: str) -> bool:
        return argument in parameters_of(calls[key][0])[0]

    def make(key: str, **supplied: Any) -> Any:
        constructor, arguments = calls[key]
        supplied = {name: value for name, value in supplied.items() if wants(key, name)}
        try:
            part = constructor(**supplied, **arguments)
        except (ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError) as error:  # RuntimeError: torch's
            raise ConfigError(f"model.{key} does not fit: {error}") from error
        check_part(part, key)
        return part

    backbone = make("backbone")
    neck = make("neck", channels=backbone.channels, strides=backbone.strides)
    pyramid = make("pyramid", backbone=backbone, neck=neck, new_backbone=lambda: make("backbone"))
    anchors = make("rpn.anchors", strides=pyramid.strides) if wants("rpn", "anchors") else None
    rpn = make("rpn", channels=pyramid.channels, anchors=anchors)
    maps = dict(channels=pyramid.channels, strides=pyramid.strides)
    pool = make("roi_head.pool", **maps) if wants("roi_head", "pool") else None
    if pool is not None and pool.branches > 1 and not wants("roi_head.box_head", "branches"):
        raise ConfigError(f"model.roi_head.pool: gives {pool.branches} maps a region, its box_head takes one")

    def new_box_head() -> nn.Module:
        region = dict(channels=pool.channels, size=pool.size, branches=pool.branches)
        return make("roi_head.box_head", **region, backbone=backbone)

    box_head = new_box_head() if wants("roi_head", "box_head") else None
    roi_head = make(
        "roi_head", pool=pool, box_head=box_head, new_box_head=new_box_head, num_classes=model["num_classes"],
        raw_strides=getattr(pyramid, "raw_strides", None),
    )  # fmt: skip
    return GeneralizedRCNN(make("pixels"), pyramid, rpn, roi_head)
