"""Whether two detectors find the same in the same pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from detector.modeling.boxes import box_iou
from detector.structures import Detections


@dataclass(frozen=True)
class Tolerance:
    """What an export may differ by."""

    box: float | None = 0.05
    """Pixels of a side; None: all that an IoU of a half allows."""
    score: float = 1e-3
    mask: float | None = 0.02
    """Probability in a mask; None: not compared."""
    keypoint: float | None = 0.5
    """Pixels; None: not compared."""
    share: float = 1.0
    """Of the detections of both, the least that must be within the other limits."""
    least_score: float = 0.0
    """Detections below it in both are not compared."""

    def limit(self, name: str) -> float:
        """Of the difference of this name, one of DIFFERENCES."""
        value = getattr(self, name)
        return float("inf") if value is None else value


# by precision of the file: float32 is computed in another order, weights of float16 have three digits, int8 has 256 steps
TOLERANCES = {
    "float32": Tolerance(),
    "float16": Tolerance(box=0.5, score=0.01, mask=0.05, keypoint=2.0, share=0.98),
    "int8": Tolerance(box=None, score=0.2, mask=None, keypoint=None, share=0.95, least_score=0.5),
}
EXACT = TOLERANCES["float32"]
DIFFERENCES = ("box", "score", "mask", "keypoint")


@dataclass
class Agreement:
    """What two detectors found in one image. The differences are the largest among detections that both have."""

    image: str
    both: int = 0
    """Detections that both have."""
    only_first: int = 0
    only_second: int = 0
    at_a_limit: int = 0
    """Of those that one alone has: within the tolerance of the score threshold, or of the last row where all rows are full."""
    ties: int = 0
    """Pairs of which NMS kept another of two boxes with equal scores; their boxes are not compared."""
    beyond: int = 0
    """Detections that both have and that differ by more than the tolerance."""
    box: float = 0.0
    score: float = 0.0
    mask: float = 0.0
    keypoint: float = 0.0

    @property
    def unlike(self) -> int:
        """Detections that one alone has, or that differ by more than the tolerance."""
        return self.only_first + self.only_second - self.at_a_limit + self.beyond

    @property
    def ok(self) -> bool:
        """Whether all are within the tolerance."""
        return self.unlike == 0

    def row(self) -> dict[str, object]:
        """For report.json."""
        return asdict(self) | {"ok": self.ok}


def agreement(
    image: str, first: Detections, second: Detections, *, threshold: float, limit: int, tolerance: Tolerance = EXACT,
    candidates: Callable[[], Detections] | None = None,
) -> Agreement:  # fmt: skip
    """Pairs of equal label and nearest box.

    Args:
        image: its name.
        first: what one detector found.
        second: what the other found.
        threshold: the least score that they report.
        limit: how many rows they have.
        tolerance: what they may differ by.
        candidates: what the first has before suppression, if that is known; asked for where boxes differ.
    """
    result = Agreement(image)
    a, b = _pairs(first, second)
    rest_a, rest_b = (
        rest[found.scores[rest] >= tolerance.least_score]
        for found, rest in ((first, _others(len(first), a)), (second, _others(len(second), b)))
    )
    compared = torch.maximum(first.scores[a], second.scores[b]) >= tolerance.least_score
    a, b = a[compared], b[compared]
    result.both, result.only_first, result.only_second = len(a), len(rest_a), len(rest_b)
    result.at_a_limit = sum(
        _at_a_limit(found, rest, threshold, limit, tolerance) for found, rest in ((first, rest_a), (second, rest_b))
    )
    if len(a):
        moved = (first.boxes[a] - second.boxes[b]).abs().amax(dim=1)
        if candidates is not None and float(moved.max()) > tolerance.limit("box"):
            tied = (moved > tolerance.limit("box")) & _has_twin(second[b], candidates(), tolerance)
            result.ties = int(tied.sum())
            a, b, moved = a[~tied], b[~tied], moved[~tied]
        beyond = torch.zeros(len(a), dtype=torch.bool)
        for name, difference in {"box": moved, **_differences(first[a], second[b])}.items():
            setattr(result, name, float(difference.max()) if difference.numel() else 0.0)
            beyond |= difference > tolerance.limit(name)
        result.beyond = int(beyond.sum())
    return result


def _pairs(a: Detections, b: Detections) -> tuple[Tensor, Tensor]:
    """Rows of a and rows of b that are one detection, each at most once: the best of `a` choose first."""
    iou = box_iou(a.boxes, b.boxes) * (a.labels[:, None] == b.labels)
    near = (a.scores[:, None] - b.scores).abs()
    rows: list[tuple[int, int]] = []
    for i in range(len(a) if len(b) else 0):
        j = int(torch.where(iou[i] >= 0.5, iou[i] - near[i], -2).argmax())
        if iou[i, j] >= 0.5:
            rows.append((i, j))
            iou[:, j] = -1
    pairs = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _others(count: int, rows: Tensor) -> Tensor:
    """The rows that are not among these."""
    other = torch.ones(count, dtype=torch.bool)
    other[rows] = False
    return torch.where(other)[0]


def _at_a_limit(found: Detections, rest: Tensor, threshold: float, limit: int, tolerance: Tolerance) -> int:
    """How many of the `rest` a difference within the tolerance could take below the threshold, or below the last row."""
    least = float(found.scores.min()) if len(found) >= limit > 0 else threshold
    return int((found.scores[rest] <= max(threshold, least, tolerance.least_score) + tolerance.score).sum())


def _has_twin(found: Detections, candidates: Detections, tolerance: Tolerance) -> Tensor:
    """(D,) bool: whether a candidate has that label, and that box and score within the tolerance."""
    box = (found.boxes[:, None] - candidates.boxes).abs().amax(dim=2) <= tolerance.limit("box")
    score = (found.scores[:, None] - candidates.scores).abs() <= tolerance.score
    return (box & score & (found.labels[:, None] == candidates.labels)).any(dim=1)


def _differences(a: Detections, b: Detections) -> dict[str, Tensor]:
    """Absolute differences (D,) of all that aligned detections have beside boxes, the largest of each detection."""
    values = {"score": (a.scores - b.scores).abs()}
    if a.masks is not None and b.masks is not None:
        values["mask"] = (a.masks.probabilities.float() - b.masks.probabilities.float()).abs().amax(dim=(1, 2))
        if a.masks.scores is not None and b.masks.scores is not None:
            values["score"] = torch.maximum(values["score"], (a.masks.scores - b.masks.scores).abs())
    if a.keypoints is not None and b.keypoints is not None:
        values["keypoint"] = (a.keypoints.points - b.keypoints.points).abs().amax(dim=(1, 2))
    return values
