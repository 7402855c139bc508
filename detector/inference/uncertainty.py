"""Which unlabelled images are worth labelling first: those whose detections are neither clear nor refuted."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

import torch
from torch import Tensor

from detector.structures import Detections

UNSURE = (0.25, 0.75)  # scores of detections that count as unsure in the reason
NAMED = 3  # detections that a reason names
HEADER = ["rank", "file_name", "image_id", "uncertainty", "detections", "unsure", "reason"]


@dataclass(frozen=True)
class Uncertainty:
    """How unsure a detector is about one image."""

    value: float
    """The mean entropy of the detections, weighted by their scores, in bits: 0 (all sure, or nothing found) to 1."""
    detections: int
    """All that the detector found, of any score."""
    unsure: int
    """Those with a score in UNSURE."""
    reason: str
    """Why, in words."""


def uncertainty_of(found: Detections) -> Uncertainty:
    """The uncertainty of all detections of an image, those of low scores included.

    A detection of score s is right or wrong with an entropy of -s log2(s) - (1 - s) log2(1 - s) bits: 1 at a score of 0.5, 0 at
    0 and 1. The mean is weighted by s, so that neither the number of objects nor a tail of faint guesses decides: the same
    detections twice have the same uncertainty, and one sure object among ten guesses of 0.05 is nearly sure.
    """
    scores = found.scores.to(torch.float64)
    total = float(scores.sum())
    value = float((scores * binary_entropy(scores)).sum()) / total if total else 0.0
    nearest = found[(scores - 0.5).abs().argsort(stable=True)[:NAMED]]
    named = ", ".join(f"{name} {score:.2f}" for name, score in zip(nearest.names, nearest.scores.tolist()))
    unsure = int(((scores >= UNSURE[0]) & (scores <= UNSURE[1])).sum())
    if not len(found):
        reason = "nothing was found"
    elif unsure:
        reason = f"{unsure} of {len(found)} detections score {UNSURE[0]} to {UNSURE[1]}; nearest 0.5: {named}"
    else:
        reason = f"no detection of {len(found)} scores {UNSURE[0]} to {UNSURE[1]}; nearest 0.5: {named}"
    return Uncertainty(value, len(found), unsure, reason)


def binary_entropy(p: Tensor) -> Tensor:
    """The entropy in bits of an event of probability p in 0..1, element by element."""
    return -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)) / torch.log(p.new_tensor(2.0))


@dataclass(frozen=True)
class RankedImage:
    """An image with its uncertainty."""

    name: str
    image_id: int
    uncertainty: Uncertainty


class UncertaintyRanking:
    """Collects images; the most uncertain are first, equal ones by name. `most`: how many are kept."""

    def __init__(self, most: int):
        self.most = most
        self._images: list[RankedImage] = []

    def add(self, name: str, image_id: int, uncertainty: Uncertainty) -> None:
        """One more image."""
        self._images.append(RankedImage(name, image_id, uncertainty))

    def ranked(self) -> list[RankedImage]:
        """The most uncertain images."""
        return sorted(self._images, key=lambda image: (-image.uncertainty.value, image.name))[: self.most]

    def table(self) -> str:
        """CSV: a header, and a row for each image."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(HEADER)
        for rank, image in enumerate(self.ranked(), start=1):
            u = image.uncertainty
            writer.writerow([rank, image.name, image.image_id, f"{u.value:.4f}", u.detections, u.unsure, u.reason])
        return text.getvalue()

    def lines(self) -> list[str]:
        """A line for each image, for people."""
        return [f"{image.uncertainty.value:.3f}  {image.name}: {image.uncertainty.reason}" for image in self.ranked()]
