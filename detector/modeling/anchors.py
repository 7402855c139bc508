"""Anchors: the boxes that the RPN starts from (Faster R-CNN sec. 3.1.1, FPN sec. 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from detector.modeling.shapes import constants
from detector.records.record import on_device
from detector.schema.ranges import Range
from detector.schema.signatures import checked

CACHED = 80  # maps, 16 sizes of five levels: all the sizes of multi-scale training would take a gigabyte


def cell_anchors(
    sizes: Sequence[float], ratios: Sequence[float], *, rounded: bool = False, ratio_major: bool = False
) -> Tensor:
    """The A anchors of one cell, centred on the origin: (A, 4) xyxy.

    A size is sqrt(area) in input pixels, a ratio is h / w. Anchor index = size * len(ratios) + ratio, as in Detectron2;
    `ratio_major` swaps the two, as in torchvision and mmdetection. `rounded` (torchvision) moves the corners to
    whole pixels, half to even.
    """
    size = torch.tensor(sizes, dtype=torch.float32)[:, None]  # (S, 1)
    ratio = torch.tensor(ratios, dtype=torch.float32)[None, :]  # (1, R)
    w, h = size / ratio.sqrt(), size * ratio.sqrt()  # (S, R) so that w * h == size**2
    cell = torch.stack([-w, -h, w, h], dim=-1) / 2  # (S, R, 4)
    cell = cell.transpose(0, 1) if ratio_major else cell
    cell = cell.reshape(-1, 4)
    return cell.round() if rounded else cell


def grid_anchors(cell: Tensor, height: int, width: int, stride: tuple[int, int], offset: float = 0.0) -> Tensor:
    """Tile (A, 4) cell anchors over an H x W map: (H*W*A, 4), anchor index fastest.

    Cell (i, j) is centred on pixel ((i + offset) * stride_y, (j + offset) * stride_x).
    """
    y = (torch.arange(height, dtype=torch.float32, device=cell.device) + offset) * stride[0]
    x = (torch.arange(width, dtype=torch.float32, device=cell.device) + offset) * stride[1]
    cy, cx = torch.meshgrid(y, x, indexing="ij")  # (H, W) each
    shift = torch.stack([cx, cy, cx, cy], dim=-1)  # (H, W, 4)
    return (shift[:, :, None] + cell).reshape(-1, 4)


def inside_border(anchors: Tensor, size: tuple[int, int], border: float) -> Tensor:
    """(A, 4) -> (A,) bool: anchors that leave the (h, w) image by at most `border` pixels (Faster R-CNN sec. 3.3).

    On the right and below by less, as in Detectron2 and mmdetection.
    """
    h, w = size
    low, high = anchors[:, :2] >= -border, anchors[:, 2:] < constants([w, h], anchors) + border
    return (low & high).all(dim=-1)


def inside_padding(anchors: Tensor, size: tuple[int, int]) -> Tensor:
    """(A, 4) -> (A,) bool: anchors whose centre lies in the (h, w) image, its right and lower border left out."""
    h, w = size
    x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).unbind(dim=-1)
    return (x < w - 0.01) & (y < h - 0.01)  # a centre on the border may come out a little below it


Side = Annotated[float, Range(1, 1e5)]
Ratio = Annotated[float, Range(1e-3, 1e3)]


@checked
class AnchorGenerator(nn.Module):
    """Anchors of every level of a pyramid.

    Args:
        strides: pixels between two cells of each level.
        sizes: per level, one or several sides of a square with an anchor's area, in pixels.
        ratios: height / width of the anchors.
        rounded: whole-pixel corners around the cell's centre, as in torchvision.
        ratio_major: anchors of one ratio follow each other, as in torchvision and MMDetection; otherwise those of one size.
        strides_from_image: floor(padded image / map) instead of `strides`, as in torchvision: 61 rather than 64 on the P6 of an
            image 800 pixels high.
    """

    def __init__(
        self,
        strides: Sequence[int],
        sizes: Sequence[Sequence[Side]] = ((32,), (64,), (128,), (256,), (512,)),
        ratios: Sequence[Ratio] = (0.5, 1.0, 2.0),
        *,
        rounded: bool = False,
        ratio_major: bool = False,
        strides_from_image: bool = False,
    ):
        super().__init__()
        if len(sizes) != len(strides):
            raise ValueError(f"sizes: {len(sizes)} lists of anchor sizes for {len(strides)} pyramid levels")
        if len({len(s) for s in sizes}) != 1 or not sizes[0] or not ratios:
            raise ValueError("sizes: one head serves all levels, so each needs the same number of sizes, and a ratio")
        self.strides, self.sizes, self.ratios = tuple(strides), [list(s) for s in sizes], list(ratios)
        self.rounded, self.ratio_major, self.strides_from_image = rounded, ratio_major, strides_from_image
        self.per_cell = len(sizes[0]) * len(ratios)
        self._cells = [cell_anchors(s, ratios, rounded=rounded, ratio_major=ratio_major) for s in sizes]
        self._cache: dict[tuple, Tensor] = {}

    def with_shapes(self, sizes: Sequence[Sequence[float]], ratios: Sequence[float]) -> AnchorGenerator:
        """The same but for sizes and ratios."""
        return AnchorGenerator(
            self.strides, sizes, ratios, rounded=self.rounded, ratio_major=self.ratio_major,
            strides_from_image=self.strides_from_image,
        )  # fmt: skip

    @torch.inference_mode(False)  # a cached tensor must serve training after a first call under inference_mode
    def forward(self, maps: list[Tensor], padded_size: tuple[int, int]) -> list[Tensor]:
        """Maps (N, C, H, W) of all levels, (h, w) of the padded batch -> per level (H*W*A, 4), made once per size."""
        return [
            self._level(level, p.shape[-2:], self._step(stride, padded_size, p.shape[-2:]), p.device)
            for level, (stride, p) in enumerate(zip(self.strides, maps, strict=True))
        ]

    def _step(self, stride: int, padded: tuple[int, int], size: torch.Size) -> tuple[int, int]:
        return (padded[0] // size[0], padded[1] // size[1]) if self.strides_from_image else (stride, stride)

    def _level(self, level: int, size: torch.Size, step: tuple[int, int], device: torch.device) -> Tensor:
        if any(isinstance(side, torch.SymInt) for side in size):  # an export for images of any size
            return grid_anchors(on_device(self._cells[level], device), size[0], size[1], step)
        key = (level, tuple(size), step, device)
        if key not in self._cache:
            if len(self._cache) == CACHED:
                self._cache.pop(next(iter(self._cache)))  # the oldest
            self._cache[key] = grid_anchors(on_device(self._cells[level], device), size[0], size[1], step)
        return self._cache[key]
