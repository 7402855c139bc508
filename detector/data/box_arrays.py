"""Boxes of many images as NumPy arrays, and which of them training keeps."""

from __future__ import annotations

import numpy as np

ROUNDING = 1e-2  # pixels by which a box may leave its image before it counts as clipped


def corners(xywh: np.ndarray) -> np.ndarray:
    """(B, 4) x, y, width, height -> (B, 4) x1, y1, x2, y2."""
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)


def clip_to_images(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Move corners (B, 4) into their images of sizes (B, 2) h, w."""
    return np.clip(boxes, 0, sizes[:, [1, 0, 1, 0]])


def have_area(boxes: np.ndarray) -> np.ndarray:
    """(B, 4) -> (B,) bool: both sides are positive in float32, the precision of training."""
    boxes = boxes.astype(np.float32)
    return (boxes[:, 2:] > boxes[:, :2]).all(axis=1)


def were_clipped(boxes: np.ndarray, clipped: np.ndarray) -> np.ndarray:
    """(B, 4), (B, 4) -> (B,) bool: clipping moved an edge by more than ROUNDING."""
    return (np.abs(clipped - boxes) > ROUNDING).any(axis=1)
