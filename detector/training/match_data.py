"""What a configuration must have in common with its training annotations: the number of classes and of keypoints."""

from __future__ import annotations

from detector.config.config import Config, in_file
from detector.errors import ConfigError
from detector.protocols import DataSet
from detector.schema.signatures import parameters_of


def with_num_classes(config: Config, train_set: DataSet) -> Config:
    """The configuration with the class count of the training annotations. Raises ConfigError if it has another, or another of
    keypoints."""
    count, found = config.model.num_classes, len(train_set.class_names)
    if count not in (None, found):
        with in_file(config.source):
            raise ConfigError(
                f"model.num_classes: {count}, but {train_set.annotation_file} has {found} classes "
                f"({', '.join(train_set.class_names[:10])}{', …' if found > 10 else ''}); correct it, or leave it out"
            )
    _check_keypoints(config, train_set)
    return config.with_num_classes(found)


def _check_keypoints(config: Config, train_set: DataSet) -> None:
    head, pose = config.model.calls.get("roi_head.keypoint_head"), getattr(train_set, "pose", None)
    if head is None or pose is None:
        return
    default = parameters_of(head.constructor).get("keypoints")  # a head of the user's own may have no such option
    count = head.arguments.get("keypoints", default and default.default)
    if count not in (None, len(pose.names)):
        with in_file(config.source):
            raise ConfigError(
                f"model.roi_head.keypoint_head.keypoints: {count}, but {train_set.annotation_file} names {len(pose.names)} "
                f"({', '.join(pose.names[:20])}); set it to {len(pose.names)}"
            )
