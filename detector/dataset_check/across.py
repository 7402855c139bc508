"""Checks across splits and the model: equal categories, as many as the model has, and no image in two splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

from detector.config.config import Config
from detector.config.match_data import wrong_counts
from detector.data.coco import common_pose
from detector.dataset_check.checked_split import CheckedSplit, normalized_name
from detector.dataset_check.findings import FaultPlace, Findings
from detector.dataset_check.images import Scan
from detector.errors import DataError

Image = tuple[int, int]  # the indices of a split and of an image in it


def check_categories(splits: Sequence[CheckedSplit], findings: Findings) -> None:
    """Every split has the category names of the first split, the training split."""
    first, *others = splits
    for split in others:
        here = [name for name in split.class_names if name not in first.class_names]
        there = [name for name in first.class_names if name not in split.class_names]
        spelt = {normalized_name(name): name for name in there}
        pairs = [(name, spelt[normalized_name(name)]) for name in here if normalized_name(name) in spelt]
        _add_pairs(findings, split, first, pairs)
        lone = [f"{name!r} is only in {split.name}" for name in here if name not in dict(pairs)]
        lone += [f"{name!r} is only in {first.name}" for name in there if name not in {b for _, b in pairs}]
        findings.add("other categories", split.name, lone, lambda note: FaultPlace(note=note))


def _add_pairs(findings: Findings, split: CheckedSplit, first: CheckedSplit, pairs: list[tuple[str, str]]) -> None:
    def place(pair: tuple[str, str]) -> FaultPlace:
        return FaultPlace(note=f"{pair[0]!r}, in {first.name} {pair[1]!r}")

    findings.add("other spelling", split.name, pairs, place)


def check_counts(config: Config, train: CheckedSplit, findings: Findings) -> None:
    """The model is made for as many classes and keypoints as the training split has."""
    pose = None
    if "keypoints" in config.model.target_fields:
        try:
            pose = common_pose(train.annotations, train.poses)
        except DataError as error:
            findings.add("other keypoints", train.name, [str(error)], lambda note: FaultPlace(note=note))
    wrong = wrong_counts(config, train.annotations, train.class_names, pose)
    findings.add("other counts", train.name, wrong, lambda note: FaultPlace(note=note))


def check_images(splits: Sequence[CheckedSplit], scans: Sequence[Sequence[Scan]], findings: Findings) -> None:
    """Find images that occur twice, in one split or two: the same file, or files of equal content.

    Each later image is reported once, with the first one like it.
    """
    images = [(s, i) for s, part in enumerate(scans) for i in range(len(part))]

    def path(image: Image) -> str:
        return scans[image[0]][image[1]].path

    def digest(image: Image) -> bytes:
        return scans[image[0]][image[1]].digest

    def name(image: Image) -> str:
        unread = path(image) and not digest(image)
        return splits[image[0]].file_names[image[1]] if unread else ""

    rules = (
        (path, "file listed twice", "image in two splits"),
        (digest, "equal files", "equal files in two splits"),
        (name, None, "equal names in two splits"),
    )
    for key, within, between in rules:
        told = set()
        for image, twin in _twins(images, key):
            kind = within if image[0] == twin[0] else between
            told.add(image)
            if kind is not None:
                _add_twin(kind, splits, image, twin, findings)
        images = [image for image in images if image not in told]


def _twins(images: Sequence[Image], key: Callable[[Image], Hashable]) -> list[tuple[Image, Image]]:
    """Pairs of an image and the first image with the same key. Images without a key are left out."""
    groups: dict[Hashable, list[Image]] = defaultdict(list)
    for image in images:
        if key(image):
            groups[key(image)].append(image)
    return [(image, group[0]) for group in groups.values() for image in group[1:]]


def _add_twin(kind: str, splits: Sequence[CheckedSplit], image: Image, twin: Image, findings: Findings) -> None:
    (split, row), (other, other_row) = image, twin
    note = f"like {splits[other].file_names[other_row]}, image {splits[other].image_ids[other_row]}"
    where = f" of {splits[other].name}" if split != other else ""
    findings.add(kind, splits[split].name, [row], lambda row: splits[split].image_place(row, note=note + where))
