"""Outlines of Pascal VOC: SegmentationObject/NAME.png numbers the object of each pixel; 0 is background, 255 undecided."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import box_iou

from detector.data.convert.writer import ConversionNotes, SourceObject, path_within
from detector.data.numbered_pixels import read_numbered_pixels
from detector.records.geometry import Size, tight_boxes
from detector.records.outlines import Outlines

UNDECIDED = 255
LEAST_IOU = 0.5  # of the boxes of an object and of its region; in VOC 2012 most are above 0.8


def add_outlines(objects: Sequence[SourceObject], folder: Path, name: str, size: Size, notes: ConversionNotes) -> None:
    """Give each object the region whose box agrees best with its own, and each region to one object at most.

    Raises DataError for a file that is no picture of numbers of that size.
    """
    path = path_within(folder, f"SegmentationObject/{name}.png", folder)
    if not path.is_file() or not objects:
        return
    regions = _regions(path, size)
    overlap = box_iou(torch.tensor([found.xyxy for found in objects], dtype=torch.float32), tight_boxes(regions))
    outlines = Outlines.of_bitmaps(regions).segmentations()
    while overlap.numel() and overlap.max() >= LEAST_IOU:
        i, k = divmod(int(overlap.argmax()), len(regions))
        objects[i].outline = outlines[k]
        overlap[i], overlap[:, k] = 0, 0
    for found in objects:
        if found.outline is None:
            notes.add("objects have no region in SegmentationObject: without outline", path.name)


def _regions(path: Path, size: Size) -> torch.Tensor:
    """The bitmap of each numbered region, (n, h, w) uint8."""
    numbers = read_numbered_pixels(path, size)
    ids = [number for number in np.unique(numbers).tolist() if number not in (0, UNDECIDED)]
    return (
        torch.from_numpy(np.stack([numbers == number for number in ids]).astype(np.uint8))
        if ids
        else torch.zeros(0, *size, dtype=torch.uint8)
    )
