"""Iterative stratification: units of several classes are divided so that each class reaches its share in every split.

Sechidis, Tsoumakas, Vlahavas: On the Stratification of Multi-label Data, ECML PKDD 2011. The unit here is a group of images,
what is counted are objects, and single units move afterwards while that improves the fit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from numpy.random import RandomState

IMAGES, EMPTY = -2, -1  # what is counted beside the labels 0..K-1: images, and images without objects
IMAGE_WEIGHT = 10  # of the number of images beside one class; 10 keeps 128 photos of 71 classes within 2 images of 20 %
PASSES = 10  # over all units; the second pass rarely finds anything to move

Counts = Mapping[int, int]  # IMAGES, EMPTY or a label -> how many of them a unit has


def stratify(units: Sequence[Counts], shares: Sequence[float], seed: int) -> list[int]:
    """The index of a split for every unit; `shares` sum to 1.

    Only Python's own numbers are added, in a fixed order, so that every machine finds the same.
    """
    totals: dict[int, int] = defaultdict(int)
    for unit in units:
        for kind, count in unit.items():
            totals[kind] += count
    order = RandomState(seed).permutation(len(units)).tolist()
    missing = {kind: [total * share for share in shares] for kind, total in totals.items()}
    split_of = _rare_classes_first(units, order, missing)
    for _ in range(PASSES):
        if not _move_units(units, order, split_of, missing, totals, shares):
            break
    return split_of


def _rare_classes_first(units: Sequence[Counts], order: Sequence[int], missing: dict[int, list[float]]) -> list[int]:
    """Give each unit of the rarest class to the split that lacks most of it; then those of the next class.

    `missing`: how many of each kind every split lacks; negative where it has too many.
    """
    split_of = [-1] * len(units)
    members: dict[int, list[int]] = defaultdict(list)
    for i in order:
        for kind in units[i]:
            members[kind].append(i)
    left = {kind: len(rows) for kind, rows in members.items()}  # units that no split has yet
    del left[IMAGES]  # a unit has objects, or images without objects
    while left:
        rarest = min(left, key=lambda kind: (left[kind], kind))
        rows = [i for i in members[rarest] if split_of[i] < 0]
        for i in sorted(rows, key=lambda i: -units[i][rarest]):  # the small ones fill what is left
            splits = range(len(missing[rarest]))
            split_of[i] = max(splits, key=lambda s: (missing[rarest][s], missing[IMAGES][s]))
            _take(units[i], missing, split_of[i], 1)
            for kind in units[i].keys() & left.keys():
                left[kind] -= 1
        del left[rarest]
    return split_of


def _take(unit: Counts, missing: dict[int, list[float]], split: int, times: int) -> None:
    for kind, count in unit.items():
        missing[kind][split] -= times * count


def _move_units(
    units: Sequence[Counts], order: Sequence[int], split_of: list[int], missing: dict[int, list[float]],
    totals: Counts, shares: Sequence[float],
) -> int:  # fmt: skip
    """Move each unit to the split where it lowers chi-square, the sum of missing**2 / wanted; how many were moved."""
    moved, weight = 0, {kind: (IMAGE_WEIGHT if kind == IMAGES else 1) / total for kind, total in totals.items()}
    for i in order:
        old = split_of[i]
        _take(units[i], missing, old, -1)
        costs = [
            sum(weight[kind] * count * (count - 2 * missing[kind][s]) / share for kind, count in units[i].items())
            for s, share in enumerate(shares)
        ]  # (missing - count)**2 - missing**2, over what is wanted
        best = min(range(len(shares)), key=lambda s: costs[s])
        split_of[i] = best if costs[best] < costs[old] - 1e-9 else old
        moved += split_of[i] != old
        _take(units[i], missing, split_of[i], 1)
    return moved
