"""The detections of several overlapping windows of one image become those of the image.

An object in the overlap of two tiles is found twice; one at a border is found in parts, which have a small IoU with the whole
object. So a part is compared by intersection over the smaller box (as SAHI does, Akyon et al. 2022, arXiv 2202.06934, sec. 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from detector.modeling.boxes import box_area, intersection
from detector.records.geometry import Size, Window
from detector.structures import Detections

EDGE = 0.01  # a box that ends within this share of a tile's side from its border may be cut by it


def are_cut(boxes: Tensor, window: Window, image: Size) -> Tensor:
    """(D, 4) boxes in the pixels of a window -> (D,) bool: they reach a border of it that is no border of the image (h, w)."""
    top, left, h, w = window
    inner = torch.tensor([left > 0, top > 0, left + w < image[1], top + h < image[0]])
    margin = torch.tensor([w, h]) * EDGE
    reached = torch.cat([boxes[:, :2] <= margin, boxes[:, 2:] >= torch.tensor([w, h]) - margin], dim=1)
    return (reached & inner).any(dim=1)


def merge_windows(found: Sequence[Detections], windows: Sequence[Window], image: Size, *, iou: float,
                  across_classes: bool = False) -> Detections:  # fmt: skip
    """The detections in the pixels of each window as those of an image of size (h, w), best first.

    A box that is whole in its window goes before all that are cut by its border, and a better one before others. In this order
    each removes the later ones, of other windows and of its class, that overlap with it by more than `iou`: by the
    intersection over the smaller box where the smaller one is cut, else over the union. Equal scores stay in the order of the
    windows, so that the result is the same in every run. Scores do not change.

    Args:
        found: the detections of each window, on the CPU.
        windows: where they are in the image.
        image: its size.
        iou: the overlap from which two detections are one.
        across_classes: compare boxes of all classes with each other.
    """
    cut = torch.cat([are_cut(d.boxes, window, image) for d, window in zip(found, windows)])
    view = torch.arange(len(found)).repeat_interleave(torch.tensor([len(d) for d in found]))
    together = Detections.joined([d.placed(window, image) for d, window in zip(found, windows)])
    order = together.scores.argsort(descending=True, stable=True)
    order = order[cut[order].long().argsort(stable=True)]  # the whole ones first
    group = torch.zeros_like(together.labels) if across_classes else together.labels
    earlier, later = _overlapping(together.boxes[order], group[order], cut[order], view[order], iou)
    left = torch.from_numpy(_left(len(order), earlier, later))
    return together[order[left].sort().values].sort()


def _overlapping(boxes: Tensor, group: Tensor, cut: Tensor, view: Tensor, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows of pairs of boxes (D, 4) that are one object, the earlier and the later of each.

    One window after the other is compared with what touches it, as all pairs would not fit into memory.
    """
    area = box_area(boxes)
    pairs: list[tuple[Tensor, Tensor]] = [(view[:0], view[:0])]
    for own in (torch.where(view == number)[0] for number in view.unique()):
        reach = torch.cat([boxes[own, :2].amin(dim=0), boxes[own, 2:].amax(dim=0)])
        others = (view != view[own[0]]) & (boxes[:, :2] < reach[2:]).all(dim=1) & (boxes[:, 2:] > reach[:2]).all(dim=1)
        other = torch.where(others & (torch.arange(len(boxes)) > own[0]))[0]
        a, b = area[own][:, None], area[other]
        shared = intersection(boxes[own], boxes[other])
        part = (cut[own][:, None] & (a <= b)) | (cut[other] & (b <= a))  # the smaller one is cut
        limit = torch.where(part, torch.minimum(a, b), a + b - shared) * iou
        alike = (shared > limit) & (group[own][:, None] == group[other]) & (own[:, None] < other)
        rows, columns = alike.nonzero().unbind(dim=1)
        pairs.append((own[rows], other[columns]))
    earlier, later = (torch.cat(rows).numpy() for rows in zip(*pairs))
    return earlier, later


def _left(count: int, earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
    """(count,) bool: the rows that no row which is itself left removes."""
    by_row = np.argsort(earlier, kind="stable")
    ends = np.searchsorted(earlier[by_row], np.arange(count + 1))
    left = np.ones(count, dtype=bool)
    for row in np.unique(earlier):
        if left[row]:
            left[later[by_row[ends[row] : ends[row + 1]]]] = False
    return left
