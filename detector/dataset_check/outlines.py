"""Checks of valid outlines: points, crossings, and whether box and area of the annotation agree with them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from detector.data.box_arrays import ROUNDING
from detector.dataset_check.checked_split import CheckedSplit
from detector.dataset_check.findings import Findings
from detector.records.raster import polygon_area

LEAST_IOU = 0.6  # of a box and the box around the outline; hidden parts count in many boxes and in few outlines
PIXELS = 2  # by which the two may differ whatever the IoU
LARGEST_RATIO = 1.5  # of two areas
MOST_POINTS = 2000  # of a polygon that is looked at for crossings, which takes the square of it


def check_outlines(split: CheckedSplit, findings: Findings) -> None:
    """Judge the outline of every object and crowd region that has one."""
    found: dict[str, dict[int, str]] = {}
    boxes, drawable = torch.from_numpy(split.clipped_boxes()).float(), split.outlines.drawable().tolist()
    for row in np.flatnonzero(np.diff(split.outlines.object_ends) + np.diff(split.outlines.run_ends)).tolist():
        for kind, note in _faults(split, row, boxes[row : row + 1], is_drawable=drawable[row]):
            found.setdefault(kind, {})[row] = note
    for kind, notes in found.items():
        findings.add(kind, split.name, [*notes.items()], lambda fault: split.box_place(fault[0], note=fault[1]))


def _faults(split: CheckedSplit, row: int, box: Tensor, *, is_drawable: bool) -> list[tuple[str, str]]:
    """Kind and note of each fault of an outline, whose annotation has the box (1, 4) in its image."""
    outline, parts = split.outlines[row], split.outlines.parts(row)
    h, w = outline.sizes[0].tolist()
    area = float(outline.areas()[0])
    crossings = sum(map(count_crossings, parts))  # the areas on both sides of one cancel out
    if not is_drawable or not (area or crossings):
        return [("outline without area", _why_empty(parts))]
    faults = []
    short = sum(len(part) < 3 for part in parts)
    if short:
        faults.append(("outline without area", f"{short} of its {len(parts)} parts have fewer than 3 points"))
    beyond = sum(int(((part < -ROUNDING) | (part > [w + ROUNDING, h + ROUNDING])).any(axis=1).sum()) for part in parts)
    if beyond:
        faults.append(("outline outside image", f"{beyond} of {sum(map(len, parts))} points in {w} x {h}"))
    if crossings:
        faults.append(("self-crossing outline", f"{crossings} crossing{'s' if crossings > 1 else ''}"))
    return faults + _disagreements(split, row, box, outline.boxes(), area, is_simple=not crossings and not beyond)


def _why_empty(parts: list[np.ndarray]) -> str:
    if not parts:
        return "its run lengths hold no pixel"
    if all(len(part) < 3 for part in parts):
        return f"its parts have {', '.join(str(len(part)) for part in parts)} points"
    return "its points lie in a line" if not sum(map(polygon_area, parts)) else "no part of it reaches into the image"


def _disagreements(
    split: CheckedSplit, row: int, box: Tensor, around: Tensor, area: float, *, is_simple: bool
) -> list[tuple[str, str]]:
    faults = []
    if box_iou(box, around).item() < LEAST_IOU and (box - around).abs().max() > PIXELS:
        edges = ", ".join(f"{x:g}" for x in around[0].tolist())
        faults.append(("outline unlike box", f"the outline lies in x1, y1, x2, y2 = {edges}"))
    said, (x1, y1, x2, y2) = split.areas[row], split.boxes[row]
    is_of_box = abs(said - (x2 - x1) * (y2 - y1)) <= 1e-3 * said  # as where the file gives none
    if is_simple and not is_of_box and not said / LARGEST_RATIO <= area <= said * LARGEST_RATIO:
        faults.append(("outline unlike area", f"`area` is {said:g}, the outline has {area:g}"))
    return faults


def count_crossings(part: np.ndarray) -> int:
    """Pairs of edges of a polygon (n, 2) that cross; edges that only touch do not. 0 above MOST_POINTS."""
    if not 3 < len(part) <= MOST_POINTS:
        return 0
    start, end = part, np.roll(part, -1, axis=0)

    def side(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        ab, ac = b - a, c - a
        return ab[..., 0] * ac[..., 1] - ab[..., 1] * ac[..., 0]

    a, b, c, d = start[:, None], end[:, None], start[None], end[None]
    apart = (side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)  # (n, n)
    return int(np.triu(apart, 1).sum())
