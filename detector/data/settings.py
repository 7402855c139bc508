"""The `data` section of a configuration. Nested sections are checked against the classes named in the annotations."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from detector.data.image import MAX_PIXELS
from detector.data.transforms import ImagePyramid, Resize
from detector.errors import ConfigError, check_range

MAX_WORKERS = 256  # each is a process


@dataclass
class Split:
    """One part of a data set: an image folder and a COCO annotation file, relative to `data.root`.

    `proposals`: for a detector without an RPN, a file that `scripts/evaluate.py CKPT --proposals FILE` wrote.
    """

    images: str
    annotations: str
    proposals: str | None = None


@dataclass
class DataSettings:
    """Where the data lie and how they are read.

    `type`: "coco", or the dotted path of your own data set. `classes`: train on these alone. `keep_empty`: train on images
    without objects too. `resize` comes before `transforms`, a list of sections; evaluation and inference use its largest
    short side and no transforms. `repeat_threshold`: show images with a class that is in less than this fraction of them
    more often (detector/data/sampler.py). `tta`: the scales and flips of `--tta`. `skip_bad`: a training does without so
    many images that are missing, broken, too large or of another size, and stops at the next one; evaluation stops at the
    first.
    """

    root: str
    train: Split
    val: Split
    test: Split | None = None
    type: str = "coco"
    classes: list[str] | None = None
    keep_empty: bool = False
    repeat_threshold: float | None = None
    workers: int = 2
    max_pixels: int = MAX_PIXELS
    skip_bad: int = 0
    resize: Resize = field(default_factory=lambda: {"short": 800, "long": 1333})
    tta: ImagePyramid = field(default_factory=dict)
    transforms: list[dict[str, Any]] = field(default_factory=lambda: [{"type": "horizontal_flip"}])

    def __post_init__(self):
        if not 0 <= self.workers <= MAX_WORKERS:
            raise ConfigError(f"data.workers: 0 (the program itself) to {MAX_WORKERS} processes, not {self.workers}")
        check_range("data", 0, math.inf, skip_bad=self.skip_bad)
        if self.repeat_threshold is not None and not 0 < self.repeat_threshold <= 1:
            raise ConfigError(f"data.repeat_threshold: must lie in 0..1, or be null, not {self.repeat_threshold}")
        ImagePyramid(**self.tta)  # raises ConfigError by itself
        try:
            Resize(**self.resize)
        except ValueError as error:
            raise ConfigError(f"data.resize: {error}") from error

    def check_proposals(self, *, wanted: bool) -> None:
        """Raise ConfigError unless both splits name proposals where they are `wanted`, and none does elsewhere."""
        for name in ("train", "val", "test"):
            given = (getattr(self, name) or {}).get("proposals")
            if given is not None and not wanted:
                raise ConfigError(
                    f"data.{name}.proposals: this detector makes its own; remove the key, or set model.rpn=precomputed"
                )
            if given is None and wanted and name != "test":
                raise ConfigError(
                    f"data.{name}.proposals: must be given where model.rpn is precomputed; scripts/evaluate.py CKPT --split "
                    f"{name} --proposals FILE writes such a file"
                )

    def split(self, name: str) -> dict[str, str | None]:
        """The section of a split. Raises ConfigError if there is none of that name."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        if splits.get(name) is None:
            raise ConfigError(f"data.{name}: the configuration has no such split (images, annotations)")
        return splits[name]
