"""What an evaluation shows beside its scores: detections on a few images of val, and right and wrong ones by score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from detector.coco_format import ONE_CLASS
from detector.evaluation.thresholds import ThresholdCounts, threshold_counts
from detector.inference.drawing import draw_detections
from detector.protocols import DataSet
from detector.structures import Detections

SHOWN = 4  # images
LONGEST = 480  # pixels of the longer side
LEAST, MOST = 0.3, 50  # lowest score of a box that is drawn, and how many of an image


@dataclass(frozen=True)
class ValView:
    """Pictures and counts of one evaluation."""

    pictures: Mapping[str, Image.Image]
    """Detections on the same few images in each evaluation, by "val/image_1" and so on."""
    counts: Mapping[str, ThresholdCounts]
    """By class name; empty for an RPN alone."""


def view_of(val: DataSet, results: list[dict[str, Any]], *, one_class: bool) -> ValView:
    """The view of the results in COCO form.

    Args:
        val: the images that were scored.
        results: detections on all of them.
        one_class: the detections are of ONE_CLASS, the proposals of an RPN alone.
    """
    names = ONE_CLASS if one_class else dict(zip(val.category_ids, val.class_names))
    chosen = np.unique(np.linspace(0, len(val) - 1, min(SHOWN, len(val))).round().astype(int)).tolist()
    pictures = {f"val/image_{n}": _picture(val, i, results, names) for n, i in enumerate(chosen, start=1)}
    return ValView(
        pictures, {} if one_class else threshold_counts(val.annotation_file, plain(results), val.category_ids)
    )


def plain(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Results that go by category id: a data set of the user's own may name its classes otherwise than the file."""
    return [{key: value for key, value in row.items() if key != "category_name"} for row in results]


def _picture(val: DataSet, i: int, results: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> Image.Image:
    """The boxes of the i-th image on the image, which is made smaller first so that lines and letters are legible."""
    rows = [row for row in results if row["image_id"] == val.image_ids[i] and row["score"] >= LEAST]
    rows = sorted(rows, key=lambda row: -row["score"])[:MOST]
    label_of = {category: label for label, category in enumerate(names)}
    xywh = torch.tensor([row["bbox"] for row in rows], dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor([row["score"] for row in rows], dtype=torch.float32)
    labels = torch.tensor([label_of[row["category_id"]] for row in rows], dtype=torch.int64)
    boxes = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1)
    pixels = Image.fromarray(val.image(i).permute(1, 2, 0).numpy())
    full = (pixels.height, pixels.width)
    pixels.thumbnail((LONGEST, LONGEST))
    found = Detections(boxes, scores, labels, list(names.values())).resized(full, (pixels.height, pixels.width))
    return draw_detections(torch.from_numpy(np.array(pixels)).permute(2, 0, 1), found)
