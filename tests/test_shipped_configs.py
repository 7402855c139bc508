"""The files of configs/: each one loads and builds, and together they show every option."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import pytest
import torch

from detector.config.config import build_detector, load_config, parse_config
from detector.config.describe import DEFAULT, EffectiveConfig
from detector.config.inherit import shipped_configs
from detector.config.keys import Key, KeySection, key_table
from detector.errors import ConfigError

FILES = sorted(shipped_configs().rglob("*.yaml"))
VARIANTS = shipped_configs() / "variants"


@pytest.fixture(scope="module")
def effective() -> list[EffectiveConfig]:
    return [EffectiveConfig(path) for path in FILES]


def option(section: KeySection, key: Key) -> tuple[str | None, ...]:
    """What makes a key one option: a group of options is the same everywhere, an inherited option in all types."""
    place = "" if "." in key.name and section.path.startswith("model") else section.path
    return place, key.name, key.sentence or section.type


def test_every_file_loads_and_builds(effective: list[EffectiveConfig]):
    for one in effective:
        config = one.config if one.config.model.num_classes else one.config.with_num_classes(80)
        with torch.device("meta"):
            model = build_detector(config, pretrained=False)
        assert sum(p.numel() for p in model.parameters()) > 0, config.source


def test_every_option_is_shown_by_some_file(effective: list[EffectiveConfig]):
    shown = set()
    for one in effective:
        shown |= {
            option(section, key)
            for section in one.sections
            for key in section.keys
            if one.settings[f"{section.path}.{key.name}"].origin != DEFAULT
        }
    transforms = [t for one in effective for t in (one.config.raw.get("data") or {}).get("transforms", [])]
    given = {(t["type"], name) for t in transforms if isinstance(t, dict) for name in t}
    missing = []
    for section in key_table():
        for key in section.keys:
            is_given = (
                (section.type, key.name) in given
                if section.path == "data.transforms[]"
                else option(section, key) in shown
            )
            missing += [] if is_given else [f"{section.title} {key.name}"]
    assert missing == []


def test_every_type_is_shown_by_some_file(effective: list[EffectiveConfig]):
    shown = {(section.path, section.type) for one in effective for section in one.sections}
    transforms = [t for one in effective for t in (one.config.raw.get("data") or {}).get("transforms", [])]
    shown |= {("data.transforms[]", t if isinstance(t, str) else t["type"]) for t in transforms}
    assert [section.title for section in key_table() if (section.path, section.type) not in shown] == []


@pytest.mark.parametrize("path", sorted(VARIANTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_variant_says_whose_it_is_and_differs_from_its_base(path: Path):
    text = path.read_text()
    base = text.partition("_base_: ")[2].splitlines()[0]
    assert text.startswith("# ") and load_config(path).raw != load_config(path.parent / base).raw


def test_a_shipped_file_is_a_base_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("_base_: detector://faster_rcnn_r50_fpn_1x_coco.yaml\nmodel: {neck: panet}\n")
    config = load_config("own.yaml")
    assert config.model.calls["neck"].constructor.__name__ == "PANet" and config.train.epochs == 12
    assert load_config("detector://variants/bfp_conv.yaml").raw == load_config(VARIANTS / "bfp_conv.yaml").raw
    origin = EffectiveConfig("own.yaml").settings["train.epochs"].origin
    assert origin == f"detector://_base_{os.sep}schedule_1x.yaml"


def section_of(section: KeySection, key: str, value: object) -> dict:
    """A configuration that sets one key of a section of one type."""
    *path, name = [*section.path.removesuffix("[]").split("."), *key.split(".")]
    own = {"type": section.type} if section.type else {}
    nested: object = value
    depth = len(section.path.split("."))
    for i, part in reversed(list(enumerate([*path, name]))):
        nested = {part: nested} | (own if i == depth else {})
    if section.path.endswith("[]"):
        nested["data"]["transforms"] = [nested["data"]["transforms"]]
    return nested


def test_a_number_out_of_range_is_found_at_load_in_every_option():
    split = {"images": "a", "annotations": "b"}
    tried = 0
    for section in key_table():
        for key in section.keys:
            if "number" not in key.kind or "each" in key.kind:
                continue
            for value in (math.nan, math.inf, -1e30, 1e30, -(10**30), 10**30):
                raw = section_of(section, key.name, value)
                if "data" in raw:
                    raw["data"] = {"root": ".", "train": split, "val": split} | raw["data"]
                with pytest.raises(ConfigError, match=re.escape(key.name)):
                    print(section.title, key.name, value, parse_config(raw, trust=False).raw)
                tried += 1
    assert tried > 600


def test_every_option_has_a_sentence():
    for section in key_table():
        for key in section.keys:
            assert key.sentence.endswith(".") and len(key.sentence) > 9, f"{section.title} {key.name}: {key.sentence!r}"
