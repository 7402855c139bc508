"""Drawing masks and skeletons that can be told apart, in time linear in the number of pixels and of detections."""

from __future__ import annotations

from collections.abc import Sequence

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
MOST_EDGE = 0.3  # of all masked pixels, under outlines; a crowd's are thinner


def draw_masks(picture: Image.Image, masks: RegionMasks, colours: Sequence[Colour], line: int) -> Image.Image:
    """The picture with every mask translucent in its colour, and with outlines `line` wide.

    A pixel has the colour of one mask, that of the smallest box, however many overlap: a tie on a person is seen, and a crowd
    hides no more of the picture than one object.
    """
    order = (masks.boxes[:, 2:] - masks.boxes[:, :2]).prod(dim=1).argsort(stable=True)
    owner = _owners(masks[order], picture.height, picture.width)
    owned = owner < len(masks)
    edge, rim = _borders(owner, owned, line)
    while line > 1 and edge.sum() > MOST_EDGE * owned.sum():
        line -= 1
        edge, rim = _borders(owner, owned, line)
    pixels = np.asarray(picture.convert("RGB")).copy()
    pixels[rim] = SHADE * pixels[rim]
    palette = np.array(colours, dtype=np.float32).reshape(-1, 3)[order.numpy()]
    opacity = np.where(edge, 1.0, OPACITY)[owned][:, None]
    pixels[owned] = (1 - opacity) * pixels[owned] + opacity * palette[owner[owned]]
    return Image.fromarray(pixels)


def _owners(masks: RegionMasks, height: int, width: int) -> np.ndarray:
    """(h, w) the first mask at each pixel, and their number where there is none."""
    owner = np.full((height, width), len(masks), dtype=np.int32)
    for row, (top, left, values) in masks.patches():
        h, w = values.shape
        window = owner[top : top + h, left : left + w]
        window[values.numpy() & (window == len(masks))] = row
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
