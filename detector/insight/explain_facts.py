"""What `detector explain` says of an image, as plain numbers and texts: the content of its JSON file.

Boxes are (x1, y1, x2, y2) in pixels of the original image, rounded to a tenth. Scores and objectness lie in 0..1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

Box = tuple[float, float, float, float]
PIXELS = "all boxes are x1, y1, x2, y2 in pixels of the original image"
FOUND, LOW, NOTHING = "found", "low score", "nothing found"  # beside the steps of the funnel


@dataclass(frozen=True)
class Asked:
    """What is to be explained: the image, an object that the user sees in it, or one of the detections."""

    about: str
    """image, object or detection."""
    box: Box | None
    """Of the object or the detection."""
    name: str | None
    """The class of the object, where it was given, or of the detection."""
    detection: int | None
    """Its number, from 0, in the order of the predictor."""
    score: float
    """The least score of a detection that counts as found, as in `detector infer`."""


@dataclass(frozen=True)
class LevelFacts:
    """One level of the pyramid in the first stage; `level` k has a cell every 2**k pixels of the resized image."""

    level: int
    stride: int
    """Pixels of the resized image between two cells."""
    anchors: int
    sides: Sequence[float]
    """Of squares with the areas of its anchors, in pixels of the original image, the smallest first."""
    best_objectness: float
    seen: int
    """Anchors of the highest objectness, which are all that NMS sees."""
    left: int
    """Boxes that NMS leaves of these."""
    proposals: int
    meeting: int | None
    """Anchors that overlap the asked box with an IoU of at least 0.5."""
    best_iou: float | None
    """The highest IoU of an anchor with the asked box."""
    before: int | None
    """Boxes that NMS sees and that overlap the asked box with an IoU of at least 0.5."""
    after: int | None
    """Those of them that NMS leaves."""


@dataclass(frozen=True)
class Rival:
    """The better box that suppresses another in the first stage."""

    box: Box
    objectness: float
    iou: float
    """With the suppressed box."""
    asked_iou: float
    """With the asked box."""
    proposal: int | None


@dataclass(frozen=True)
class AnchorFacts:
    """An anchor and what the first stage makes of it."""

    level: int
    box: Box
    iou: float
    """With the asked box."""
    rank: int
    """By objectness among the anchors of its level, 1 for the best."""
    objectness: float
    moved: Box
    """Where its deltas move it."""
    moved_iou: float
    """Of the moved box with the asked box."""
    fate: str
    """not seen, suppressed, too small, one too many, or proposal."""
    proposal: int | None
    """The number of the proposal that it becomes, 0 for the best."""
    suppressed_by: Rival | None


@dataclass(frozen=True)
class ProposalFacts:
    """A box that the first stage hands to the second."""

    number: int
    """From 0, the best first."""
    box: Box
    objectness: float
    iou: float | None
    """With the asked box."""
    level: int | None
    """The level it is pooled from; null where all are read, or where there is no second stage."""


@dataclass(frozen=True)
class StageFacts:
    """One stage of the second stage."""

    stage: int
    """From 1."""
    box: Box
    """What it reads."""
    level: int | None
    """The level it is pooled from; null where all are read."""
    scores: Mapping[str, float]
    """Of the best classes, and of the background."""
    refined: Box
    """Where it moves the box."""
    iou: float
    """Of the moved box with the asked box."""


@dataclass(frozen=True)
class RegionFacts:
    """The way of one proposal through the second stage."""

    proposal: ProposalFacts
    anchor: AnchorFacts | None
    """Which it comes from."""
    stages: Sequence[StageFacts]
    name: str
    """The class that is followed."""
    score: float
    """Of this class, after all stages and before the last suppression."""
    box: Box
    iou: float
    """Of the final box with the asked box."""
    detection: int | None
    """The number of the detection that it becomes."""
    suppressed_by: int | None
    """The number of the better detection that suppresses it."""
    overlap: float | None
    """IoU with this detection."""


@dataclass(frozen=True)
class DetectionFacts:
    """What the predictor returns."""

    number: int
    """From 0, the best first."""
    name: str
    score: float
    box: Box
    iou: float | None
    """With the asked box."""


@dataclass(frozen=True)
class Remedy:
    """What may help, and the changes of the command line that try it."""

    text: str
    changes: Sequence[str] = ()
    """`key.path=value` and options."""


@dataclass(frozen=True)
class Counts:
    """How many boxes come through each step of the image."""

    anchors: int
    seen: int
    """By the suppression of the first stage."""
    left: int
    proposals: int
    candidates: int
    """Classes of regions above the threshold."""
    detections: int
    found: int
    """Of at least the asked score."""
    classes: Mapping[str, int]
    """The same by class, the most frequent first."""


@dataclass(frozen=True)
class Limits:
    """The rules of both suppressions."""

    pre_nms: int
    rpn_iou: float
    post_nms: int
    threshold: float | None
    """Of the scores; null for an RPN alone."""
    kind: str | None
    """hard, linear or gaussian."""
    iou: float | None
    max_detections: int


@dataclass(frozen=True)
class Explanation:
    """Why something is detected in an image, or is not."""

    explained: str
    """The name of the image."""
    checkpoint: str
    pixels: str
    size: Sequence[int]
    """Width and height of the original image."""
    read_at: Sequence[int]
    """Width and height to which it is resized for the network."""
    asked: Asked
    answer: str
    """found, low score, nothing found, or the step of the funnel at which the object is lost."""
    cause: str | None
    """Why nothing is found, in words."""
    remedy: Remedy | None
    limits: Limits
    counts: Counts
    levels: Sequence[LevelFacts]
    anchors: Sequence[AnchorFacts]
    """The 20 that overlap the asked box most, of those with an IoU of at least 0.5."""
    before: Sequence[AnchorFacts]
    """Of what the first suppression sees, the 20 of the highest objectness that come to the asked box."""
    proposals: Sequence[ProposalFacts]
    """The 20 that overlap the asked box most; of an image as a whole the best."""
    anchor: AnchorFacts | None
    """The one that comes furthest, where no proposal reaches the asked box."""
    region: RegionFacts | None
    """The proposal that comes furthest."""
    gradient: Mapping[str, float] | None
    """The share of each level in gradient times activation of the followed class."""
    detections: Sequence[DetectionFacts]
    words: str = ""

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
