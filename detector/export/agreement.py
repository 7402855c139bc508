"""Whether an exported file finds what the checkpoint finds, in real images."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from detector.modeling.boxes import box_iou
from detector.structures import Detections

BOX, SCORE = 0.05, 1e-3  # pixels, and the difference of scores, that an export may have
MASK = 0.02  # and of a mask's probability


@dataclass
class Agreement:
    """What two detectors found in the same image."""

    image: str
    both: int = 0
    """Detections that both have."""
    only_checkpoint: int = 0
    only_export: int = 0
    at_a_limit: int = 0
    """Of those that one alone has: their score is as good as that of the last row, or the threshold."""
    box: float = 0.0
    """The largest difference of a coordinate in pixels, among those that both have."""
    score: float = 0.0
    mask: float = 0.0
    """The largest difference of a mask's probability."""
    ok: bool = True

    def judge(self) -> Agreement:
        """With `ok` as the tolerances say."""
        missing = self.only_checkpoint + self.only_export - self.at_a_limit
        self.ok = missing == 0 and self.box <= BOX and self.score <= SCORE and self.mask <= MASK
        return self

    def row(self) -> dict[str, object]:
        """For report.json."""
        return asdict(self)


def agreement(image: str, checkpoint: Detections, export: Detections, threshold: float) -> Agreement:
    """Pairs of equal label and nearest box; `threshold` is the least score that the detector reports."""
    result = Agreement(image)
    first, second = _pairs(checkpoint, export)
    result.both = len(first)
    rest_first, rest_second = _others(len(checkpoint), first), _others(len(export), second)
    result.only_checkpoint, result.only_export = len(rest_first), len(rest_second)
    result.at_a_limit = sum(
        _at_a_limit(found.scores[rest], found.scores, threshold)
        for found, rest in ((checkpoint, rest_first), (export, rest_second))
    )
    if len(first):
        result.box = float((checkpoint.boxes[first] - export.boxes[second]).abs().max())
        result.score = float((checkpoint.scores[first] - export.scores[second]).abs().max())
        if checkpoint.masks is not None and export.masks is not None:
            a, b = checkpoint.masks.probabilities[first].float(), export.masks.probabilities[second].float()
            result.mask = float((a - b).abs().max())
    return result.judge()


def _pairs(a: Detections, b: Detections) -> tuple[Tensor, Tensor]:
    """Rows of a and rows of b that are one detection, each at most once: the best of `a` choose first."""
    iou = box_iou(a.boxes, b.boxes) * (a.labels[:, None] == b.labels)
    near = (a.scores[:, None] - b.scores).abs()
    rows: list[tuple[int, int]] = []
    for i in range(len(a)):
        if iou.shape[1] and float(iou[i].max()) >= 0.5:
            j = int((iou[i] - near[i]).argmax())
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


def _at_a_limit(scores: Tensor, every: Tensor, threshold: float) -> int:
    """How many of the scores a difference within the tolerance could take below the threshold, or below the last row."""
    return 0 if not len(scores) else int((scores <= max(threshold, float(every.min())) + SCORE).sum())
