"""Whether two detectors find the same in the same pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from detector.modeling.boxes import box_iou
from detector.structures import Detections

# what an export may differ by: pixels of a box, scores, a mask's probability, pixels of a keypoint
TOLERANCE = {"box": 0.05, "score": 1e-3, "mask": 0.02, "keypoint": 0.5}


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
    box: float = 0.0
    score: float = 0.0
    mask: float = 0.0
    keypoint: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether they differ by rounding alone."""
        alone = self.only_first + self.only_second - self.at_a_limit
        return alone == 0 and all(getattr(self, name) <= most for name, most in TOLERANCE.items())

    def row(self) -> dict[str, object]:
        """For report.json."""
        return asdict(self) | {"ok": self.ok}


def agreement(
    image: str, first: Detections, second: Detections, *, threshold: float, limit: int,
    candidates: Callable[[], Detections] | None = None,
) -> Agreement:  # fmt: skip
    """Pairs of equal label and nearest box.

    Args:
        image: its name.
        first: what one detector found.
        second: what the other found.
        threshold: the least score that they report.
        limit: how many rows they have.
        candidates: what the first has before suppression, if that is known; asked for where boxes differ.
    """
    result = Agreement(image)
    a, b = _pairs(first, second)
    rest_a, rest_b = _others(len(first), a), _others(len(second), b)
    result.both, result.only_first, result.only_second = len(a), len(rest_a), len(rest_b)
    result.at_a_limit = sum(
        _at_a_limit(found, rest, threshold, limit) for found, rest in ((first, rest_a), (second, rest_b))
    )
    if len(a):
        moved = (first.boxes[a] - second.boxes[b]).abs().amax(dim=1)
        if candidates is not None and float(moved.max()) > TOLERANCE["box"]:
            tied = (moved > TOLERANCE["box"]) & _has_twin(second[b], candidates())
            result.ties = int(tied.sum())
            a, b, moved = a[~tied], b[~tied], moved[~tied]
        for name, difference in {"box": moved, **_differences(first[a], second[b])}.items():
            setattr(result, name, float(difference.max()) if difference.numel() else 0.0)
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


def _at_a_limit(found: Detections, rest: Tensor, threshold: float, limit: int) -> int:
    """How many of the `rest` a difference within the tolerance could take below the threshold, or below the last row."""
    least = float(found.scores.min()) if len(found) >= limit > 0 else threshold
    return int((found.scores[rest] <= max(threshold, least) + TOLERANCE["score"]).sum())


def _has_twin(found: Detections, candidates: Detections) -> Tensor:
    """(D,) bool: whether a candidate has that label, and that box and score within the tolerance."""
    box = (found.boxes[:, None] - candidates.boxes).abs().amax(dim=2) <= TOLERANCE["box"]
    score = (found.scores[:, None] - candidates.scores).abs() <= TOLERANCE["score"]
    return (box & score & (found.labels[:, None] == candidates.labels)).any(dim=1)


def _differences(a: Detections, b: Detections) -> dict[str, Tensor]:
    """Absolute differences of all that aligned detections have beside boxes."""
    values = {"score": (a.scores - b.scores).abs()}
    if a.masks is not None and b.masks is not None:
        values["mask"] = (a.masks.probabilities.float() - b.masks.probabilities.float()).abs()
        if a.masks.scores is not None and b.masks.scores is not None:
            values["score"] = torch.maximum(values["score"], (a.masks.scores - b.masks.scores).abs())
    if a.keypoints is not None and b.keypoints is not None:
        values["keypoint"] = (a.keypoints.points - b.keypoints.points).abs()
    return values
