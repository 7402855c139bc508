"""The kinds of faults of a data set, their effect on training, and the places where they were found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detector.data.coco_rules import HARMLESS, REMEDIES, shown
from detector.data.plausible import REMEDIES as IMPLAUSIBLE

PLACES = 20  # that are kept of a finding
STOPS = "training stops: "
STOPS_AT_FILE = "training stops (data.skip_bad=N passes over N such images in train, none in val): "
UNUSED_OUTLINE = "invalid outline, unused"
KINDS = {  # kind -> its effect on training, and what to do
    **{kind: STOPS + remedy for kind, remedy in REMEDIES.items() if kind not in HARMLESS},
    "unknown class": STOPS + "data.classes may only name categories of the file",
    "other categories": STOPS + "give all splits the same category names, or choose common ones by data.classes",
    "other spelling": STOPS + "write the category in all splits alike; only case or blanks differ",
    "other counts": STOPS + "the model must be made for as many classes and keypoints as the annotations have",
    "other keypoints": STOPS + "a keypoint model learns one list of keypoints",
    "no images": STOPS + "there is nothing to learn from; check `images`, `annotations` and data.classes",
    "missing file": STOPS_AT_FILE + "restore the file, correct file_name (--fix-names OUT.json), or remove the entry",
    "corrupt file": STOPS_AT_FILE + "replace the file or remove its entry",
    "oversized file": STOPS_AT_FILE + "raise data.max_pixels or shrink the image with its boxes",
    "other size": STOPS_AT_FILE + "correct width, height and boxes to the upright image",
    "box without area": "dropped: correct or remove the box",
    "box outside image": "clipped to the image: check whether the box is meant so",
    **{kind: f"trained on as they are: {remedy}" for kind, remedy in IMPLAUSIBLE.items()},
    UNUSED_OUTLINE: "harmless without masks; a training of masks would stop: " + REMEDIES["invalid outline"],
    "outline without area": "the object is not learnt where masks are: draw its outline inside the image, or remove it",
    "outline outside image": "cut at the border: check whether the outline is meant so",
    "self-crossing outline": "what is inside changes at each crossing: draw it anew without crossings",
    "outline unlike box": "boxes and masks teach different places: correct the box or the outline",
    "outline unlike area": "APs, APm and APl go by `area`: write that of the outline",
    "keypoint outside image": "never learnt, and missed in scores: correct it, or give it visibility 0",
    "duplicate box": "both are trained on: remove one of two boxes of a class that are all but equal",
    "box of two classes": "both are trained on: decide which class the object has",
    **{kind: "harmless here: " + REMEDIES[kind] for kind in HARMLESS},
    "alike categories": "two classes: merge them if only case or blanks tell them apart by mistake",
    "unused category": "a class without objects: remove it, or leave it out by data.classes",
    "rotated file": "turned upright: boxes must be those of the upright image",
    "part of the bit depth": "scaled by its own range: data.bit_depth=N, the bits of the camera, scales all images alike",
    "beyond the bit depth": "larger values become white: raise data.bit_depth",
    "anchors far from objects": "such objects train on one anchor alone: change model.rpn.anchors or data.resize",
    "file listed twice": "trained on twice: merge the two images and their boxes",
    "equal files": "trained on twice: remove one of the two and merge their boxes",
    "image in two splits": "scores come out too good: keep the image in one of the splits",
    "equal files in two splits": (
        "scores come out too good: keep the image in one of the splits, as detector split --group-content IMAGES does"
    ),
    "equal names in two splits": "perhaps the same image: check without --no-images, which compares the content",
    "image without objects": "left out of training unless data.keep_empty is true: check that none was forgotten",
    "unlisted file": "never read: list it, or take it out of the folder",
}


@dataclass(frozen=True)
class FaultPlace:
    """Where a fault is; `note` holds its details."""

    file: str | None = None
    image_id: int | str | None = None
    annotation_id: int | str | None = None
    key: str | None = None
    note: str = ""

    def __str__(self) -> str:
        ids = [f"{what} {shown(value)}" for what, value in (("image", self.image_id), ("annotation", self.annotation_id))
               if value is not None]  # fmt: skip
        where = ", ".join(part for part in (self.file, *ids, self.key) if part)
        return printable(": ".join(part for part in (where, self.note) if part))


@dataclass
class Finding:
    """One kind of fault in one split."""

    kind: str
    split: str
    count: int = 0
    places: list[FaultPlace] = field(default_factory=list)  # the first few

    @property
    def severity(self) -> str:
        """error if training stops, else warning."""
        return "error" if self.effect.startswith((STOPS, STOPS_AT_FILE)) else "warning"

    @property
    def effect(self) -> str:
        """The effect on training, and what to do."""
        return KINDS[self.kind]


class Findings:
    """All findings by kind and split."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Finding] = {}

    def add(self, kind: str, split: str, rows: Sequence[Any] | np.ndarray, place: Callable[[Any], FaultPlace]) -> None:
        """Count a finding for each of the rows; `place` is called for the first few only."""
        if len(rows):
            found = self._found.setdefault((kind, split), Finding(kind, split))
            found.count += len(rows)
            found.places += [place(row) for row in rows[: PLACES - len(found.places)]]

    def all(self) -> list[Finding]:
        """Errors first, in the order of KINDS."""
        order = list(KINDS)
        return sorted(self._found.values(), key=lambda f: (f.severity, order.index(f.kind)))

    def count(self, severity: str) -> int:
        """Number of findings of a severity, error or warning."""
        return sum(found.count for found in self._found.values() if found.severity == severity)


def identity(value: Any) -> int | str | None:
    """An id for a place: anything but a number or a name is shown in short."""
    return value if value is None or type(value) is int else one_line(value)


def one_line(value: Any) -> str:
    """Any JSON value on a line."""
    if isinstance(value, str) and len(value) <= 100:
        return value
    return shown(value)


def printable(text: str) -> str:
    """The text with control characters and unencodable characters escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
