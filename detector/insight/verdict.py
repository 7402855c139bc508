"""The verdict: in words, what costs most and what to do about it."""

from __future__ import annotations

import math

import numpy as np

from detector.insight.analysis import SHAPES, Analysis
from detector.insight.funnel import STEPS

WORDS = {
    "Cls": "wrong classes cost most",
    "Loc": "badly placed {shapes} cost most",
    "Both": "detections of wrong class and place cost most",
    "Dupe": "duplicates cost most",
    "Bkg": "detections where nothing is labelled cost most",
}
ADVICE = {
    "Cls": "Look at the confusion matrix: are two classes labelled alike, or too rare to be told apart?",
    "Loc": "Train longer or on larger images (data.resize), or refine boxes by a cascade (model.roi_head.type: cascade).",
    "Both": "These are far from any object of their class: more training data of it helps most.",
    "Dupe": "Lower model.roi_head.selection.nms_iou, so that the better of two boxes suppresses the other.",
    "Bkg": "Look at the most confident of them below: they are objects without a label, or mistakes to learn from.",
}
RANGES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, math.inf)}
WORTH = 0.005  # of AP50; a lesser cost is not worth a word
LITTLE = 0.05  # of AP50 that is lost
FEW_IMAGES = 30  # the interval of fewer means little


def verdict(analysis: Analysis) -> list[str]:
    """One or a few sentences: the kind of error that costs most, of missed objects their size and step, and a remedy."""
    if not analysis.objects():
        return ["Nothing can be scored: the split has no objects. Name one that has by data.val."]
    costs = {kind: cost for kind, cost in analysis.costs.items() if not math.isnan(cost)}
    worst = max(costs, key=costs.__getitem__)
    if not len(analysis.errors.kinds):
        lines = ["Nothing is found in any image. Train longer, or with another learning rate."]
    elif costs[worst] < WORTH:
        lines = [_of_no_kind(analysis)]
    elif worst == "Miss":
        lines = _of_misses(analysis)
    else:
        words = WORDS[worst].format(shapes=SHAPES[analysis.kind])
        lines = [
            f"{words[0].upper()}{words[1:]}: {100 * costs[worst]:.1f} AP50, by {analysis.errors.count(worst)} of them.",
            ADVICE[worst],
        ]
    return lines + _doubts(analysis)


def _of_no_kind(analysis: Analysis) -> str:
    """What is left where no kind is worth a word: little, or errors that only cost together, as those of the same objects."""
    ap50 = analysis.errors.ap50()
    if 1 - ap50 < LITTLE:
        return "No kind of error costs more than 0.5 AP50: what is left is how exactly objects are outlined."
    return (
        f"No kind of error alone costs more than 0.5 AP50, which is {100 * ap50:.1f}: errors of several kinds hide each other's "
        "cost. Train longer, or with another learning rate."
    )


def _of_misses(analysis: Analysis) -> list[str]:
    by_size = {name: analysis.errors.lost("Miss", area=area) for name, area in RANGES.items()}
    size = max(by_size, key=by_size.__getitem__)
    whole = analysis.costs["Miss"]
    lines = [
        f"Misses of {size} objects cost most: {100 * by_size[size]:.1f} AP50 of the {100 * whole:.1f} that misses cost."
    ]
    if analysis.funnel is not None:
        counts = {step: counter[size] for step, counter in analysis.funnel.items()}
        step = max(counts, key=counts.__getitem__)
        name = list(STEPS)[step]
        total = sum(counts.values())
        if total:
            lines.append(f"{counts[step]} of the {total} {size} ones are lost as \u201c{name}\u201d: {STEPS[name]}.")
    return lines


def _doubts(analysis: Analysis) -> list[str]:
    """What makes the numbers uncertain."""
    interval, images = analysis.resampled.interval("AP"), len(analysis.image_ids)
    lines = []
    if images < FEW_IMAGES:
        lines.append(f"{images} image{'s' * (images != 1)} in the split: the numbers say little about other images.")
    elif not np.isnan(interval.low) and interval.high - interval.low > 0.1:
        width = 100 * (interval.high - interval.low)
        lines.append(f"The 95 % interval of AP is {width:.0f} wide: more images in the split would say more.")
    return lines
