"""Masks of detections: probabilities inside their boxes until they are pasted (He et al. 2017, Mask R-CNN, sec. 3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from detector.records.geometry import Size, Window
from detector.records.pasting import THRESHOLD, WAYS, Patch, run_lengths
from detector.records.record import Record, boxes_field, rows_field

STRIP = 2**20  # pixels of a mask that are run-length encoded at once


@dataclass(eq=False)
class RegionMasks(Record):
    """The mask of each detection at a fixed resolution, and the box that it fills.

    A hundred masks of 28 x 28 take 160 kB, and of 224 x 224 10 MB, whatever the size of the image: `paste`, or `rle` for less
    memory, makes pixels of them.
    The way of pasting is `sampled` (Detectron2, MMDetection) or `torchvision`; records/pasting.py says what they are.
    """

    probabilities: Tensor = rows_field()
    """(D, M, M) in 0..1, float32 or float16; 28 x 28 is usual, and 224 x 224 PointRend's."""
    boxes: Tensor = boxes_field()
    """(D, 4) xyxy."""
    size: Size = (0, 0)
    """(h, w) of the image."""
    scores: Tensor | None = rows_field(default=None)
    """(D,) of the masks, which rank them in place of the detections' scores where a model judges its masks."""

    def paste(self, mode: str = "sampled") -> Tensor:
        """(D, h, w) bool, true where the probability is at least a half. Takes D * h * w bytes."""
        pasted = torch.zeros(len(self), *self.size, dtype=torch.bool, device=self.probabilities.device)
        for canvas, patches in zip(pasted, self._soft_patches(mode)):
            for patch in patches:
                _fill(canvas, _binary(patch))
        return pasted

    def probability_maps(self, mode: str = "sampled") -> Tensor:
        """(D, h, w) float32, the probability of every pixel. Takes 4 * D * h * w bytes."""
        maps = torch.zeros(len(self), *self.size, device=self.probabilities.device)
        for canvas, patches in zip(maps, self._soft_patches(mode)):
            for patch in patches:
                _fill(canvas, patch)
        return maps

    def rle(self, mode: str = "sampled") -> list[dict[str, Any]]:
        """COCO's compressed run lengths of each mask, with text counts; a strip of a mask at a time."""
        return [run_lengths(map(_binary, patches), self.size) for patches in self._soft_patches(mode, STRIP)]

    def patches(self) -> Iterator[tuple[int, Patch]]:
        """The row of each mask, and what it sets (bool) in its window of the image, one after the other; none outside it."""
        return ((row, _binary(patch)) for row, patches in enumerate(self._soft_patches("sampled")) for patch in patches)

    def _soft_patches(self, mode: str, pixels: int | None = None) -> Iterator[Iterator[Patch]]:
        if mode not in WAYS:
            raise ValueError(f"mode={mode!r}: choose one of {', '.join(WAYS)}")
        masks = self.probabilities.float()
        return (WAYS[mode](mask, box, self.size, pixels) for mask, box in zip(masks, self.boxes.tolist()))

    def halved(self) -> RegionMasks:
        """With probabilities as float16, for results that are kept: half the memory; of 35,000 hard pixels 20 differ."""
        return replace(self, probabilities=self.probabilities.half())

    def resized(self, old: Size, new: Size) -> RegionMasks:
        """The boxes in the pixels of the resized image."""
        return replace(super().resized(old, new), size=new)

    def mirrored(self, width: int) -> RegionMasks:
        """The boxes and their content mirrored."""
        return replace(super().mirrored(width), probabilities=self.probabilities.flip(-1))

    def flipped(self, height: int) -> RegionMasks:
        """The boxes and their content upside down."""
        return replace(super().flipped(height), probabilities=self.probabilities.flip(-2))

    def placed(self, window: Window, size: Size) -> RegionMasks:
        """The boxes in the pixels of the image."""
        return replace(super().placed(window, size), size=size)

    def cropped(self, window: Window) -> RegionMasks:
        """Not defined: a cropped box would need its mask resampled."""
        raise NotImplementedError("masks of detections cannot be cropped: crop the image and detect there")


def _binary(patch: Patch) -> Patch:
    return patch._replace(values=patch.values >= THRESHOLD)


def _fill(canvas: Tensor, patch: Patch) -> None:
    """Write a patch into an image."""
    h, w = patch.values.shape
    canvas[patch.top : patch.top + h, patch.left : patch.left + w] = patch.values
