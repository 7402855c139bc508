"""Iterative stratification: units of several classes are divided so that each class reaches its share in every split.

Sechidis, Tsoumakas, Vlahavas: On the Stratification of Multi-label Data, ECML PKDD 2011. The unit here is a group of images,
what is counted are objects, and afterwards units move or are exchanged while that improves the fit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.random import RandomState

IMAGES, EMPTY = -2, -1  # what is counted beside the labels 0..K-1: images, and images without objects
IMAGE_WEIGHT = 10  # of the number of images beside one class; 10 keeps 128 photos of 71 classes within 2 images of 20 %
PASSES = 10  # of moves over all units; the second pass rarely finds anything to move
EXCHANGES = 100_000  # pairs of units that are tried at most: a second, and nearly every pair of some hundred units

Counts = Mapping[int, int]  # IMAGES, EMPTY or a label -> how many of them a unit has


def stratify(units: Sequence[Counts], shares: Sequence[float], seed: int) -> list[int]:
    """The index of a split for every unit; `shares` sum to 1.

    Only Python's own numbers are added, in a fixed order, so that every machine finds the same.
    """
    rng = RandomState(seed)
    order = rng.permutation(len(units)).tolist()
    count = min(EXCHANGES, 4 * len(units) ** 2)  # of few units every pair comes up about eight times
    pairs = rng.randint(len(units), size=(count, 2), dtype=np.int64).tolist()
    stratification = _Stratification(units, shares)
    stratification.place_rare_classes_first(order)
    for _ in range(PASSES):
        if not sum(stratification.moves(i) for i in order):
            break
    for a, b in pairs:
        stratification.exchanges(a, b)
    return stratification.split_of


class _Stratification:
    """Units in splits, and how much each split lacks of every kind; negative where it has too much."""

    def __init__(self, units: Sequence[Counts], shares: Sequence[float]) -> None:
        totals: dict[int, int] = defaultdict(int)
        for unit in units:
            for kind, count in unit.items():
                totals[kind] += count
        self.units, self.shares, self.split_of = units, shares, [-1] * len(units)
        self.missing = {kind: [total * share for share in shares] for kind, total in totals.items()}
        self.weight = {kind: (IMAGE_WEIGHT if kind == IMAGES else 1) / total for kind, total in totals.items()}

    def place(self, i: int, split: int) -> None:
        """Put a unit into a split, out of the one that it was in."""
        for kind, count in self.units[i].items():
            missing = self.missing[kind]
            if self.split_of[i] >= 0:
                missing[self.split_of[i]] += count
            missing[split] -= count
        self.split_of[i] = split

    def cost(self, kinds: Iterable[int]) -> float:
        """Chi-square of these kinds: the sum of missing**2 / wanted, over the splits."""
        return sum(
            self.weight[kind] * missing * missing / share
            for kind in kinds
            for missing, share in zip(self.missing[kind], self.shares)
        )

    def place_rare_classes_first(self, order: Sequence[int]) -> None:
        """Give each unit of the rarest class to the split that lacks most of it; then those of the next class."""
        members: dict[int, list[int]] = defaultdict(list)
        for i in order:
            for kind in self.units[i]:
                members[kind].append(i)
        left = {kind: len(rows) for kind, rows in members.items()}  # units that no split has yet
        del left[IMAGES]  # a unit has objects, or images without objects
        while left:
            rarest = min(left, key=lambda kind: (left[kind], kind))
            rows = [i for i in members[rarest] if self.split_of[i] < 0]
            for i in sorted(rows, key=lambda i: -self.units[i][rarest]):  # the small ones fill what is left
                lacks = list(zip(self.missing[rarest], self.missing[IMAGES]))
                self.place(i, lacks.index(max(lacks)))
                for kind in self.units[i].keys() & left.keys():
                    left[kind] -= 1
            del left[rarest]

    def moves(self, i: int) -> bool:
        """Move a unit to the split where it costs least; whether it was in another one."""
        old, costs = self.split_of[i], []
        for split in range(len(self.shares)):
            self.place(i, split)
            costs.append(self.cost(self.units[i]))
        best = costs.index(min(costs))
        self.place(i, best if costs[best] < costs[old] - 1e-9 else old)
        return self.split_of[i] != old

    def exchanges(self, a: int, b: int) -> None:
        """Exchange two units if that costs less."""
        first, second = self.split_of[a], self.split_of[b]
        if first == second:
            return
        kinds = list(dict.fromkeys([*self.units[a], *self.units[b]]))
        before = self.cost(kinds)
        self.place(a, second)
        self.place(b, first)
        if self.cost(kinds) > before - 1e-9:
            self.place(a, first)
            self.place(b, second)
