"""A configuration, parsed once: its sections are already the objects that they describe."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from detector.config.inherit import Reader, Types
from detector.data.settings import DataSettings, parse_data
from detector.errors import ConfigError
from detector.modeling.build import build_model
from detector.modeling.parts import DEFAULT_TYPES, ModelConfig, options_of, parse_model
from detector.modeling.rcnn import GeneralizedRCNN
from detector.recipe import Recipe, Scoring
from detector.renames import rename_config
from detector.schema.signatures import check_keys, construct

log = logging.getLogger("detector")


@dataclass(frozen=True)
class Config:
    """A detector, its data, its training and its scoring."""

    model: ModelConfig
    """Constructors with their checked arguments."""
    data: DataSettings | None
    """None where the configuration has no such section."""
    train: Recipe
    """How it is trained."""
    evaluate: Scoring
    """How it is scored beside COCO's standard metrics."""
    raw: dict[str, Any]
    """The plain values that it was parsed from, with today's names, as checkpoints and config.yaml hold them."""
    source: str | None = None
    """The file that it is from, for messages."""

    def needed_data(self) -> DataSettings:
        """The data section. Raises ConfigError if there is none."""
        if self.data is None:
            file = f"{self.source}: " if self.source else ""
            raise ConfigError(
                f"{file}data: the configuration has no such section; name an image folder and an annotation file"
            )
        return self.data

    def with_num_classes(self, count: int) -> Config:
        """The same for that many classes."""
        raw = copy.deepcopy(self.raw)
        raw.setdefault("model", {})["num_classes"] = count
        return replace(self, model=replace(self.model, num_classes=count), raw=raw)


def load_config(path: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """The checked configuration of a YAML file with `key.path=value` overrides; `detector://NAME` comes with the package.

    `path` may also be the content of such a file, whose `_base_` is then relative to the working folder. Raises ConfigError
    with file and dotted path for whatever does not fit the constructors' signatures.
    """
    reader = config_reader()
    source = None if isinstance(path, Mapping) else path
    raw = reader.read_content(path, overrides) if isinstance(path, Mapping) else reader.read(path, overrides)
    for line in reader.notes:
        log.info("%s", line)
    return parse_config(raw, trust=True, source=source)


def config_reader() -> Reader:
    """A reader that knows the types and the renamed keys of this project's configurations."""
    return Reader(Types(DEFAULT_TYPES, options_of), rename_config)


def parse_config(
    raw: Mapping[str, Any], overrides: Sequence[str] = (), *, trust: bool, source: str | Path | None = None
) -> Config:
    """The configuration of plain values, for instance those in a checkpoint.

    `trust` follows dotted paths of the user's own classes, which then run. Raises ConfigError, with the name `source` where it
    is given, for whatever does not fit.
    """
    with in_file(source):
        raw = rename_config(raw) if isinstance(raw, Mapping) else raw
        check_keys(raw, ("model", "data", "train", "evaluate"), "configuration")
        reader = config_reader()
        raw = reader.override(dict(raw), overrides)
        for line in reader.notes:
            log.info("%s", line)
        model = parse_model(raw.get("model", {}), trust=trust)
        data = parse_data(raw["data"], trust=trust) if "data" in raw else None
        if data is not None:
            data.check_proposals(needed=model.needs_proposals)
            data.check_semantic(needed="semantic" in model.target_fields)
        train = construct(Recipe, raw.get("train", {}), "train")
        evaluate = construct(Scoring, raw.get("evaluate", {}), "evaluate")
    return Config(model, data, train, evaluate, raw, None if source is None else str(source))


@contextmanager
def in_file(source: str | Path | None) -> Iterator[None]:
    """Within this context a ConfigError begins with the name of the file, where that is known."""
    try:
        yield
    except ConfigError as error:
        if not source:
            raise
        raise ConfigError(f"{source}: {error}") from error


def build_detector(config: Config, *, pretrained: bool = True) -> GeneralizedRCNN:
    """The detector of a configuration, channels-last; without `pretrained`, other weights will fill its backbone.

    Raises ConfigError, with the name of the configuration's file, where parts do not fit each other, or where
    `model.num_classes` is not known.
    """
    model = config.model if pretrained else config.model.without_pretrained()
    with in_file(config.source):
        return build_model(model).to(memory_format=torch.channels_last)
