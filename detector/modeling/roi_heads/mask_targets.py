"""What the mask of a region is compared with in training (He et al. 2017, Mask R-CNN, sec. 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from detector.modeling.roi_heads.stage import Regions
from detector.records.geometry import Size
from detector.records.record import on_device
from detector.schema.ranges import Range
from detector.schema.signatures import checked
from detector.structures import Target


@checked
@dataclass(frozen=True)
class MaskTargets:
    """The part of the matched object's mask that lies in a region, at the resolution of the head.

    The defaults are those of Detectron2 with bitmaps, which learns as well from them as from polygons.
    """

    source: Literal["masks", "outlines"] = "masks"
    """Bitmaps of the image's size, read by RoIAlign, or outlines, rasterised in the region alone (Detectron2's default)."""
    aligned: bool = True
    """The half-pixel shift of RoIAlign; torchvision has none."""
    soft: bool = False
    """The covered share of a cell, as torchvision; otherwise 1 if it is at least a half, and 0 below."""
    padded: bool = False
    """Bitmaps end where the padded batch ends, as in MMDetection, not with their image: it matters at the border."""
    min_side: Annotated[float, Range(1e-3, 100)] = 0.1
    """Outlines are rasterised as if a region's sides had at least this many pixels: 0.1 in Detectron2, 1 in MMDetection."""

    @property
    def target_fields(self) -> tuple[str, ...]:
        """The field of Target that is read."""
        return (self.source,)

    @torch.no_grad()
    def __call__(self, regions: Regions, target: Target, side: int, canvas: Size) -> Tensor:
        """The targets (P, side, side), 0..1, of the positive `regions` of an image; `canvas` is the size of the batch."""
        boxes, rows = regions.boxes, regions.gt_index
        if self.source == "outlines":
            assert target.outlines is not None  # GeneralizedRCNN has checked it
            bits = target.outlines.in_boxes(boxes.cpu(), rows.cpu(), side, self.min_side)
            return on_device(bits, boxes.device, boxes.dtype)
        assert target.masks is not None
        masks = target.masks
        if self.padded:
            masks = F.pad(masks, (0, canvas[1] - masks.shape[2], 0, canvas[0] - masks.shape[1]))
        shares = bitmap_shares(masks, boxes, rows, side, aligned=self.aligned)
        return shares if self.soft else (shares >= 0.5).to(shares.dtype)


def bitmap_shares(masks: Tensor, boxes: Tensor, rows: Tensor, side: int, *, aligned: bool) -> Tensor:
    """The share (P, side, side) of each cell of the `boxes` (P, 4) that the bitmaps `masks[rows]` of (G, h, w) cover.

    A bin is read at as many points as it has pixels, which torchvision's kernel alone does.
    """
    rois = torch.cat([rows[:, None].to(boxes.dtype), boxes], dim=1)
    return roi_align(masks[:, None].to(boxes.dtype), rois, side, 1.0, -1, aligned)[:, 0]
