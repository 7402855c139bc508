"""Options: their ranges, what a value becomes, and the files of configs/, which all load and together show every option."""

import dataclasses
import inspect
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import torch
from helpers.tiny import CONFIG

from detector.config.config import Config, build_detector, load_config, parse_config
from detector.config.describe import DEFAULT, EffectiveConfig
from detector.config.inherit import merge, shipped_configs
from detector.config.keys import Key, KeySection, key_table
from detector.data.settings import TRANSFORMS, DataSettings
from detector.errors import ConfigError
from detector.modeling.anchors import AnchorGenerator
from detector.modeling.boxes import BoxCoder
from detector.modeling.matching import Matching
from detector.modeling.parts import PARTS
from detector.modeling.roi_heads.selection import DetectionSelection
from detector.recipe import Recipe
from detector.schema.ranges import Range
from detector.schema.signatures import convert, describe, parameters_of


def test_a_range_says_which_ends_it_has_and_no_range_holds_nan():
    for allowed, inside, outside, text in (
        (Range(0, 1), (0, 0.5, 1), (-1e-9, 1.1), "in 0..1"),
        (Range(0, 1, above=True), (1e-9, 1), (0, 2), "above 0 and at most 1"),
        (Range(0, 1, below=True), (0, 0.9), (1, -1), "at least 0 and below 1"),
        (Range(0, 1, above=True, below=True), (0.5,), (0, 1), "above 0 and below 1"),
    ):
        assert all(x in allowed for x in inside) and str(allowed) == text
        assert not any(x in allowed for x in (*outside, math.nan, math.inf, -math.inf))
    assert describe(Annotated[int, Range(1, 9)] | None) == "a whole number in 1..9 or null"


def test_a_section_becomes_the_object_that_its_annotation_names():
    rpn = {"matching": {"pos_iou": 0.8}, "selection": {"pre_nms": [5, 6]}}
    arguments = parse_config(merge(CONFIG, {"model": {"rpn": rpn}}), trust=False).model.calls["rpn"].arguments
    # what a section leaves out is as in the RPN's own default
    assert arguments["matching"] == Matching(pos_iou=0.8, neg_iou=0.3, low_quality="keep_best_gt")
    assert arguments["selection"].pre_nms == (5, 6) and "sampling" not in arguments
    assert convert([1, [2, 3]], tuple[int, tuple[int, int]]) == (1, (2, 3))


def test_a_constructor_names_the_option_in_pythons_terms():
    for make, message in (
        (lambda: Matching(pos_iou=2), r"^Matching: pos_iou: expected a number in 0.001..1, got 2$"),
        (lambda: dataclasses.replace(Matching(), neg_iou=math.nan), r"^Matching: neg_iou: expected"),
        (lambda: Matching(pos_iou=0.5, neg_iou=0.6), r"^neg_iou: must not exceed pos_iou"),
        (lambda: BoxCoder((1, 1, 1)), r"^BoxCoder: weights: expected a list of 4, each a number"),
        (
            lambda: DetectionSelection(max_detections=1.5),
            r"^DetectionSelection: max_detections: expected a whole number",
        ),
        (
            lambda: AnchorGenerator([4], sizes=[[0]]),
            r"^AnchorGenerator: sizes: expected a list, each a list, each a number",
        ),
    ):
        with pytest.raises(ValueError, match=message) as error:
            make()
        assert not isinstance(error.value, ConfigError)


def unranged(hint: Any) -> list[Any]:
    """The numbers in an annotation that may be anything."""
    if get_origin(hint) is Annotated:
        return [] if any(isinstance(extra, Range) for extra in get_args(hint)) else unranged(get_args(hint)[0])
    if dataclasses.is_dataclass(hint):
        return [name for name, p in parameters_of(hint).items() if unranged(p.annotation)]
    return [hint] * (hint in (int, float)) + [
        x for a in get_args(hint) if get_origin(hint) is not Literal for x in unranged(a)
    ]


def test_every_option_has_a_sentence_and_every_number_states_its_range():
    parts: list[tuple[Callable, Sequence[str]]] = [(kind, ()) for kind in (DataSettings, Recipe, *TRANSFORMS.values())]
    parts += [(kind, slot.supplied) for slot in PARTS.values() for kind in slot.types.values()]
    arguments = [(kind, p) for kind, given in parts for name, p in parameters_of(kind).items() if name not in given]
    assert len(arguments) > 150 and [(kind, p) for kind, p in arguments if unranged(p.annotation)] == []
    for section in key_table():
        for key in section.keys:
            assert key.sentence.endswith(".") and len(key.sentence) > 9, f"{section.title} {key.name}: {key.sentence!r}"


def test_a_number_out_of_range_in_a_list_is_found_at_load():
    nan, ones = math.nan, [1, 1, 1]
    cascade: dict[str, Any] = {"type": "cascade"}
    for path, value in (
        ("rpn.anchors.sizes", [[nan]] * 5), ("rpn.anchors.ratios", [0]), ("rpn.selection.pre_nms", [-1, 10]),
        ("rpn.selection.post_nms", [10, 0]), ("roi_head.coder.weights", [0, 0, 0, 0]), ("preprocess.std", [1, 1, 0]),
        ("preprocess.mean", [nan, 1, 1]), ("preprocess.mean", [1, 1, 10**10]),
        ("roi_head", cascade | {"ious": [0.5, 0, 0.7]}), ("roi_head", cascade | {"stage_weights": [1, 1, -1]}),
        ("roi_head", cascade | {"box_weights": [[*ones, 0]] * 3}), ("rpn", {"type": "precomputed", "keep": [1, 0]}),
    ):  # fmt: skip
        section: Any = value
        for key in reversed(path.split(".")):
            section = {key: section}
        name = f"{path}.{list(value)[-1]}" if isinstance(value, dict) else path
        with pytest.raises(ConfigError, match=rf"^model\.{name}: expected a list"):
            parse_config(merge(CONFIG, {"model": section}), trust=False)


def lies(value: Any, hint: Any, where: str) -> list[str]:
    """Where a value, or a field of it, is no instance of its annotation; a whole number is a number, too."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return lies(value, args[0], where)
    if origin in (Union, UnionType):
        found = [lies(value, arg, where) for arg in args]
        return [] if [] in found else found[0]
    if origin is Literal:
        return [] if value in args else [where]
    if hint is not Any and not isinstance(value, (int, float) if hint is float else origin or hint):
        return [f"{where}: {value!r} is no {hint}"]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value), include_extras=True)
        return [
            lie
            for f in dataclasses.fields(value)
            for lie in lies(getattr(value, f.name), hints[f.name], f"{where}.{f.name}")
        ]
    if origin in (list, tuple) or (inspect.isclass(origin) and issubclass(origin, Sequence)):
        each = args if origin is tuple and ... not in args else args[:1] * len(value)
        return [f"{where}: length"] * (len(each) != len(value)) + [
            lie for i, (x, arg) in enumerate(zip(value, each)) for lie in lies(x, arg, f"{where}[{i}]")
        ]
    return []


FILES = sorted(shipped_configs().rglob("*.yaml"))
VARIANTS = shipped_configs() / "variants"


@pytest.fixture(scope="module")
def effective() -> list[EffectiveConfig]:
    return [EffectiveConfig(path) for path in FILES]


def test_no_annotation_of_a_loaded_configuration_lies(effective: list[EffectiveConfig]):
    for config in (one.config for one in effective):
        assert lies(config, Config, "config") == [], config.source
        for key, (constructor, arguments) in config.model.calls.items():
            hints = {name: p.annotation for name, p in parameters_of(constructor).items()}
            found = [x for name, value in arguments.items() for x in lies(value, hints[name], f"{key}.{name}")]
            assert found == [], config.source


def option(section: KeySection, key: Key) -> tuple[str | None, ...]:
    """What makes a key one option: a group of options is the same everywhere, an inherited option in all types.

    The pools of masks and keypoints have the options of the box head's.
    """
    place = (
        ""
        if "." in key.name and section.path.startswith("model")
        else section.path.replace("mask_pool", "pool").replace("keypoint_pool", "pool")
    )
    return place, key.name, key.sentence or section.type


@pytest.mark.slow
def test_every_file_loads_and_builds(effective: list[EffectiveConfig]):
    models = {repr(one.config.raw.get("model")): one.config for one in effective}
    for config in models.values():
        config = config if config.model.num_classes else config.with_num_classes(80)
        with torch.device("meta"):
            model = build_detector(config, pretrained=False)
        assert sum(p.numel() for p in model.parameters()) > 0, config.source


def test_every_option_and_every_type_is_shown_by_some_file(effective: list[EffectiveConfig]):
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
            in_a_transform = section.path == "data.transforms[]" and (section.type, key.name) in given
            if not in_a_transform and (section.path == "data.transforms[]" or option(section, key) not in shown):
                missing.append(f"{section.title} {key.name}")
    assert missing == []
    shown = {(section.path, section.type) for one in effective for section in one.sections}
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
                if section.path.endswith(("mask_pool", "keypoint_pool")):  # which there is beside its head alone
                    raw["model"]["roi_head"][section.path.rpartition(".")[2].replace("pool", "head")] = {}
                with pytest.raises(ConfigError, match=re.escape(key.name)):
                    print(section.title, key.name, value, parse_config(raw, trust=False).raw)
                tried += 1
    assert tried > 600
