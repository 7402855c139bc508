"""RoIAlign (He et al. 2017, arXiv 1703.06870, sec. 3), each region on the level of its size (FPN sec. 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align as torchvision_roi_align

from detector.modeling.layers import log2_stride
from detector.modeling.levels import Rounding, fpn_level
from detector.modeling.roi_heads.points import grid_points, in_image, read_points
from detector.modeling.shapes import is_portable, may_look
from detector.schema.ranges import Range
from detector.schema.signatures import checked

Levels = Annotated[int, Range(1, 100)]
Size = Annotated[int, Range(1, 64)]  # cells of a pooled region
Samples = Annotated[int, Range(0, 16)]  # sampling points per bin and axis


class RegionPool(nn.Module):
    """RoIAlign of regions on the finest `levels` maps of a pyramid; the subclasses say which of them a region is read from.

    Args:
        channels: of every level.
        strides: of every level, in pixels.
        levels: how many levels, from the finest, regions are read from.
        size: cells of a pooled region along each side.
        samples: sampling points per bin and axis; 0: as many as the bin has cells, by torchvision's kernel.
        aligned: the half-pixel shift of Detectron2's ROIAlignV2.
    """

    branches = 1  # maps per region that the box head gets

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], *, levels: int, size: int, samples: int, aligned: bool
    ):
        super().__init__()
        if not 1 <= levels <= len(strides):
            raise ValueError(f"levels: {levels} wanted, the neck makes {len(strides)}, of strides {list(strides)}")
        self.channels, self.strides = channels[0], list(strides[:levels])
        self.size, self.samples, self.aligned = size, samples, aligned

    def _align(self, x: Tensor, rois: Tensor, stride: int) -> Tensor:
        if self.samples > 0 and x.device.type == "cpu" and not is_portable():
            return roi_align(x, rois, self.size, 1 / stride, self.samples, self.aligned)
        args = (rois, self.size, 1 / stride, self.samples, self.aligned)
        return torchvision_roi_align(x.float().contiguous(), *args).to(x.dtype)


@checked
class RoIPool(RegionPool):
    """Regions -> (R, C, size, size), each from the level of its size (FPN eq. 1).

    Args:
        channels: of every level.
        strides: of every level, in pixels; they must double.
        levels: how many levels, from the finest, regions are read from.
        size: cells of a pooled region along each side.
        samples: sampling points per bin and axis; 0: as many as the bin has cells, by torchvision's kernel.
        aligned: the half-pixel shift of Detectron2's ROIAlignV2.
        k0: the level of a region whose side is `canonical_size`.
        canonical_size: that side in pixels, 224 for an ImageNet crop.
        level_rounding: the framework whose rounding decides about regions less than 1e-3 pixels below a level's least side.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        levels: Levels = 4,
        size: Size = 7,
        samples: Samples = 2,
        aligned: bool = True,
        k0: Annotated[int, Range(-30, 30)] = 4,
        canonical_size: Annotated[float, Range(1, 1e5)] = 224,
        level_rounding: Rounding = "detectron2",
    ):
        super().__init__(channels, strides, levels=levels, size=size, samples=samples, aligned=aligned)
        if any(coarse != 2 * fine for fine, coarse in pairwise(self.strides)):
            raise ValueError(
                f"a region goes to the level of its size, so the levels' strides must double, not {self.strides}; a dilated C5 "
                "works alone: neck {type: single}, pool {levels: 1}"
            )
        self.k0, self.canonical_size, self.level_rounding = k0, canonical_size, level_rounding

    def forward(self, p: list[Tensor], rois: Tensor) -> Tensor:
        """Levels (N, C, H, W) and (R, 5) rois [image, x1, y1, x2, y2] -> (R, C, size, size)."""
        level, k_min = self.level_of(rois[:, 1:]), log2_stride(self.strides[0])
        if not may_look(rois.device) and not is_portable():
            out = self._align(p[0], rois, self.strides[0])
            for k, (x, stride) in enumerate(zip(p[1:], self.strides[1:]), start=k_min + 1):
                out = torch.where((level == k)[:, None, None, None], self._align(x, rois, stride), out)
            return out
        shape = (len(rois), self.channels, self.size, self.size)
        out = torch.empty(shape, dtype=p[0].dtype, device=rois.device)
        for k, (x, stride) in enumerate(zip(p, self.strides), start=k_min):
            here = torch.where(level == k)[0]
            # in place: a copy of `out` would cost as much as RoIAlign
            out.index_copy_(0, here, self._align(x, rois[here], stride))
        return out

    def level_of(self, boxes: Tensor) -> Tensor:
        """The level k (R,) of stride 2**k that each of the boxes (R, 4) is read from."""
        k_min, k_max = (log2_stride(s) for s in (self.strides[0], self.strides[-1]))
        return fpn_level(boxes, k_min, k_max, self.k0, self.canonical_size, self.level_rounding)


@checked
class AllLevelPool(RegionPool):
    """Adaptive feature pooling (Liu et al. 2018, PANet, sec. 3.2): every region is read from every level.

    Returns `levels` maps of each region, finest first, for a box head that fuses them.

    Args:
        channels: of every level.
        strides: of every level, in pixels.
        levels: how many levels, from the finest, regions are read from.
        size: cells of a pooled region along each side.
        samples: sampling points per bin and axis; 0: as many as the bin has cells, by torchvision's kernel.
        aligned: the half-pixel shift of Detectron2's ROIAlignV2.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], *, levels: Annotated[int, Range(2, 100)] = 4, size: Size = 7,
        samples: Samples = 2, aligned: bool = True,
    ):  # fmt: skip
        super().__init__(channels, strides, levels=levels, size=size, samples=samples, aligned=aligned)
        self.branches = len(self.strides)

    def forward(self, p: list[Tensor], rois: Tensor) -> list[Tensor]:
        """Levels (N, C, H, W) and (R, 5) rois -> per level (R, C, size, size)."""
        return [self._align(x, rois, stride) for x, stride in zip(p, self.strides)]


@checked
class PointPool(nn.Module):
    """Regions -> (R, C, size, size), read at the centres of their cells on the finest level (PointRend sec. 4.1).

    As RoIAlign with one sample a cell, but what lies beyond the map is 0.

    Args:
        channels: of every level.
        strides: of every level, in pixels.
        size: cells of a pooled region along each side.
    """

    branches = 1

    def __init__(self, channels: Sequence[int], strides: Sequence[int], *, size: Size = 14):
        super().__init__()
        self.channels, self.stride, self.size = channels[0], strides[0], size

    def forward(self, p: list[Tensor], rois: Tensor) -> Tensor:
        """Levels (N, C, H, W) and (R, 5) rois [image, x1, y1, x2, y2] -> (R, C, size, size)."""
        points = in_image(grid_points(self.size, rois.device).expand(len(rois), -1, -1), rois[:, 1:])
        read = read_points(p[0], rois[:, 0].long(), points / self.stride)  # (R, size * size, C)
        return read.transpose(1, 2).unflatten(2, (self.size, self.size))


def roi_align(x: Tensor, rois: Tensor, size: int, scale: float, samples: int, aligned: bool) -> Tensor:
    """(N, C, H, W), (R, 5) -> (R, C, size, size): every bin is the mean of samples x samples bilinear readings.

    Each reading is a weighted sum of four cells, so a bin is a weighted sum of 4 * samples**2 rows of the channels-last
    map, and a gather of rows keeps a CPU's vector units busy where torchvision's kernel walks one channel at a time
    (about four times as fast, and it runs in bfloat16).
    """
    _, c, height, width = x.shape
    half = 0.5 if aligned else 0.0
    low, high = rois[:, 1:3] * scale - half, rois[:, 3:5] * scale - half  # (R, 2) x, y
    side = high - low if aligned else (high - low).clamp(min=1)
    cols, wx = _taps(low[:, 0], side[:, 0], size, samples, width)  # (R, size, 2 * samples)
    rows, wy = _taps(low[:, 1], side[:, 1], size, samples, height)
    rows = rows + rois[:, 0].long()[:, None, None] * height  # the images lie below one another
    index = rows[:, :, None, :, None] * width + cols[:, None, :, None, :]  # (R, size, size, 2*samples, 2*samples)
    weight = wy[:, :, None, :, None] * wx[:, None, :, None, :] / samples**2
    taps = (2 * samples) ** 2
    cells = x.permute(0, 2, 3, 1).reshape(-1, c)  # (N*H*W, C), a view if x is channels-last
    bins = F.embedding_bag(
        index.reshape(-1, taps), cells, mode="sum", per_sample_weights=weight.reshape(-1, taps).to(x.dtype)
    )
    return bins.view(len(rois), size, size, c).permute(0, 3, 1, 2)


def _taps(start: Tensor, side: Tensor, size: int, samples: int, limit: int) -> tuple[Tensor, Tensor]:
    """Along one axis: start (R,), side (R,) in cells -> the cells that each bin reads and their weights.

    Both (R, size, 2 * samples), below and above of every sampling point. A point more than one cell outside reads 0.
    """
    offset = (torch.arange(size * samples, device=start.device, dtype=start.dtype) + 0.5) / samples  # in bins
    point = start[:, None] + offset * (side / size)[:, None]  # (R, size * samples)
    valid = (point >= -1) & (point <= limit)
    point = point.clamp(0, limit - 1)
    below = point.floor()
    share = point - below
    above = (below + 1).clamp(max=limit - 1)
    index = torch.stack([below, above], dim=-1).long()
    weight = torch.stack([1 - share, share], dim=-1) * valid[..., None]
    return index.view(-1, size, 2 * samples), weight.view(-1, size, 2 * samples)
