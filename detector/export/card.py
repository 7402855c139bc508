"""What an exported file says of itself: all that is needed around the graph. It travels inside the file, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from detector.errors import CheckpointError
from detector.records.geometry import Size

FORMAT = "detector export 1"
KEY = "detector"  # under which each kind of file keeps it
Batches = Sequence[tuple[Tensor, Tensor]]  # arguments of `DetectionGraph.find`


@dataclass(frozen=True)
class Card:
    """The classes, the sizes and the configuration of an exported detector."""

    class_names: list[str]
    category_ids: list[int]
    config: dict[str, Any]
    """The configuration of the checkpoint: how images are resized, thresholds, NMS."""
    size: Size
    """(h, w) of the images that the graph takes, in pixels; the largest, if it takes several."""
    batch: int
    """How many it takes at once."""
    outputs: list[str]
    """What it returns, in order (`DetectionGraph.find`)."""
    proposals_only: bool
    """Whether the detections are proposals, of one class."""
    pose: dict[str, Any] | None = None
    """Names and skeleton of its keypoints."""
    keypoints: dict[str, Any] | None = None
    """How heat maps are read: `scores` and `offset` of the keypoint head."""
    precision: str = "float32"
    """Of its numbers: float32; float16, weights that are read in float32; int8."""
    least_size: Size | None = None
    """(h, w) of the smallest images, if the graph takes several sizes: those whose sides are multiples of `divisor`."""
    divisor: int = 1
    versions: dict[str, str] = field(default_factory=dict)

    def padded_size(self, images: Sequence[Tensor]) -> Size:
        """(h, w) to which the graph wants images (3, h, w), each at most as large as `size`, padded."""
        if self.least_size is None:
            return self.size
        h, w = (
            max(least, *(-(-image.shape[axis] // self.divisor) * self.divisor for image in images))
            for axis, least in ((1, self.least_size[0]), (2, self.least_size[1]))
        )
        return h, w

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def loads(cls, text: str | None, path: Path) -> Card:
        """From JSON. Raises CheckpointError for the content of a file that `detector export` did not write."""
        try:
            content = json.loads(text or "{}")
            if content.pop("format", None) != FORMAT:
                raise ValueError("no description of a detector")
            known = {f.name for f in fields(cls)}
            for key in ("size", *["least_size"] * (content.get("least_size") is not None)):
                content[key] = tuple(map(int, content[key]))
            return cls(**{key: value for key, value in content.items() if key in known})
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise CheckpointError(
                f"{path}: not written by `detector export` ({error}); export the checkpoint again"
            ) from error
