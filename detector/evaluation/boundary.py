"""Boundary IoU (Cheng et al. 2021, arXiv 2103.16562): the IoU of what lies within a few pixels of the edge of each mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from detector.records.geometry import Size
from detector.records.pasting import Patch, run_lengths

RELATIVE_WIDTH = 0.02  # of the boundary, in diagonals of the image; the paper's for COCO


class BoundaryEvaluation(COCOeval):
    """COCOeval of masks whose IoU is the lesser of mask IoU and boundary IoU, as the paper's AP takes it."""

    def computeIoU(self, imgId: int, catId: int) -> Any:
        """(D, G), the detections best first."""
        ious = super().computeIoU(imgId, catId)
        objects, found = self._gts[imgId, catId], self._dts[imgId, catId]
        if not objects or not found:
            return ious
        order = np.argsort([-d["score"] for d in found], kind="mergesort")[: self.params.maxDets[-1]]
        # a lesser one cannot match, whatever its boundary: that saves most boundaries
        candidates = np.asarray(ious) >= self.params.iouThrs[0]
        rows, columns = np.flatnonzero(candidates.any(axis=1)), np.flatnonzero(candidates.any(axis=0))
        if len(rows):
            edges = coco_mask.iou(
                [boundary(found[order[row]]["segmentation"]) for row in rows],
                [boundary(objects[column]["segmentation"]) for column in columns],
                [int(objects[column]["iscrowd"]) for column in columns],
            )
            both = np.ix_(rows, columns)
            ious[both] = np.minimum(ious[both], edges)
        return ious


def boundary(rle: dict[str, Any]) -> dict[str, Any]:
    """The pixels of a mask within a distance of its edge; the border of the image is an edge, too. Both are run lengths.

    The distance is the greater of a row's and a column's, RELATIVE_WIDTH of the image's diagonal, at least one pixel.
    """
    size: Size = (int(rle["size"][0]), int(rle["size"][1]))
    width = max(round(RELATIVE_WIDTH * float(np.hypot(*size))), 1)
    left, top, w, h = (int(v) for v in coco_mask.toBbox(rle))
    mask = coco_mask.decode(rle)[top : top + h, left : left + w]
    return run_lengths(Patch(top, left, torch.from_numpy(mask.astype(bool) & ~eroded(mask, width))), size)


def eroded(mask: np.ndarray, width: int) -> np.ndarray:
    """(h, w) bool: pixels whose neighbours within `width` rows and columns are all set; there are none beyond the array."""
    side, (h, w) = 2 * width + 1, mask.shape
    inner = np.zeros((h, w), dtype=bool)
    if h < side or w < side:
        return inner
    sums = np.pad(mask.cumsum(axis=0, dtype=np.int32).cumsum(axis=1), ((1, 0), (1, 0)))
    set_ones = sums[side:, side:] - sums[side:, :-side] - sums[:-side, side:] + sums[:-side, :-side]
    inner[width : h - width, width : w - width] = set_ones == side**2
    return inner
