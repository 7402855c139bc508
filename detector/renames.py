"""What version 0.1 called otherwise: keys and values of configurations, and tensors of checkpoints.

Whatever reads a configuration or a checkpoint applies this table, so that files of 0.1 keep working.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from detector.errors import ConfigError

log = logging.getLogger("detector")

Value = TypeVar("Value")

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
    "model.roi_head.box_weights": "model.roi_head.coder.weights",  # of a cascade, lists of lists: as before
}  # fmt: skip
# dotted path now -> value in 0.1 -> value now
VALUES = {
    "model.rpn.matching.low_quality": {"own": "keep_best_gt", "promoter": "force_gt"},
    "model.rpn.loss.normalizer": {"sampled": "num_sampled", "wanted": "batch_size", "at_least_one": "num_sampled_min1"},
}
# beginning of a tensor's name in 0.1 -> now
TENSORS = ((re.compile(r"roi_head\.(?=(box_head|class_score|box_delta)\.)"), "roi_head.stage."),)


def rename_config(config: Mapping[str, Any], over: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A configuration, or a part of one that will go `over` another, with today's keys and values.

    Sections of a user's own type keep their keys. What was renamed is logged. Raises ConfigError if a key is given under
    both names with different values.
    """
    renamed: dict[str, str] = {}
    out = _renamed(config, over or {}, "", renamed)
    for old, path in list(renamed.items()):
        _move(out, old, path)
    if renamed:
        log.info("renamed since version 0.1: %s", ", ".join(f"{old} is now {new}" for old, new in renamed.items()))
    return out


def _renamed(section: Any, over: Any, where: str, renamed: dict[str, str]) -> Any:
    """A copy of nested dictionaries; old keys in it are noted in `renamed`."""
    if not isinstance(section, Mapping):
        return section
    over = over if isinstance(over, Mapping) else {}
    own_type = "." in str(section.get("type", over.get("type", "")))
    out = {}
    for key, value in section.items():
        path = f"{where}.{key}" if where else str(key)
        per_stage = (
            path == "model.roi_head.box_weights" and isinstance(value, list) and any(isinstance(v, list) for v in value)
        )
        if path in KEYS and not per_stage and not own_type:
            renamed[path] = KEYS[path]
        out[key] = _renamed(value, over.get(key), path, renamed)
    return out


def _move(config: dict[str, Any], old: str, new: str) -> None:
    """Take the value at the path `old` to the path `new`. Raises ConfigError if that has another value."""
    *parents, key = old.split(".")
    section = config
    for parent in parents:
        section = section[parent]
    value = section.pop(key)
    value = VALUES.get(new, {}).get(value, value) if isinstance(value, str) else value
    *parents, key = new.split(".")
    section = config
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(
                f"{old} is now {new}, but {parent} is {section!r}; move the value there, and drop the old key"
            )
    if section.setdefault(key, value) != value:
        raise ConfigError(f"{old} is now {new}, which is set to another value; remove the old key")


def rename_tensors(state: Mapping[str, Value]) -> dict[str, Value]:
    """A state dict under today's names, in its order."""
    return {rename_tensor(name): tensor for name, tensor in state.items()}


def rename_tensor(name: str) -> str:
    """Today's name of a tensor."""
    for pattern, now in TENSORS:
        name = pattern.sub(now, name) if pattern.match(name) else name
    return name
