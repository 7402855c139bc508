"""How sure an AP is: the bootstrap over images (Efron 1979), from matches that are made once.

A resample draws as many images as there are, with replacement. A detection of an image that is drawn w times counts w times, so
that the AP of a resample is a matter of weighted sums along the ranking; no detection is matched again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.cocoeval import COCOeval

from detector.insight.curves import RECALLS, average_precision
from detector.insight.matches import SIZES, ClassMatches, class_matches

SAMPLES = 1000
LEVEL = 0.95  # of the intervals
AT_ONCE, LEAST_AT_ONCE = 300_000, 16  # detections times resamples, and resamples
MOST_DRAWN, LEAST_SAMPLES = 3_000_000, 200  # images of all resamples; of many images there are fewer resamples
SEED = 0


@dataclass(frozen=True)
class Interval:
    """An estimate with the range that holds the true value in 95 % of such data sets; NaN where nothing can be measured."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, samples: np.ndarray) -> Interval:
        """Of the estimate and the values of resamples (B,), those that are NaN left out."""
        known = samples[~np.isnan(samples)]
        if not len(known) or np.isnan(value):
            return cls(value, np.nan, np.nan)
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(known, [tail, 1 - tail])
        return cls(value, float(low), float(high))

    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the range."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Resampled:
    """The APs of a data set in its first row and of B resamples in the others."""

    metrics: dict[str, np.ndarray]
    """AP, AP50, AP75, APs, APm, APl -> (B + 1,)."""
    classes: np.ndarray
    """(B + 1, K) AP of each class."""

    def interval(self, metric: str) -> Interval:
        """Of one metric."""
        return _interval(self.metrics[metric])

    def samples(self) -> int:
        """B."""
        return len(self.classes) - 1

    def of_class(self, label: int) -> Interval:
        """Of the AP of a class."""
        return _interval(self.classes[:, label])

    def difference(self, other: Resampled) -> dict[str, Interval]:
        """This less another run on the same images, by metric: both saw the same resamples."""
        return {name: _interval(values - other.metrics[name]) for name, values in self.metrics.items()}

    def difference_of_class(self, other: Resampled, label: int, other_label: int) -> Interval:
        """The same for the AP of a class, which may have another number there."""
        return _interval(self.classes[:, label] - other.classes[:, other_label])


def _interval(values: np.ndarray) -> Interval:
    return Interval.of(float(values[0]), values[1:])


def resample(counts: COCOeval, samples: int = SAMPLES) -> Resampled:
    """The APs of so many resamples of the images, the same ones for equal numbers of images; of one image there is none.

    A class counts in the mean of a resample where that has objects of it.
    """
    weights = image_weights(len(counts.params.imgIds), samples)
    by_size = {}
    for size in SIZES:
        matches = class_matches(counts, size)
        by_size[size] = np.concatenate([estimated_aps(matches)[None], resampled_aps(matches, weights)])
    every = by_size["all"]
    metrics = {"AP": every.mean(axis=2), "AP50": every[..., 0], "AP75": every[..., 5]}
    metrics |= {f"AP{size[0]}": by_size[size].mean(axis=2) for size in SIZES[1:]}
    return Resampled({name: mean_of_known(values) for name, values in metrics.items()}, every.mean(axis=2))


def image_weights(images: int, samples: int) -> np.ndarray:
    """(B, I) how often each resample draws each image; of many images B is less, of fewer than two it is 0."""
    if images < 2:
        return np.zeros((0, images), dtype=np.float32)
    samples = min(samples, max(MOST_DRAWN // images, LEAST_SAMPLES))
    drawn = np.random.default_rng(SEED).integers(0, images, (samples, images))
    flat = np.bincount((drawn + images * np.arange(samples)[:, None]).ravel(), minlength=samples * images)
    return flat.reshape(samples, images).astype(np.float32)


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """(B, K) -> (B,) the mean over classes, those left out that are NaN; NaN where all are."""
    known = ~np.isnan(values)
    sums, counts = np.where(known, values, 0).sum(axis=1), known.sum(axis=1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def estimated_aps(matches: Sequence[ClassMatches]) -> np.ndarray:
    """(K, T) the AP of each class at each IoU threshold, as COCO computes it; NaN without objects."""
    return np.array([[_ap(one, t) for t in range(len(one.counted))] for one in matches]).reshape(len(matches), -1)


def _ap(found: ClassMatches, t: int) -> float:
    if not len(found.object_ids):
        return float("nan")
    counted = found.counted[t]
    return average_precision(found.scores[counted], found.hits(t)[counted], len(found.object_ids))


def resampled_aps(matches: Sequence[ClassMatches], weights: np.ndarray) -> np.ndarray:
    """(B, K, T) the same for images with weights (B, I)."""
    return np.stack([_of_class(one, weights) for one in matches], axis=1)


def _of_class(found: ClassMatches, weights: np.ndarray) -> np.ndarray:
    """(B, T), a few resamples at a time, whose numbers fit into the processor's cache."""
    step = max(LEAST_AT_ONCE, AT_ONCE // max(1, len(found.images)))
    parts = [_of_some(found, weights[start : start + step]) for start in range(0, len(weights), step)]
    return np.concatenate([np.zeros((0, len(found.counted))), *parts])


def _of_some(found: ClassMatches, weights: np.ndarray) -> np.ndarray:
    objects = weights[:, found.object_images].sum(axis=1, keepdims=True)  # (b, 1)
    always = found.counted.all(axis=0)
    rank_of_always, until_always = np.flatnonzero(always), _running(weights, found.images[always])
    out = np.zeros((len(weights), len(found.counted)))
    for t in range(out.shape[1]):
        hits = np.flatnonzero(found.hits(t))
        extra = np.flatnonzero(found.counted[t] & ~always)  # at this threshold, but not at all
        seen = until_always[:, np.searchsorted(rank_of_always, hits, side="right")]
        if len(extra):
            seen += _running(weights, found.images[extra])[:, np.searchsorted(extra, hits, side="right")]
        right = weights[:, found.images[hits]].cumsum(axis=1)
        precision = right / np.maximum(seen, 1)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        reached = np.floor(right * (100 / np.maximum(objects, 1))) + 1  # how many of the recalls 0, 0.01, ... 1
        out[:, t] = (best * np.diff(reached, prepend=0, axis=1)).sum(axis=1) / len(RECALLS)
    return np.where(objects > 0, out, np.nan)


def _running(weights: np.ndarray, images: np.ndarray) -> np.ndarray:
    """(b, n + 1) the summed weights of the first 0, 1, ... n detections, whose images are (n,)."""
    sums = np.zeros((len(weights), len(images) + 1), dtype=np.float32)
    np.cumsum(weights[:, images], axis=1, out=sums[:, 1:])
    return sums
