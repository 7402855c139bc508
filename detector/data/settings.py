"""The `data` section of a configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from detector.data.coco import CocoDataset
from detector.data.copy_paste import CopyPaste, PastingDataset
from detector.data.image import MAX_PIXELS
from detector.data.own_targets import OwnTargets
from detector.data.tiled_dataset import TiledDataset
from detector.data.tiles import TrainingTiles
from detector.data.transforms import (
    ColorJitter,
    Compose,
    HorizontalFlip,
    ImagePyramid,
    LargeScaleJitter,
    Resize,
    VerticalFlip,
)
from detector.errors import ConfigError
from detector.protocols import DataSet, check_part
from detector.schema.ranges import Range
from detector.schema.resolve import as_section, named, resolve
from detector.schema.signatures import checked, construct, prefixed

DATASETS: dict[str, Callable] = {"coco": CocoDataset}
TRANSFORMS: dict[str, Callable] = {
    "horizontal_flip": HorizontalFlip,
    "vertical_flip": VerticalFlip,
    "color_jitter": ColorJitter,
    "large_scale_jitter": LargeScaleJitter,
}
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """One part of a data set."""

    images: str
    """Folder of the images, relative to `data.root`."""
    annotations: str
    """COCO annotation file, relative to `data.root`."""
    proposals: str | None = None
    """For a detector without an RPN: a file that `detector evaluate CKPT --proposals FILE` wrote, relative to `data.root`."""
    semantic: str | None = None
    """For training a semantic branch: folder of a PNG for each image with the class of each pixel, 255 for none, relative to
    `data.root`; COCO's are stuffthingmaps."""


@checked
@dataclass(frozen=True)
class DataSettings:
    """Where the data lie and how they are read."""

    root: str
    """Folder to which the paths of the splits are relative."""
    train: Split
    """Images and annotations to train on."""
    val: Split
    """Images and annotations that each epoch is scored on."""
    test: Split | None = None
    """Images and annotations for `detector evaluate --split test`."""
    type: Callable = CocoDataset
    """coco, or the dotted path of your own data set, which is called like CocoDataset."""
    classes: list[str] | None = None
    """Names of the categories to train on; null: all."""
    keep_empty: bool = False
    """Train on images without objects, too."""
    repeat_threshold: Annotated[float, Range(0, 1, above=True)] | None = None
    """Repeat images with a class that is in less than this share of the images (LVIS, Gupta et al. 2019)."""
    workers: Annotated[int, Range(0, 256)] = 2
    """Processes that load images; 0: the program itself."""
    max_pixels: Annotated[int, Range(1, 2**40)] = MAX_PIXELS
    """Images with more pixels are refused."""
    bit_depth: Literal[8, 10, 12, 14, 16] | None = None
    """Bits that grey images of 16 bits use, such as 12 of an X-ray; null: by the range of each image."""
    skip_bad: Annotated[int, Range(0, 10**9)] = 0
    """Images that cannot be read and that training does without; evaluation stops at the first."""
    resize: Resize = field(default_factory=lambda: Resize(800, 1333))
    """Scaling of images; evaluation and inference use the largest short side."""
    tiles: TrainingTiles | None = None
    """Train on tiles of images, for small objects in large images, and score each epoch on them; null: on whole images."""
    copy_paste: CopyPaste | None = None
    """Objects of another training image pasted into each, by their outlines; null: none."""
    tta: ImagePyramid = field(default_factory=ImagePyramid)
    """Scales and flips of test-time augmentation (`--tta`)."""
    transforms: list[Callable] = field(default_factory=lambda: [HorizontalFlip()])
    """Random transforms of training, in order, after `resize`: a list of sections with a `type`."""

    def split(self, name: str) -> Split:
        """Raises ConfigError if there is no split of that name."""
        found = getattr(self, name) if name in SPLITS else None
        if found is None:
            raise ConfigError(f"data.{name}: the configuration has no such split (images, annotations)")
        return found

    def paths(self, name: str) -> tuple[Path, Path]:
        """Image folder and annotation file of a split."""
        split = self.split(name)
        return Path(self.root) / split.images, Path(self.root) / split.annotations

    def check_proposals(self, *, needed: bool) -> None:
        """Raise ConfigError unless the splits name proposals where they are `needed`, and none does elsewhere."""
        for name in SPLITS:
            given = getattr(self, name) and getattr(self, name).proposals
            if given is not None and not needed:
                raise ConfigError(
                    f"data.{name}.proposals: this detector makes its own; remove the key, or set model.rpn=precomputed"
                )
            if given is None and needed and name != "test":
                raise ConfigError(
                    f"data.{name}.proposals: must be given where model.rpn is precomputed; detector evaluate CKPT --split "
                    f"{name} --proposals FILE writes such a file"
                )

    def check_semantic(self, *, needed: bool) -> None:
        """Raise ConfigError unless train and val, whose loss is computed, name semantic maps where they are `needed`."""
        for name in ("train", "val"):
            given = getattr(self, name).semantic
            if given is None and needed:
                raise ConfigError(
                    f"data.{name}.semantic: must be given for model.roi_head.semantic_head: a folder with a PNG for each image"
                )
            if given is not None and not needed:
                raise ConfigError(
                    f"data.{name}.semantic: nothing reads it; remove the key, or add model.roi_head.semantic_head"
                )

    def training_transform(self) -> Compose:
        """`resize`, unless large-scale jitter replaces it, then `transforms` in order."""
        scaled = any(
            isinstance(part, LargeScaleJitter) for part in self.transforms
        )  # a second resampling would only blur
        return Compose(self.transforms if scaled else [self.resize, *self.transforms])


def parse_data(section: Any, *, trust: bool) -> DataSettings:
    """The checked `data` section, its nested sections constructed. `trust` follows dotted paths of a user's own classes.

    Raises ConfigError with the dotted path for whatever does not fit.
    """
    section = as_section(section, "data")
    if "type" in section:
        section["type"] = named(section["type"], DATASETS, "data", trust=trust)
    if isinstance(section.get("transforms"), list):
        section["transforms"] = [
            _transform(part, f"data.transforms[{i}]", trust) for i, part in enumerate(section["transforms"])
        ]
    settings = construct(DataSettings, section, "data")
    _check_dataset(settings)
    return settings


def _transform(section: Any, where: str, trust: bool) -> Callable:
    constructor, arguments = resolve(section, TRANSFORMS, where, trust=trust)
    with prefixed(where):
        return constructor(**arguments)


def _check_dataset(settings: DataSettings, fields: Collection[str] = (), keypoint_offset: float = 0.0) -> None:
    """A data set of the user's own must take what `build_dataset` gives it."""
    try:
        inspect.signature(settings.type).bind(
            "images", "annotations", **_options(settings, "train", None, None, fields, keypoint_offset)
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"data.type: {settings.type.__name__} cannot be called like CocoDataset ({error})") from error


def _options(
    settings: DataSettings,
    split: str,
    class_names: list[str] | None,
    transform: Compose | None,
    fields: Collection[str],
    keypoint_offset: float = 0.0,
) -> dict[str, Any]:
    """What a data set is given beside its two paths."""
    options = {
        "classes": settings.classes,
        "class_names": class_names,
        "keep_empty": settings.keep_empty or split != "train",
        "max_pixels": settings.max_pixels,
        "transform": transform,
    }
    proposals = settings.split(split).proposals
    maps = settings.split(split).semantic if "semantic" in fields else None
    optional: dict[str, Any] = {
        "semantic": None if maps is None else Path(settings.root) / maps,
        "fields": sorted(fields) if fields and _takes_fields(settings.type) else None,
        "keypoint_offset": keypoint_offset or None,
        "bit_depth": settings.bit_depth,
        "proposals": None if proposals is None else Path(settings.root) / proposals,
    }
    return options | {key: value for key, value in optional.items() if value is not None}


def _takes_fields(dataset: Callable) -> bool:
    """Whether a data set is told what the model reads; one of the user's own may give its shapes without that."""
    parameters = inspect.signature(dataset).parameters
    return "fields" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def fields_read(settings: DataSettings, split: str, fields: Collection[str]) -> Collection[str]:
    """What the targets of a split must have for a model that reads `fields`: masks, too, where objects are pasted."""
    return {*fields, "masks"} if split == "train" and settings.copy_paste else fields


def build_dataset(
    settings: DataSettings, split: str, *, class_names: list[str] | None = None, fields: Collection[str] = (),
    keypoint_offset: float = 0.0,
) -> DataSet:  # fmt: skip
    """A split of the `data` section; "train" comes with its transforms. `class_names` are those of the training split.

    `fields` are what targets need beside boxes and labels, `config.model.target_fields`; `keypoint_offset` is that of
    `config.model`.

    Raises ConfigError for a split that the configuration lacks, DataError for what is wrong with its files.
    """
    transform = settings.training_transform() if split == "train" else None
    pasted = settings.copy_paste if split == "train" else None
    read = fields_read(settings, split, fields)
    _check_dataset(settings, read, keypoint_offset)
    options = _options(settings, split, class_names, transform, read, keypoint_offset)
    dataset = settings.type(*settings.paths(split), **options)
    check_part(dataset, DataSet, "data.type")
    if split == "train" and settings.tiles is not None:
        dataset = TiledDataset(dataset, settings.tiles, keep_empty=settings.keep_empty)
    elif read and not isinstance(dataset, CocoDataset):
        dataset = OwnTargets(dataset, read)
    return PastingDataset(dataset, pasted, fields) if pasted else dataset
