"""Masks at a fixed resolution -> pixels of the image, one region at a time in its own window (He et al. 2017, sec. 3.1).

Two ways: `sampled`, at the centres of the pixels, as Detectron2 and MMDetection do, and `torchvision`, which resizes the
mask to a box of whole pixels and gives larger masks: compare masks of one way alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from detector.records.geometry import Size

THRESHOLD = 0.5  # a pixel belongs to the object from here on
SMALLEST_SIDE = 1e-6  # of a box, so that one without an area divides by a number


class Patch(NamedTuple):
    """Values of a part of an image."""

    top: int
    left: int
    values: Tensor  # (h, w)


def sampled(mask: Tensor, box: Sequence[float], size: Size, pixels: int | None = None) -> Iterator[Patch]:
    """The probabilities of one region: bilinear samples of a mask (M, M) at the centres of pixels, zero beyond it.

    These are `grid_sample`'s numbers. Bilinear weights are separable, so two small matrices replace the grid of samples.
    The region comes in strips of at most `pixels`, or of one column, from left to right; None: in one.
    """
    x1, y1, x2, y2 = box
    reach = 0.5 / mask.shape[-1]  # of a mask's edge cells beyond the box, in sides of it
    dx, dy = reach * (x2 - x1), reach * (y2 - y1)
    left, right = _span(x1 - dx, x2 + dx, size[1])
    top, bottom = _span(y1 - dy, y2 + dy, size[0])
    rows = _hat_weights(top, bottom, y1, y2, mask)  # (h, M)
    columns = _hat_weights(left, right, x1, x2, mask)  # (w, M)
    step = max(right - left, 1) if pixels is None else max(pixels // max(bottom - top, 1), 1)
    for start, strip in zip(range(left, right, step), columns.split(step)):
        yield Patch(top, start, rows @ mask @ strip.T)


def torchvision(mask: Tensor, box: Sequence[float], size: Size, pixels: int | None = None) -> Iterator[Patch]:
    """The same as torchvision's `paste_masks_in_image`: padded by one cell, resized to whole pixels, truncated; in one piece."""
    cells = mask.shape[-1]
    edges = torch.tensor([box])  # float32, as the truncation depends on it
    half = (edges[:, 2:] - edges[:, :2]) * 0.5 * ((cells + 2) / cells)
    centre = (edges[:, 2:] + edges[:, :2]) * 0.5
    x1, y1, x2, y2 = (int(v) for v in torch.cat([centre - half, centre + half], dim=1)[0].tolist())
    w, h = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    values = F.interpolate(F.pad(mask, (1,) * 4)[None, None], size=(h, w), mode="bilinear", align_corners=False)[0, 0]
    top, left = max(y1, 0), max(x1, 0)
    yield Patch(top, left, values[top - y1 : max(size[0] - y1, 0), left - x1 : max(size[1] - x1, 0)])


Way = Callable[[Tensor, Sequence[float], Size, int | None], Iterator[Patch]]
WAYS: dict[str, Way] = {"sampled": sampled, "torchvision": torchvision}


def _span(low: float, high: float, limit: int) -> tuple[int, int]:
    """First pixel, and the one behind the last, that an interval touches within an image; empty where it touches none."""
    first = min(max(math.floor(low), 0), limit)
    return first, max(min(math.ceil(high), limit), first)


def _hat_weights(start: int, stop: int, low: float, high: float, mask: Tensor) -> Tensor:
    """(n, M) weights of the cells of a mask from `low` to `high` at the centres of n pixels."""
    cells = mask.shape[-1]
    centres = torch.arange(start, stop, dtype=mask.dtype, device=mask.device) + 0.5
    places = (centres - low) / max(high - low, SMALLEST_SIDE) * cells - 0.5
    distances = places[:, None] - torch.arange(cells, dtype=mask.dtype, device=mask.device)
    return (1 - distances.abs()).clamp(min=0)


def run_lengths(patches: Iterable[Patch], size: Size) -> dict[str, object]:
    """COCO's compressed run lengths, as text, of an image that is set where patches (bool) are, made without that image.

    The patches are strips of one window from left to right.
    """
    places = np.concatenate([np.zeros(0, dtype=np.int64), *(_borders(patch, size[0]) for patch in patches)])
    again = places[1:] == places[:-1]  # a run that ends at the bottom and goes on at the top of the next column
    places = places[~(np.append(again, False) | np.insert(again, 0, False))] if len(places) else places
    counts = np.diff(np.union1d(places, [size[0] * size[1]]), prepend=0)
    compressed = coco_mask.frPyObjects({"size": list(size), "counts": counts.tolist()}, *size)
    return {"size": list(size), "counts": compressed["counts"].decode("ascii")}


def _borders(patch: Patch, height: int) -> np.ndarray:
    """Where runs begin and end, in turn, counted down the columns of an image of that height."""
    columns = patch.values.T.cpu().numpy().astype(np.int8)  # (w, h)
    steps = np.diff(np.pad(columns, ((0, 0), (1, 1))), axis=1)  # 1 at the first pixel of a run, -1 behind its last
    column, row = np.nonzero(steps)
    return (patch.left + column) * height + patch.top + row
