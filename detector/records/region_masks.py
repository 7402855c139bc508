"""Masks of detections: probabilities inside their boxes until they are pasted (He et al. 2017, Mask R-CNN, sec. 3)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from detector.records.geometry import Size, Window
from detector.records.record import Record, boxes_field, rows_field


@dataclass(eq=False)
class RegionMasks(Record):
    """The mask of each detection at a fixed resolution, and the box that it fills."""

    probabilities: Tensor = rows_field()
    """(D, M, M) in 0..1; 28 x 28 is usual."""
    boxes: Tensor = boxes_field()
    """(D, 4) xyxy."""
    size: Size = (0, 0)
    """(h, w) of the image."""
    scores: Tensor | None = rows_field(default=None)
    """(D,) of the masks, which rank them in place of the detections' scores where a model judges its masks."""

    def resized(self, old: Size, new: Size) -> RegionMasks:
        """The boxes in the pixels of the resized image."""
        return replace(super().resized(old, new), size=new)

    def mirrored(self, width: int) -> RegionMasks:
        """The boxes and their content mirrored."""
        return replace(super().mirrored(width), probabilities=self.probabilities.flip(-1))

    def flipped(self, height: int) -> RegionMasks:
        """The boxes and their content upside down."""
        return replace(super().flipped(height), probabilities=self.probabilities.flip(-2))

    def cropped(self, window: Window) -> RegionMasks:
        """Not defined: a cropped box would need its mask resampled."""
        raise NotImplementedError("masks of detections cannot be cropped: crop the image and detect there")
