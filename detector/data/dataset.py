"""The `data` section of a configuration becomes data sets: the names of what can be built, and how."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from detector.config import check_call, named, resolve
from detector.data.coco import CocoDataset
from detector.data.settings import DataSettings
from detector.data.transforms import ColorJitter, Compose, HorizontalFlip, LargeScaleJitter, Resize, VerticalFlip
from detector.errors import ConfigError, check_attributes

DATASETS = {"coco": CocoDataset}
TRANSFORMS = {
    "horizontal_flip": HorizontalFlip,
    "vertical_flip": VerticalFlip,
    "color_jitter": ColorJitter,
    "large_scale_jitter": LargeScaleJitter,
}
# what training and evaluation read of a data set, for whom writes one of her own
ATTRIBUTES = {
    "class_names": "a list, the classes in the order of their labels",
    "category_ids": "a list, the classes' ids in the annotation file",
    "image_ids": "the id of every image",
    "sizes": "an array (n, 2), height and width of every image",
    "image": "image(i) is the i-th image, a uint8 tensor (3, H, W)",
    "annotation_file": "the path of the COCO file that it is scored by",
    "report": "a line about what it holds",
    "class_table": "class_table() is a text about its classes",
    "full_names": "full_names() is a list, the file name of every image",
}


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
    dataset = make(*paths, **_dataset_options(settings, split, class_names, transform))
    check_attributes("data.type", dataset, ATTRIBUTES)
    return dataset


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
