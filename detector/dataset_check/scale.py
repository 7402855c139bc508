"""The objects as the network sees them: after the resize, on the grid of a configuration's pyramid and anchors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from detector.data.tiles import TileGrid
from detector.data.transforms import Resize, resized_size
from detector.modeling.anchors import AnchorGenerator
from detector.modeling.layers import log2_stride
from detector.modeling.levels import Rounding, fpn_level
from detector.protocols import Preprocessor


@dataclass
class Scaled:
    """The objects (B) of a split in the pixels of their resized images."""

    boxes: np.ndarray  # (B, 4) corners
    labels: np.ndarray  # (B,)
    sizes: np.ndarray  # (B, 2) height and width of each one's image
    padded: np.ndarray  # (B, 2) the same, padded as in a batch of its own


@dataclass
class Geometry:
    """The sizes, levels and anchors of a configuration. `anchors` is None if the detector has no AnchorGenerator.

    With `tiles` an image is one of its tiles, that with the object in its middle.
    """

    resize: Resize
    preprocess: Preprocessor
    levels: tuple[int, int]  # of the pool
    k0: int
    canonical_size: float
    level_rounding: Rounding
    anchors: AnchorGenerator | None
    pos_iou: float
    border: float | None
    tiles: TileGrid | None = None

    def scaled(self, boxes: np.ndarray, labels: np.ndarray, images: np.ndarray) -> Scaled:
        """The objects at the largest short side of `data.resize`, as evaluation sees them.

        Args:
            boxes: (B, 4) corners, clipped to their images.
            labels: (B,) index of the class.
            images: (B, 2) height and width of each one's image.
        """
        if self.tiles is not None:
            boxes, images = self.tiles.nearest(boxes, images)
        sizes, which = np.unique(images, axis=0, return_inverse=True)
        which = which.reshape(-1)
        resized = np.array([self._resized(*size) for size in sizes.tolist()], dtype=np.int64).reshape(-1, 4)[which]
        factor = (resized[:, :2] / images)[:, [1, 0, 1, 0]]
        return Scaled(boxes * factor, labels, resized[:, :2], resized[:, 2:])

    def _resized(self, height: int, width: int) -> tuple[int, int, int, int]:
        size = resized_size(height, width, max(self.resize.sides), self.resize.long)
        return *size, *self.preprocess.padded_size(torch.empty(1).expand(3, *size))

    def level(self, boxes: np.ndarray) -> np.ndarray:
        """The pyramid level (B,) that each box is pooled from, by FPN's eq. (1)."""
        found = torch.from_numpy(boxes).float()
        return fpn_level(found, *self.levels, self.k0, self.canonical_size, rounding=self.level_rounding).numpy()


def geometry(detector: Any, resize: Resize, tiles: TileGrid | None = None) -> Geometry:
    """The geometry of a GeneralizedRCNN on images of `data.resize`, or on tiles of them."""
    pool = getattr(detector.roi_head, "pool", None)
    strides = getattr(pool, "strides", detector.pyramid.strides[:4])
    anchors, matching = getattr(detector.rpn, "anchors", None), getattr(detector.rpn, "matching", None)
    return Geometry(
        resize=resize,
        preprocess=detector.preprocess,
        levels=(log2_stride(strides[0]), log2_stride(strides[-1])),
        k0=getattr(pool, "k0", 4),
        canonical_size=getattr(pool, "canonical_size", 224),
        level_rounding=getattr(pool, "level_rounding", "detectron2"),
        anchors=anchors if isinstance(anchors, AnchorGenerator) else None,
        pos_iou=getattr(matching, "pos_iou", 0.7),
        border=getattr(detector.rpn, "allowed_border", None),
        tiles=tiles,
    )


def level_counts(geometry: Geometry, scaled: Scaled) -> dict[int, int]:
    """Number of boxes that are pooled from each level."""
    level = geometry.level(scaled.boxes)
    return {k: int((level == k).sum()) for k in range(geometry.levels[0], geometry.levels[1] + 1)}


def best_iou(geometry: Geometry, anchors: AnchorGenerator, scaled: Scaled) -> np.ndarray:
    """The IoU (B,) of every object with the best of all anchors of its image.

    The intersection falls with the distance of the centres, separately in x and in y. So for each anchor shape the grid
    position nearest in x and in y is the best, and the grid itself is not built.
    """
    best = np.zeros(len(scaled.boxes))
    area = (scaled.boxes[:, 2:] - scaled.boxes[:, :2]).prod(axis=1)
    cells = anchors([torch.empty(1, 0, 1, 1)] * len(anchors.strides), (1, 1))  # per level (A, 4), of one cell
    for stride, level in zip(anchors.strides, cells):
        count = -(-scaled.padded // stride)  # (B, 2) rows and columns of the map
        step = scaled.padded // count if anchors.strides_from_image else np.full_like(count, stride)
        for x1, y1, x2, y2 in level.tolist():
            width = _shared(geometry, scaled, 0, (x1, x2), step[:, 1], count[:, 1])
            height = _shared(geometry, scaled, 1, (y1, y2), step[:, 0], count[:, 0])
            shared = width * height
            best = np.maximum(best, shared / (area + (x2 - x1) * (y2 - y1) - shared))
    return best


def _shared(
    geometry: Geometry, scaled: Scaled, axis: int, anchor: Sequence[float], step: np.ndarray, count: np.ndarray
) -> np.ndarray:
    """The largest overlap (B,) of a box and an anchor with these two edges on a grid, along one axis (0: x)."""
    low, high = scaled.boxes[:, axis], scaled.boxes[:, axis + 2]
    least, most = np.zeros_like(step), count - 1  # of the index on the grid
    if geometry.border is not None:  # other anchors are not trained
        size = scaled.sizes[:, 1 - axis]
        least = np.maximum(least, np.ceil((-geometry.border - anchor[0]) / step))
        most = np.minimum(most, np.ceil((size + geometry.border - anchor[1]) / step) - 1)
    index = np.rint(((low + high) - (anchor[0] + anchor[1])) / 2 / step)
    shift = np.maximum(np.minimum(index, most), least) * step
    shared = np.minimum(high, anchor[1] + shift) - np.maximum(low, anchor[0] + shift)
    return np.where(most >= least, shared.clip(min=0), 0)
