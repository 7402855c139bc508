"""How well anchors can fit the objects, and better ones by k-means over the objects' shapes.

k-means with 1 - IoU for a distance is that of YOLO9000 (Redmon and Farhadi 2017, arXiv 1612.08242, sec. 2).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from detector.dataset_check.scale import Geometry, Scaled, best_iou

LEAST_BOXES = 50  # fewer are not representative
MOST_SHAPES = 20_000  # for k-means; larger sets are subsampled evenly
ROUNDS = 100
SPACE = 4  # strides: smaller anchors miss objects between cells; those of FPN are eight strides wide
LOW_RECALL, LOW_IOU, MANY = 0.3, 0.5, 0.25  # less recall, or more than MANY objects below LOW_IOU, is worth a word
CLEARLY = 0.02  # gain in recall or mean IoU that counts


@dataclass
class AnchorFit:
    """Anchors and how well they can fit the objects."""

    sizes: list[list[float]]  # per level
    ratios: list[float]
    recall: float  # share of objects whose best anchor has IoU >= model.rpn.matching.pos_iou
    mean_iou: float  # of the best anchors
    far: float  # share of objects whose best anchor has IoU < LOW_IOU
    classes: np.ndarray = field(repr=False)  # the recall of every class of LEAST_BOXES objects at least

    def config_line(self) -> str:
        """As a line of a configuration."""
        return f"model: {{rpn: {{anchors: {self._section()}}}}}"

    def yaml(self) -> str:
        """As a configuration file that names its base."""
        return f"model:\n  rpn:\n    anchors:\n      sizes: {json.dumps(self.sizes)}\n      ratios: {json.dumps(self.ratios)}\n"

    def override(self) -> str:
        """As an argument of a command."""
        return f"'model.rpn.anchors={self._section()}'"

    def _section(self) -> str:
        return f"{{sizes: {json.dumps(self.sizes)}, ratios: {json.dumps(self.ratios)}}}"


def anchor_fit(geometry: Geometry, scaled: Scaled, sizes: list[list[float]], ratios: list[float]) -> AnchorFit:
    """Fit of anchors of these sizes and ratios; the values are NaN without objects."""
    best = best_iou(geometry, geometry.anchors.with_shapes(sizes, ratios), scaled)
    reached = best >= geometry.pos_iou
    counts = np.bincount(scaled.labels)
    frequent = np.flatnonzero(counts >= LEAST_BOXES)
    classes = np.bincount(scaled.labels, weights=reached)[frequent] / counts[frequent]
    return AnchorFit(sizes, ratios, _mean(reached), _mean(best), _mean(best < LOW_IOU), classes)


def reach_of_anchors(fit: AnchorFit, pos_iou: float) -> str | None:
    """The share of objects that anchors fit, where it is low; None where it is not, or without objects."""
    if not (fit.recall < LOW_RECALL or fit.far > MANY):
        return None
    reached = f"{fit.recall:.1%} of the objects have an anchor with IoU >= {pos_iou:g}"
    return f"{reached}, {fit.far:.1%} have none with IoU >= {LOW_IOU:g}"


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def propose_anchors(geometry: Geometry, scaled: Scaled, now: AnchorFit) -> AnchorFit | None:
    """Anchors of the same number that fit clearly better than those of `now` and no class clearly worse, if there are any.

    The sizes of all levels are clusters of the objects' sizes, the ratios clusters of their shapes at equal area; either
    alone is tried as well, and sizes that are no smaller than their level's stride allows.
    """
    if len(scaled.boxes) < LEAST_BOXES:
        return None
    sizes, ratios = _sizes(scaled, now.sizes), _ratios(scaled, len(now.ratios))
    spaced = [[max(size, SPACE * step) for size in level] for level, step in zip(sizes, geometry.anchors.strides)]
    choices = [(s, r) for s in (spaced, sizes, now.sizes) for r in (ratios, now.ratios)]
    fits = [anchor_fit(geometry, scaled, *choice) for choice in choices[:-1]]  # the last is the present one
    fair = [f for f in fits if (f.classes >= now.classes - CLEARLY).all()]
    best = max(fair, key=lambda f: (round(f.recall, 3), f.mean_iou), default=now)
    more, closer = best.recall - now.recall, best.mean_iou - now.mean_iou
    return best if more > CLEARLY or (more >= 0 and closer > CLEARLY) else None


def _sizes(scaled: Scaled, now: Sequence[Sequence[float]]) -> list[list[float]]:
    """As many sizes for every level as now, the smallest for the first."""
    side = np.sqrt(_sides(scaled).prod(axis=1))
    centres = np.sort(kmeans(np.stack([side, side], axis=1), len(now) * len(now[0]))[:, 0])
    return [[_rounded(x, 1, 1e5) for x in level] for level in centres.reshape(len(now), -1)]


def _ratios(scaled: Scaled, count: int) -> list[float]:
    """`count` ratios h / w."""
    sides = _sides(scaled)
    centres = kmeans(sides / np.sqrt(sides.prod(axis=1, keepdims=True)), count)
    return [_rounded(x, 1e-3, 1e3) for x in np.sort(centres[:, 1] / centres[:, 0])]


def _sides(scaled: Scaled) -> np.ndarray:
    """Width and height (b, 2) of at most MOST_SHAPES objects."""
    boxes = scaled.boxes[:: -(-len(scaled.boxes) // MOST_SHAPES)]
    return boxes[:, 2:] - boxes[:, :2]


def _rounded(value: float, least: float, most: float) -> float:
    """Three significant digits, within the limits."""
    return float(f"{min(max(value, least), most):.3g}")


def kmeans(shapes: np.ndarray, k: int) -> np.ndarray:
    """k centres (k, 2) of shapes (b, 2) w, h, each the median of the shapes nearest to it by 1 - IoU (concentric).

    Deterministic: the first centres are quantiles of the shapes, sorted by ratio, then by area.
    """
    order = np.lexsort((shapes.prod(axis=1), shapes[:, 1] / shapes[:, 0]))
    centres = shapes[order[((np.arange(k) + 0.5) / k * len(shapes)).astype(int)]]
    nearest = None
    for _ in range(ROUNDS):
        shared = np.minimum(shapes[:, None], centres[None]).prod(axis=-1)  # (b, k)
        union = shapes.prod(axis=-1)[:, None] + centres.prod(axis=-1)[None] - shared
        before, nearest = nearest, (shared / union).argmax(axis=1)
        if before is not None and (before == nearest).all():
            break
        members = [shapes[nearest == i] for i in range(k)]
        centres = np.stack([np.median(m, axis=0) if len(m) else centre for m, centre in zip(members, centres)])
    return centres
