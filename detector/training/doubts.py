"""What is doubtful about the images and objects that a training begins with: a line each."""

from __future__ import annotations

import numpy as np

from detector.data.coco import CocoDataset
from detector.data.image import used_bits
from detector.data.plausible import REMEDIES
from detector.data.tiles import TileGrid
from detector.data.transforms import Resize
from detector.data.wrapped_dataset import WrappedDataset
from detector.dataset_check.anchors import anchor_fit, reach_of_anchors
from detector.dataset_check.scale import Geometry, geometry
from detector.errors import DataError
from detector.modeling.rcnn import GeneralizedRCNN
from detector.protocols import DataSet

MOST_OBJECTS = 20_000  # that anchors are compared with
MOST_IMAGES = 8  # that are opened to see how many bits they use


def doubts_about(
    train_set: DataSet, model: GeneralizedRCNN, resize: Resize, tiles: TileGrid | None = None
) -> list[str]:  # fmt: skip
    """Lines with number and remedy, none for a data set of the user's own class."""
    while isinstance(train_set, WrappedDataset):  # its samples are others, its annotations the same
        train_set = train_set.dataset
    if not isinstance(train_set, CocoDataset):
        return []
    lines = [f"{doubt.kind}: {doubt.note}; {REMEDIES[doubt.kind]}" for doubt in train_set.doubts]
    if train_set.labelled_keypoints() == 0:
        lines.append("no object has a labelled keypoint, so none is learnt; label some, or train without keypoint_head")
    return [*lines, *_anchors(train_set, geometry(model, resize, tiles)), *_bits(train_set)]


def _anchors(train_set: CocoDataset, shape: Geometry) -> list[str]:
    if shape.anchors is None:
        return []
    step = -(-len(train_set.objects()[0]) // MOST_OBJECTS) or 1
    scaled = shape.scaled(*(column[::step] for column in train_set.boxes()))
    note = reach_of_anchors(anchor_fit(shape, scaled, shape.anchors.sizes, shape.anchors.ratios), shape.pos_iou)
    return [f"anchors far from objects: {note}; `detector check-data CONFIG` proposes others"] if note else []


def _bits(train_set: CocoDataset) -> list[str]:
    if train_set.bit_depth is not None:
        return []
    chosen = np.unique(np.linspace(0, len(train_set) - 1, MOST_IMAGES).round().astype(int))
    found = []
    for i in chosen:
        try:
            found.append(used_bits(train_set.path(i), train_set.max_pixels))
        except DataError:  # the training says so when it comes to this image
            continue
    used = [bits for bits in found if bits is not None and bits < 16]
    if not used:
        return []
    most = max(used)
    return [
        f"images of 16 bits use {most}: {len(used)} of {len(chosen)} that were looked at; each is scaled by its own range, "
        f"data.bit_depth={most} scales all alike"
    ]
