"""Batches: which images, in which order, with which random numbers.

The order is a function of (seed, epoch), and what chance does to a sample of (seed, epoch, index): nothing depends on
the number of workers or processes or on what was loaded before. So a resumed run sees the images it would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from detector.data.coco import CocoDataset
from detector.errors import DataError


class GroupedBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index), each of wide images only or of tall ones only, so that padding wastes little.

    The leftovers of both groups share the last one or two batches; only the very last may be short. With `world`
    processes each takes its share of every batch; where it is too short for all of them, some take the same image.
    """

    def __init__(self, sizes: np.ndarray, batch_size: int, *, seed: int, rank: int = 0, world: int = 1) -> None:
        self.wide = sizes[:, 1] > sizes[:, 0]  # (n,) from (h, w)
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and the batch to begin with (for a run resumed in the middle of it)."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """The batches of a whole epoch, wherever this one starts."""
        wide = int(self.wide.sum())
        full = wide // self.batch_size + (len(self.wide) - wide) // self.batch_size
        return full + -(-(len(self.wide) - full * self.batch_size) // self.batch_size)  # ceil of the leftovers

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        for batch in self.batches()[self.start :]:
            share = batch[self.rank :: self.world] or [batch[self.rank % len(batch)]]
            yield [(epoch, index) for index in share]

    def batches(self) -> list[list[int]]:
        """All batches of the epoch, of all processes together."""
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        batches, waiting = [], {True: [], False: []}
        for index in torch.randperm(len(self.wide), generator=generator).tolist():
            group = waiting[bool(self.wide[index])]
            group.append(index)
            if len(group) == self.batch_size:
                batches.append(group.copy())
                group.clear()
        rest = waiting[True] + waiting[False]
        return batches + [rest[i : i + self.batch_size] for i in range(0, len(rest), self.batch_size)]


class Loader(DataLoader):
    """A `DataLoader` that leaves the global generator alone and raises a worker's `DataError` as it is.

    Torch itself would bury the message in the text of a traceback.
    """

    def __init__(self, dataset: Dataset, **options: Any) -> None:
        super().__init__(dataset, collate_fn=collate, generator=torch.Generator(), **options)

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            if isinstance(batch, DataError):
                raise batch
            yield batch


def train_loader(
    dataset: CocoDataset, batch_size: int, workers: int, seed: int, *, rank: int = 0, world: int = 1
) -> Loader:
    """Batches of lists (images, targets, image ids), shuffled; call `.batch_sampler.set_epoch` before each epoch."""
    sampler = GroupedBatchSampler(dataset.sizes, batch_size, seed=seed, rank=rank, world=world)
    return Loader(_Seeded(dataset, seed), batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0)


def eval_loader(
    dataset: CocoDataset, prepare: Callable[[Tensor], Tensor], workers: int, batch_size: int = 1,
    indices: Sequence[int] | None = None,
) -> Loader:  # fmt: skip
    """Batches of lists (prepared images, original sizes (h, w), image ids) in the order of `indices` or the data set."""
    return Loader(_Prepared(dataset, prepare), batch_size=batch_size, num_workers=workers, sampler=indices)


def mix(*numbers: int) -> int:
    """One seed from several: unlike their sum, no two of a run's are alike."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def collate(samples: list[Any]) -> Any:
    """Samples of (a, b, c) to lists of a, b and c; or the first error among them."""
    errors = [sample for sample in samples if isinstance(sample, DataError)]
    return errors[0] if errors else tuple(map(list, zip(*samples)))


class _Seeded(Dataset):
    """Samples by (epoch, index), chance being a function of these and the seed."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, place: tuple[int, int]) -> Any:
        with torch.random.fork_rng(devices=[]):  # without workers this is the generator of the training itself
            torch.default_generator.manual_seed(mix(self.seed, *place))  # torch.manual_seed would reset the GPU's too
            return _guarded(self.dataset.__getitem__, place[1])


class _Prepared(Dataset):
    """Images alone, made ready for the model by the worker."""

    def __init__(self, dataset: CocoDataset, prepare: Callable[[Tensor], Tensor]) -> None:
        self.dataset, self.prepare = dataset, prepare

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Any:
        return _guarded(self._prepared, i)

    def _prepared(self, i: int) -> tuple[Tensor, tuple[int, int], int]:
        image = self.dataset.image(i)
        return self.prepare(image), (image.shape[1], image.shape[2]), int(self.dataset.image_ids[i])


def _guarded(sample: Callable[[int], Any], i: int) -> Any:
    """A sample, or the `DataError` that it raised (see `Loader`)."""
    try:
        return sample(i)
    except DataError as error:
        return error
