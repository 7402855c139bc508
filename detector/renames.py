"""Keys, values and tensors that version 0.1 named differently.

Every reader of configurations and checkpoints applies this table, so that files of 0.1 keep working.
"""

from __future__ import annotations

import logging
import re
import reprlib
from collections.abc import Mapping
from typing import Any, TypeVar

from detector.errors import ConfigError

log = logging.getLogger("detector")

Value = TypeVar("Value")

# a cascade still has this key, with a list for each stage; four numbers are renamed
PER_STAGE = "model.roi_head.box_weights"
# dotted path in 0.1 -> dotted path now
KEYS = {
    "model.pixels": "model.preprocess",
    **{f"model.rpn.{key}": f"model.rpn.selection.{key}" for key in ("pre_nms", "post_nms", "nms_iou", "min_size")},
    **{f"model.rpn.{key}": f"model.rpn.sampling.{key}" for key in ("batch_per_image", "positive_fraction")},
    **{f"model.rpn.{key}": f"model.rpn.matching.{key}" for key in ("pos_iou", "neg_iou")},
    **{f"model.rpn.{key}": f"model.rpn.loss.{key}" for key in ("beta", "objectness_weight", "box_weight")},
    "model.rpn.force_match": "model.rpn.matching.low_quality",
    "model.rpn.min_force_iou": "model.rpn.matching.min_pos_iou",
    "model.rpn.normaliser": "model.rpn.loss.normalizer",
    "model.rpn.clamp_both": "model.rpn.coder.clamp_both",
    "model.rpn.border": "model.rpn.allowed_border",
    **{f"model.roi_head.{key}": f"model.roi_head.sampling.{key}" for key in ("batch_per_image", "positive_fraction")},
    **{
        f"model.roi_head.{key}": f"model.roi_head.selection.{key}"
        for key in (
            "score_threshold", "nms", "nms_iou", "soft_min_score", "class_agnostic_nms", "max_detections", "min_size"
        )
    },
    **{f"model.roi_head.{key}": f"model.roi_head.loss.{key}" for key in ("box_loss", "beta", "class_weight", "box_weight")},
    "model.roi_head.pos_iou": "model.roi_head.matching.pos_iou",
    "model.roi_head.clamp_both": "model.roi_head.coder.clamp_both",
    PER_STAGE: "model.roi_head.coder.weights",
}  # fmt: skip
# dotted path now -> value in 0.1 -> value now
VALUES = {
    "model.rpn.matching.low_quality": {"own": "keep_best_gt", "promoter": "force_gt"},
    "model.rpn.loss.normalizer": {"sampled": "num_sampled", "wanted": "batch_size", "at_least_one": "num_sampled_min1"},
}
# prefix of a tensor's name in 0.1 -> prefix now
TENSORS = ((re.compile(r"roi_head\.(?=(box_head|class_score|box_delta)\.)"), "roi_head.stage."),)


def rename_config(config: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A configuration with today's keys and values; a log line lists what was renamed.

    `base` is the configuration that this one will be merged over: a section of a custom type, which only the base may name,
    keeps its keys. Raises ConfigError if a key is given under both names with different values.
    """
    out, renamed = _copy(config), []
    for old, new in KEYS.items():
        section, key = _section_of(out, base or {}, old), old.rpartition(".")[2]
        if key in section and not (old == PER_STAGE and _has_stages(section[key])):
            _move(out, section.pop(key), old, new)
            renamed.append(f"{old} is now {new}")
    if renamed:
        log.info("renamed since version 0.1: %s", ", ".join(renamed))
    return out


def _copy(section: Any) -> Any:
    """A copy of nested dictionaries; other values are shared."""
    return {key: _copy(value) for key, value in section.items()} if isinstance(section, Mapping) else section


def _section_of(config: Any, base: Any, path: str) -> dict[str, Any]:
    """The section with the key at a dotted path; an empty one where it is missing or of a custom type."""
    for name in path.split(".")[:-1]:
        config, base = config.get(name), base.get(name)
        if isinstance(base, str):
            base = {"type": base}
        base = base if isinstance(base, Mapping) else {}
        if not isinstance(config, dict) or "." in str(config.get("type", base.get("type", ""))):
            return {}
    return config


def _has_stages(value: Any) -> bool:
    """Whether it is a list of lists: one for each stage of a cascade."""
    return isinstance(value, list) and any(isinstance(item, list) for item in value)


def _move(config: dict[str, Any], value: Any, old: str, new: str) -> None:
    """Set `value`, which was at the path `old`, at the path `new`. Raises ConfigError if there is another value."""
    value = VALUES.get(new, {}).get(value, value) if isinstance(value, str) else value
    *parents, key = new.split(".")
    section = config
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            wrong = reprlib.repr(section)
            raise ConfigError(
                f"{old} is now {new}, but {parent} is {wrong}; move the value there and remove the old key"
            )
    if key in section and section[key] != value:
        raise ConfigError(f"{old} is now {new}, which is set to another value; remove the old key")
    section[key] = value


def rename_tensors(state: Mapping[str, Value]) -> dict[str, Value]:
    """A state dict under today's names, in the same order."""
    return {rename_tensor(name): tensor for name, tensor in state.items()}


def rename_tensor(name: str) -> str:
    """Today's name of a tensor."""
    for pattern, replacement in TENSORS:
        name = pattern.sub(replacement, name) if pattern.match(name) else name
    return name
