"""Batches of image indices; the order of an epoch is a function of (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

from detector.errors import ConfigError
from detector.rng import mix


class EpochIndex(NamedTuple):
    """An image in an epoch; a padding sample takes part in the step without objects or background."""

    epoch: int
    index: int
    is_padding: bool = False


class GroupedBatchSampler(Sampler[list[EpochIndex]]):
    """Batches of only wide or only tall images, which limits padding.

    The remainders of both groups share the last one or two batches; only the very last may be short. Each process takes
    its share of every batch. All shares have the same size: padding samples fill a batch that does not divide evenly.

    Args:
        sizes: (n, 2) height and width of every image.
        batch_size: images per batch, of all processes together.
        seed: seed of the order.
        rank: number of this process.
        world: number of processes.
        repeats: (n,) mean number of times that an image occurs in an epoch; each epoch rounds it down or up.
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
        """Choose the epoch and its first batch (a resumed run starts in the middle of an epoch)."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Number of batches of a whole epoch; it is the same for every epoch and does not depend on the first batch."""
        totals = [_total(self.repeats[group]) for group in (self.wide, ~self.wide)]
        full = sum(total // self.batch_size for total in totals)
        return full + -(-(sum(totals) - full * self.batch_size) // self.batch_size)  # ceil of the leftovers

    def __iter__(self) -> Iterator[list[EpochIndex]]:
        for batch in self.batches()[self.start :]:
            share = [EpochIndex(self.epoch, index) for index in batch[self.rank :: self.world]]
            missing = -(-len(batch) // self.world) - len(share)
            yield share + [EpochIndex(self.epoch, batch[0], is_padding=True)] * missing

    def batches(self) -> list[list[int]]:
        """All batches of the epoch, for all processes."""
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
        """The images of an epoch with their repetitions, not shuffled.

        Systematic resampling: one random offset, then unit steps over the cumulative repeats.
        """
        if (self.repeats == 1).all():
            return np.arange(len(self.wide))
        drawn = []
        for group in filter(len, (np.flatnonzero(self.wide), np.flatnonzero(~self.wide))):
            ends = np.cumsum(self.repeats[group])
            steps = np.arange(_total(self.repeats[group])) + torch.rand(1, generator=generator).item()
            rows = np.searchsorted(ends, steps * (ends[-1] / len(steps)), side="right")
            drawn.append(group[rows.clip(max=len(group) - 1)])
        return np.concatenate(drawn)


def repeat_factors(owner: np.ndarray, labels: np.ndarray, images: int, threshold: float) -> np.ndarray:
    """Repeat factor of each image, (n,) >= 1, which oversamples rare classes (Gupta et al. 2019, LVIS, arXiv 1908.03195).

    A class in a fraction f of the images has the factor max(1, sqrt(threshold / f)); an image has the largest factor of
    its classes.

    Args:
        owner: (B,) image of every object.
        labels: (B,) class of every object.
        images: number of images n.
        threshold: fraction of images below which a class is repeated.
    """
    pairs = np.unique(np.stack([owner, labels], axis=1), axis=0)  # each class of an image once
    share = np.bincount(pairs[:, 1]) / images
    factor = np.maximum(1, np.sqrt(threshold / np.maximum(share, 1e-12)))
    factors = np.ones(images)
    np.maximum.at(factors, pairs[:, 0], factor[pairs[:, 1]])
    return factors


def repeats_of(dataset: Any, threshold: float | None) -> np.ndarray | None:
    """Repeats of each image in an epoch (n,), by repeat-factor sampling; None: once each."""
    if threshold is None:
        return None
    if not hasattr(dataset, "objects"):
        raise ConfigError(
            f"data.repeat_threshold: {type(dataset).__name__} must have `objects`: objects() gives the image and label of "
            "every object"
        )
    return repeat_factors(*dataset.objects(), len(dataset), threshold)


def _total(repeats: np.ndarray) -> int:
    """Number of images that each epoch draws from a group."""
    return int(np.ceil(repeats.sum() - 1e-6))
