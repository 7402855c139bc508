"""The `data` section of a configuration. Nested sections are checked against the classes named in the annotations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from detector.data.image import MAX_PIXELS
from detector.data.transforms import Resize
from detector.errors import ConfigError

MAX_WORKERS = 256  # each is a process


@dataclass
class Split:
    """One part of a data set: an image folder and a COCO annotation file, both relative to `data.root`."""

    images: str
    annotations: str


@dataclass
class DataSettings:
    """Where the data lie and how they are read.

    `type`: "coco", or the dotted path of your own data set. `classes`: train on these alone. `keep_empty`: train on images
    without objects too. `resize` comes before `transforms`, a list of sections; evaluation and inference use its largest
    short side and no transforms.
    """

    root: str
    train: Split
    val: Split
    test: Split | None = None
    type: str = "coco"
    classes: list[str] | None = None
    keep_empty: bool = False
    workers: int = 2
    max_pixels: int = MAX_PIXELS
    resize: Resize = field(default_factory=lambda: {"short": 800, "long": 1333})
    transforms: list[dict[str, Any]] = field(default_factory=lambda: [{"type": "horizontal_flip"}])

    def __post_init__(self):
        if not 0 <= self.workers <= MAX_WORKERS:
            raise ConfigError(f"data.workers: 0 (the program itself) to {MAX_WORKERS} processes, not {self.workers}")
        try:
            Resize(**self.resize)
        except ValueError as error:
            raise ConfigError(f"data.resize: {error}") from error

    def split(self, name: str) -> dict[str, str]:
        """The section of a split. Raises ConfigError if there is none of that name."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        if splits.get(name) is None:
            raise ConfigError(f"data.{name}: the configuration has no such split (images, annotations)")
        return splits[name]
