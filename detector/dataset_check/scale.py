"""The objects as the network sees them: after the resize, on the grid of a configuration's pyramid and anchors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detector.data.settings import DataSettings
from detector.data.transforms import Resize, resized_size
from detector.dataset_check.records import Split
from detector.inference.predictor import without_weights
from detector.modeling.anchors import AnchorGenerator
from detector.modeling.build import build_detector
from detector.modeling.layers import log2_stride
from detector.modeling.levels import fpn_level
from detector.modeling.parts import model_calls
from detector.modeling.preprocess import Pixels
from detector.modeling.roi_heads.pool import RegionPool


@dataclass
class Scaled:
    """The objects (B) of a split in the pixels of their resized images."""

    boxes: np.ndarray  # (B, 4) corners
    labels: np.ndarray  # (B,)
    sizes: np.ndarray  # (B, 2) height and width of each one's image
    padded: np.ndarray  # (B, 2) the same, padded as in a batch of its own


@dataclass
class Geometry:
    """What a configuration does to boxes. `anchors`: the arguments of the AnchorGenerator, None where there is none."""

    resize: Resize
    pixels: Pixels
    levels: tuple[int, int]  # of the pool
    k0: int
    canonical_size: float
    anchors: dict[str, Any] | None
    pos_iou: float
    border: float | None

    def make_anchors(self, **changes: Any) -> AnchorGenerator:
        """The configured anchors but for these arguments."""
        return AnchorGenerator(**{**self.anchors, **changes})

    def scaled(self, split: Split) -> Scaled:
        """The objects at the largest short side of `data.resize`, as evaluation sees them."""
        rows = np.flatnonzero(split.objects())
        images = split.sizes[split.owner[rows]]  # (B, 2)
        sizes, which = np.unique(images, axis=0, return_inverse=True)
        which = which.reshape(-1)
        resized = np.array([self._resized(*size) for size in sizes.tolist()], dtype=np.int64).reshape(-1, 4)[which]
        factor = (resized[:, :2] / images)[:, [1, 0, 1, 0]]
        boxes = split.inside()[rows] * factor
        return Scaled(boxes, split.labels[rows], resized[:, :2], resized[:, 2:])

    def _resized(self, height: int, width: int) -> tuple[int, int, int, int]:
        size = resized_size(height, width, max(self.resize.short), self.resize.long)
        return *size, *self.pixels.padded_size(torch.empty(1).expand(3, *size))

    def level(self, boxes: np.ndarray) -> np.ndarray:
        """The pyramid level (B,) that each box is pooled from, by FPN's eq. (1)."""
        return fpn_level(torch.from_numpy(boxes).float(), *self.levels, self.k0, self.canonical_size).numpy()


def geometry(config: Mapping[str, Any], settings: DataSettings, source: str | Path) -> Geometry:
    """What the detector of a configuration, built but for its weights, does to boxes."""
    model = {"num_classes": 1} | dict(config.get("model", {}))
    detector = build_detector(without_weights({**config, "model": model}), source=source)
    pool = next((m for m in detector.modules() if isinstance(m, RegionPool)), None)
    strides = detector.pyramid.strides[:4] if pool is None else pool.strides
    used = type(getattr(detector.rpn, "anchors", None)) is AnchorGenerator  # neither given proposals nor one's own part
    defaults = {name: p.default for name, p in inspect.signature(AnchorGenerator).parameters.items()}
    _, arguments = model_calls(model, trust=True)["rpn.anchors"]
    return Geometry(
        resize=Resize(**settings.resize),
        pixels=detector.pixels,
        levels=(log2_stride(strides[0]), log2_stride(strides[-1])),
        k0=getattr(pool, "k0", 4),
        canonical_size=getattr(pool, "canonical_size", 224),
        anchors={**defaults, **arguments, "strides": detector.rpn.anchors.strides} if used else None,
        pos_iou=getattr(detector.rpn, "matching", {}).get("pos_iou", 0.7),
        border=getattr(detector.rpn, "border", None),
    )


def level_counts(geometry: Geometry, scaled: Scaled) -> dict[int, int]:
    """How many boxes each level of the pool gets."""
    level = geometry.level(scaled.boxes)
    return {k: int((level == k).sum()) for k in range(geometry.levels[0], geometry.levels[1] + 1)}


def best_iou(geometry: Geometry, anchors: AnchorGenerator, scaled: Scaled) -> np.ndarray:
    """The IoU (B,) of every object with the best of all anchors of its image.

    What two boxes share falls with the distance of their centres, in x and in y apart; so of all places that an anchor
    of one shape has on its grid, the nearest in x and in y is the best, and the grid itself is never made.
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
    """The most (B,) that a box and an anchor with these two edges, on a grid, can share along one axis (0: x)."""
    low, high = scaled.boxes[:, axis], scaled.boxes[:, axis + 2]
    least, most = 0, count - 1  # of the index on the grid
    if geometry.border is not None:  # anchors that leave the image further do not train
        size = scaled.sizes[:, 1 - axis]
        least = np.maximum(least, np.ceil((-geometry.border - anchor[0]) / step))
        most = np.minimum(most, np.ceil((size + geometry.border - anchor[1]) / step) - 1)
    index = np.rint(((low + high) - (anchor[0] + anchor[1])) / 2 / step)
    shift = np.maximum(np.minimum(index, most), least) * step
    shared = np.minimum(high, anchor[1] + shift) - np.maximum(low, anchor[0] + shift)
    return np.where(most >= least, shared.clip(min=0), 0)
