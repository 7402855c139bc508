"""Signatures as schemas: ranges, what a value becomes, and that a loaded configuration is what its annotations say."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from helpers.tiny import CONFIG

from detector.config.config import Config, load_config, parse_config
from detector.config.inherit import merge, shipped_configs
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


# --- every option


def unranged(hint: Any) -> list[Any]:
    """The numbers in an annotation that may be anything."""
    if get_origin(hint) is Annotated:
        return [] if any(isinstance(extra, Range) for extra in get_args(hint)) else unranged(get_args(hint)[0])
    if dataclasses.is_dataclass(hint):
        return [name for name, p in parameters_of(hint).items() if unranged(p.annotation)]
    return [hint] * (hint in (int, float)) + [
        x for a in get_args(hint) if get_origin(hint) is not Literal for x in unranged(a)
    ]


def test_every_number_of_every_option_states_its_range():
    parts: list[tuple[Callable, Sequence[str]]] = [
        (DataSettings, ()),
        (Recipe, ()),
        *((t, ()) for t in TRANSFORMS.values()),
    ]
    parts += [(kind, slot.supplied) for slot in PARTS.values() for kind in slot.types.values()]
    options = [
        (kind, name, p.annotation)
        for kind, given in parts
        for name, p in parameters_of(kind).items()
        if name not in given
    ]
    assert len(options) > 150 and [option for option in options if unranged(option[2])] == []


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


def test_no_annotation_of_a_loaded_configuration_lies():
    for path in shipped_configs().rglob("*.yaml"):
        config = load_config(path)
        assert lies(config, Config, "config") == [], path
        for key, (constructor, arguments) in config.model.calls.items():
            hints = {name: p.annotation for name, p in parameters_of(constructor).items()}
            assert [x for name, value in arguments.items() for x in lies(value, hints[name], f"{key}.{name}")] == [], (
                path
            )
