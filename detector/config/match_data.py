"""What a configuration must have in common with its training annotations: the number of classes and of keypoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detector.config.config import Config, in_file
from detector.errors import ConfigError
from detector.protocols import DataSet
from detector.records.keypoints import Pose
from detector.schema.signatures import parameters_of

SHOWN = {"classes": 10, "keypoints": 20}  # names


def with_num_classes(config: Config, train_set: DataSet) -> Config:
    """The configuration with the class count of the training annotations. Raises ConfigError if it has another, or another of
    keypoints."""
    found = wrong_counts(config, train_set.annotation_file, train_set.class_names, getattr(train_set, "pose", None))
    if found:
        with in_file(config.source):
            raise ConfigError(found[0])
    return config.with_num_classes(len(train_set.class_names))


def wrong_counts(config: Config, file: str | Path, class_names: Sequence[str], pose: Pose | None) -> list[str]:
    """A message for each number in the configuration that is not that of the annotation file."""
    given = [("num_classes", config.model.num_classes, "classes", class_names)]
    if pose is not None:
        given.append(("roi_head.keypoint_head.keypoints", _keypoints(config), "keypoints", pose.names))
    return [
        f"model.{key}: {count}, but {file} has {len(names)} {what} "
        f"({', '.join(names[: SHOWN[what]])}{', …' if len(names) > SHOWN[what] else ''}); "
        f"set it to {len(names)}" + (", or leave it out" if what == "classes" else "")
        for key, count, what, names in given
        if count not in (None, len(names))
    ]


def _keypoints(config: Config) -> int | None:
    """How many the model learns; None where it learns none, or where a head of the user's own does not say."""
    head = config.model.calls.get("roi_head.keypoint_head")
    if head is None:
        return None
    default = parameters_of(head.constructor).get("keypoints")
    return head.arguments.get("keypoints", default and default.default)
