"""The check of a data set: its faults and its contents."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detector.config.config import Config, build_detector
from detector.data.settings import fields_read
from detector.dataset_check.across import check_categories, check_counts, check_images
from detector.dataset_check.anchors import AnchorFit, anchor_fit, propose_anchors, reach_of_anchors
from detector.dataset_check.boxes import check_annotations, images_without_objects
from detector.dataset_check.checked_split import CheckedSplit, read_split
from detector.dataset_check.examples import Example, find_examples
from detector.dataset_check.findings import FaultPlace, Findings
from detector.dataset_check.images import scan_images
from detector.dataset_check.keypoints import check_keypoints
from detector.dataset_check.outlines import check_outlines
from detector.dataset_check.scale import Geometry, geometry, level_counts
from detector.errors import DataError

SPLITS = ("train", "val", "test")


@dataclass
class Summary:
    """Contents of one split."""

    annotations: str
    folder: str | None
    images: int
    without_objects: int
    objects: int
    crowd: int
    classes: dict[str, tuple[int, int]]  # name -> objects, images
    levels: dict[int, int]  # pyramid level -> objects, at the training scale
    ratios: np.ndarray  # (B,) height / width of every object
    anchors: AnchorFit | None = None


@dataclass
class CheckResult:
    """The result of a check."""

    source: str
    geometry: Geometry
    findings: Findings
    splits: dict[str, Summary] = field(default_factory=dict)
    better: AnchorFit | None = None  # anchors, by the first split's objects
    examples: list[Example] = field(default_factory=list)  # of the first split, if they were asked for


def check_data(
    config: Config,
    source: str | Path,
    *,
    alone: str | None = None,
    look: bool = True,
    read: bool = True,
    examples: bool = False,
) -> CheckResult:
    """Check the splits of a configuration, or the training split `alone`, by that name; nothing is written.

    Without `look` images are not checked; without `read` image files are not opened, only their existence is checked. With
    `examples` objects of the first split are drawn with their outlines and keypoints.
    Raises DataError if an annotation file or image folder cannot be read, ConfigError for an invalid detector.
    """
    settings = config.needed_data()
    detector = build_detector(config if config.model.num_classes else config.with_num_classes(1), pretrained=False)
    result = CheckResult(str(source), geometry(detector, settings.resize, settings.tiles), Findings())
    splits = []
    given = {name: name for name in SPLITS if getattr(settings, name) is not None}
    for name, key in ({alone: SPLITS[0]} if alone else given).items():
        images, annotations = settings.paths(key)
        folder = images if look else None
        if folder is not None and not folder.is_dir():
            raise DataError(f"{folder}: no such image folder; correct the path, or give the annotation file alone")
        fields = fields_read(settings, key, config.model.target_fields)
        splits.append(read_split(name, annotations, folder, settings.classes, result.findings, fields))
    for split in splits:
        keep_empty = settings.keep_empty or split.name != SPLITS[0]
        check_annotations(split, result.findings, keep_empty=keep_empty)
        check_outlines(split, result.findings)
        check_keypoints(split, result.findings)
    check_categories(splits, result.findings)
    check_counts(config, splits[0], result.findings)
    if look:
        scans = scan_images(
            splits, result.findings, max_pixels=settings.max_pixels, bit_depth=settings.bit_depth, workers=settings.workers,
            read=read,
        )  # fmt: skip
        check_images(splits, scans, result.findings)
    _summarise(result, splits)
    if examples and look and read:
        result.examples = find_examples(splits[0], result.findings, settings.max_pixels, settings.bit_depth)
    return result


def _summarise(result: CheckResult, splits: list[CheckedSplit]) -> None:
    shape = result.geometry
    for split in splits:
        objects, scaled = split.is_object(), shape.scaled(*split.objects())
        summary = Summary(
            annotations=str(split.annotations),
            folder=None if split.folder is None else str(split.folder),
            images=len(split.sizes),
            without_objects=len(images_without_objects(split)),
            objects=int(objects.sum()),
            crowd=int(split.crowd.sum()),
            classes=_class_counts(split, objects),
            levels=level_counts(shape, scaled),
            ratios=(scaled.boxes[:, 3] - scaled.boxes[:, 1]) / (scaled.boxes[:, 2] - scaled.boxes[:, 0]),
        )
        if shape.anchors is not None:
            summary.anchors = anchor_fit(shape, scaled, shape.anchors.sizes, shape.anchors.ratios)
            if not result.splits:  # the first one, which is trained on
                result.better = propose_anchors(shape, scaled, summary.anchors)
                note = reach_of_anchors(summary.anchors, shape.pos_iou)
                if note:
                    better = f"; --anchors FILE writes some with {result.better.recall:.1%}" if result.better else ""
                    result.findings.add(
                        "anchors far from objects", split.name, [note + better], lambda note: FaultPlace(note=note)
                    )
        result.splits[split.name] = summary


def _class_counts(split: CheckedSplit, objects: np.ndarray) -> dict[str, tuple[int, int]]:
    """Objects and images of every class."""
    labels, owner = split.labels[objects], split.owner[objects]
    pairs = np.unique(np.stack([labels, owner], axis=1), axis=0)
    count = len(split.class_names)
    columns = np.bincount(labels, minlength=count).tolist(), np.bincount(pairs[:, 0], minlength=count).tolist()
    return dict(zip(split.class_names, zip(*columns)))
