"""Drawing masks and skeletons that can be told apart, in time linear in the number of pixels and of detections."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from detector.records.region_masks import RegionMasks
from detector.structures import Detections

Colour = tuple[int, int, int]
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
OPACITY = 0.4  # of a mask, so that its object is seen
SHADE = 0.5  # what remains of the light of pixels around an object, for outlines on bright ground
BAND = 2**22  # pixels that are drawn at once
MOST_EDGE = 0.3  # of all masked pixels, under outlines; a crowd's are thinner


def draw_masks(picture: Image.Image, masks: RegionMasks, colours: Sequence[Colour], line: int) -> None:
    """Draw every mask translucent in its colour on an RGB picture, with outlines `line` wide.

    A pixel has the colour of one mask, that of the smallest box, however many overlap: a tie on a person is seen, and a crowd
    hides no more of the picture than one object. A large picture is drawn a band of rows after the other.
    """
    order = (masks.boxes[:, 2:] - masks.boxes[:, :2]).prod(dim=1).argsort(stable=True)
    masks = masks[order]
    palette = np.array(colours, dtype=np.float32).reshape(-1, 3)[order.numpy()]
    owners = functools.lru_cache(maxsize=1)(functools.partial(_owners, masks, picture.width))  # one band is made once
    while line > 1 and _edge_share(owners, len(masks), picture.size, line) > MOST_EDGE:
        line -= 1
    for top, owner, owned, edge, rim in _bands(owners, len(masks), picture.size, line):
        pixels = np.array(picture.crop((0, top, picture.width, top + len(owner))))
        pixels[rim] = SHADE * pixels[rim]
        opacity = np.where(edge, 1.0, OPACITY)[owned][:, None]
        pixels[owned] = (1 - opacity) * pixels[owned] + opacity * palette[owner[owned]]
        picture.paste(Image.fromarray(pixels), (0, top))


Owners = Callable[[int, int], np.ndarray]


def _edge_share(owners: Owners, none: int, picture: tuple[int, int], line: int) -> float:
    """The share of all masked pixels that lie under outlines."""
    counts = [(int(edge.sum()), int(owned.sum())) for _, _, owned, edge, _ in _bands(owners, none, picture, line)]
    edges, pixels = map(sum, zip(*counts))
    return edges / max(pixels, 1)


class Band(NamedTuple):
    """Rows of a picture."""

    top: int
    owner: np.ndarray
    """(h, w) the first mask at each pixel, and their number where there is none."""
    owned: np.ndarray
    """(h, w) where there is one."""
    edge: np.ndarray
    """(h, w) within each mask at its edge, of two that touch within the first."""
    rim: np.ndarray
    """(h, w) outside around all masks."""


def _bands(owners: Owners, none: int, picture: tuple[int, int], line: int) -> Iterator[Band]:
    """The picture (width, height) from top to bottom; `owners` gives the masks at its pixels, and `none` where there are none.

    Outlines reach `line` pixels, so that as many rows more are looked at.
    """
    width, height = picture
    rows = max(BAND // width, 1)
    for top in range(0, height, rows):
        first, end = max(top - line, 0), min(top + rows + line, height)
        owner = owners(first, end)
        owned = owner < none
        edge, rim = _borders(owner, owned, line)
        inner = slice(top - first, min(top + rows, height) - first)
        yield Band(top, owner[inner], owned[inner], edge[inner], rim[inner])


def _owners(masks: RegionMasks, width: int, first: int, end: int) -> np.ndarray:
    """(end - first, width) the first mask at each pixel of these rows, and their number where there is none."""
    owner = np.full((end - first, width), len(masks), dtype=np.int32)
    low, high = masks.boxes[:, 1], masks.boxes[:, 3]
    reach = (high - low) / masks.probabilities.shape[-1]  # a mask reaches beyond its box by half a cell
    near = torch.where((low - reach < end) & (high + reach > first))[0]
    moved = masks.boxes[near] - torch.tensor([0.0, first, 0.0, first])
    there = replace(masks[near], boxes=moved, size=(end - first, width))
    for place, (top, left, values) in there.patches():
        h, w = values.shape
        window = owner[top : top + h, left : left + w]
        window[values.numpy() & (window == len(masks))] = int(near[place])
    return owner


def _borders(owner: np.ndarray, owned: np.ndarray, line: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels within each mask at its edge, of two that touch within the first, and those outside around all masks."""
    rows = torch.from_numpy(owner).float()[None]
    edge = owned & (_greatest(rows, line)[0].numpy() > owner)
    around = _greatest(torch.from_numpy(owned).float()[None], (line + 1) // 2)[0].numpy() > 0
    return edge, around & ~owned


def _greatest(x: Tensor, reach: int) -> Tensor:
    """The greatest value within `reach` pixels, of (1, h, w)."""
    side = 2 * reach + 1
    across = F.max_pool2d(x, (1, side), stride=1, padding=(0, reach))
    return F.max_pool2d(across, (side, 1), stride=1, padding=(reach, 0))


def draw_keypoints(pen: ImageDraw.ImageDraw, found: Detections, colours: Sequence[Colour], line: int) -> None:
    """Bones in the colour of each detection, then its visible points; thinner in small boxes, the best on top."""
    assert found.keypoints is not None
    bones = found.keypoints.skeleton
    longest = (found.boxes[:, 2:] - found.boxes[:, :2]).amax(dim=1)
    rows = zip(found.keypoints.points.tolist(), (found.keypoints.visible > 0).tolist(), longest.tolist(), colours)
    for points, visible, side, colour in reversed(list(rows)):
        width = max(1, min(line, round(side / 60)))
        seam = min((line + 1) // 2, width)
        seen = [(tuple(points[a]), tuple(points[b])) for a, b in bones if visible[a] and visible[b]]
        for shade, thickness in ((BLACK, width + 2 * seam), (colour, width)):
            for ends in seen:
                pen.line(ends, fill=shade, width=thickness)
        radius = max(1, min(line + seam, round(side / 60)))
        for (x, y), there in zip(points, visible):
            if there:
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), WHITE, BLACK, int(radius > 1))
