"""Which images make a batch: an epoch's order as a function of (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

from detector.rng import mix


class EpochIndex(NamedTuple):
    """An image in an epoch; a filler is looked at but not learnt from."""

    epoch: int
    index: int
    filler: bool = False


class GroupedBatchSampler(Sampler[list[EpochIndex]]):
    """Batches of wide images only or of tall ones only, so that padding wastes little.

    The leftovers of both groups share the last one or two batches; only the very last may be short. With `world`
    processes each takes its share of every batch, all equally many: where a batch does not divide evenly, fillers.
    `repeats` (n,): how often an image comes in an epoch on average; an epoch takes the whole number below or above.
    """

    def __init__(
        self, sizes: np.ndarray, batch_size: int, *, seed: int, rank: int = 0, world: int = 1,
        repeats: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.wide = sizes[:, 1] > sizes[:, 0]  # (n,) from (h, w)
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self.repeats = np.ones(len(sizes)) if repeats is None else repeats
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and the batch to begin with (for a run resumed in the middle of it)."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """The batches of a whole epoch, wherever this one starts, whichever it is."""
        totals = [_total(self.repeats[group]) for group in (self.wide, ~self.wide)]
        full = sum(total // self.batch_size for total in totals)
        return full + -(-(sum(totals) - full * self.batch_size) // self.batch_size)  # ceil of the leftovers

    def __iter__(self) -> Iterator[list[EpochIndex]]:
        for batch in self.batches()[self.start :]:
            share = [EpochIndex(self.epoch, index) for index in batch[self.rank :: self.world]]
            missing = -(-len(batch) // self.world) - len(share)
            yield share + [EpochIndex(self.epoch, batch[0], filler=True)] * missing

    def batches(self) -> list[list[int]]:
        """All batches of the epoch, of all processes together."""
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        drawn = self._draw(generator)
        batches: list[list[int]] = []
        waiting: dict[bool, list[int]] = {True: [], False: []}
        for i in torch.randperm(len(drawn), generator=generator).tolist():
            index = int(drawn[i])
            group = waiting[bool(self.wide[index])]
            group.append(index)
            if len(group) == self.batch_size:
                batches.append(group.copy())
                group.clear()
        rest = waiting[True] + waiting[False]
        return batches + [rest[i : i + self.batch_size] for i in range(0, len(rest), self.batch_size)]

    def _draw(self, generator: torch.Generator) -> np.ndarray:
        """The images of an epoch, with their repetitions, unshuffled.

        Systematic sampling: laid end to end, each as long as it is to be repeated, an image is taken as often as a comb of
        teeth one apart, shifted by chance, meets it.
        """
        if (self.repeats == 1).all():
            return np.arange(len(self.wide))
        drawn = []
        for group in filter(len, (np.flatnonzero(self.wide), np.flatnonzero(~self.wide))):
            ends = np.cumsum(self.repeats[group])
            teeth = np.arange(_total(self.repeats[group])) + torch.rand(1, generator=generator).item()
            rows = np.searchsorted(ends, teeth * (ends[-1] / len(teeth)), side="right")
            drawn.append(group[rows.clip(max=len(group) - 1)])
        return np.concatenate(drawn)


def repeat_factors(owner: np.ndarray, labels: np.ndarray, images: int, threshold: float) -> np.ndarray:
    """How often each image should come, (n,) >= 1, so that rare classes are seen (Gupta et al. 2019, LVIS, arXiv 1908.03195).

    `owner` and `labels` (B,) are the image and the class of every object. A class that is in a fraction f of the images
    asks for max(1, sqrt(threshold / f)); an image gives what the rarest of its classes asks.
    """
    pairs = np.unique(np.stack([owner, labels], axis=1), axis=0)  # each class of an image once
    share = np.bincount(pairs[:, 1]) / images
    asked = np.maximum(1, np.sqrt(threshold / np.maximum(share, 1e-12)))
    factors = np.ones(images)
    np.maximum.at(factors, pairs[:, 0], asked[pairs[:, 1]])
    return factors


def _total(repeats: np.ndarray) -> int:
    """How many images of a group an epoch takes: always the same."""
    return int(np.ceil(repeats.sum() - 1e-6))
