"""Batches of samples, loaded by worker processes and reproducible.

The order is a function of (seed, epoch); the random numbers of a sample are a function of (seed, epoch, index). Neither
depends on the number of workers or processes, or on earlier samples. So a resumed run loads the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from detector.data.image import ImageError
from detector.data.sampler import EpochIndex, GroupedBatchSampler
from detector.data.semantic_maps import UNLABELLED
from detector.data.skip_bad import BadImages, Replaced, usable
from detector.data.workers import is_from_data_set, lost_worker
from detector.errors import DataError
from detector.protocols import DataSet
from detector.rng import seeded
from detector.structures import Target

IGNORE_ALL = [[-1e6, -1e6, 1e6, 1e6]]  # a crowd region that covers any image with all its anchors


class ImageLoader(DataLoader):
    """A `DataLoader` that does not use the global generator and raises a worker's `DataError` unchanged.

    PyTorch itself would put the message into the text of a traceback. `bad` holds the images that were replaced.
    """

    def __init__(self, dataset: Dataset, *, skip_bad: int = 0, **options: Any) -> None:
        self.bad = BadImages(skip_bad)
        super().__init__(dataset, collate_fn=collate, generator=torch.Generator(), **options)

    def __iter__(self) -> Iterator[Any]:
        batches = super().__iter__()
        while (batch := self._next(batches)) is not None:
            if isinstance(batch, Replaced):
                self.bad.add(batch.bad)
                batch = batch.sample
            if isinstance(batch, DataError):
                try:
                    raise batch
                finally:
                    # a reference cycle of error and frame would keep the workers alive for 10 s
                    del batch
            yield batch

    def _next(self, batches: Iterator[Any]) -> Any:
        """The next batch, None after the last one. Raises RuntimeError if a loading process died."""
        try:
            return next(batches, None)
        except (OSError, EOFError) as error:
            if self.num_workers and not is_from_data_set(error):
                raise lost_worker() from error
            raise


def train_loader(
    dataset: DataSet, batch_size: int, workers: int, seed: int, *, rank: int = 0, world: int = 1,
    repeats: np.ndarray | None = None, skip_bad: int = 0, pin: bool = False,
) -> ImageLoader:  # fmt: skip
    """Batches of lists (images, targets, image ids), shuffled; call `.batch_sampler.set_epoch` before each epoch.

    `pin`: in pinned memory, which a GPU reads by itself.
    """
    sampler = GroupedBatchSampler(dataset.sizes, batch_size, seed=seed, rank=rank, world=world, repeats=repeats)
    options = {"num_workers": workers, "persistent_workers": workers > 0, "skip_bad": skip_bad, "pin_memory": pin}
    return ImageLoader(_Seeded(dataset, seed, skip_bad), batch_sampler=sampler, **options)


def eval_loader(
    dataset: DataSet, prepare: Callable[[Tensor], Tensor], workers: int, batch_size: int = 1,
    indices: Sequence[int] | None = None,
) -> ImageLoader:  # fmt: skip
    """Batches of lists (prepared images, original sizes (h, w), image ids) in the order of `indices` or the data set."""
    return ImageLoader(_Prepared(dataset, prepare), batch_size=batch_size, num_workers=workers, sampler=indices)


def collate(samples: list[Any]) -> Any:
    """Samples of (a, b, c) to lists of a, b and c, or the first error among them, with the images that were replaced."""
    bad: dict[int, str] = {}
    for replaced in (sample for sample in samples if isinstance(sample, Replaced)):
        bad |= replaced.bad
    samples = [sample.sample if isinstance(sample, Replaced) else sample for sample in samples]
    errors = [sample for sample in samples if isinstance(sample, DataError)]
    batch = errors[0] if errors else tuple(map(list, zip(*samples)))
    return Replaced(batch, bad) if bad else batch


class _Seeded(Dataset):
    """Samples by (epoch, index), seeded by both and the seed; up to `skip_bad` bad images are replaced."""

    def __init__(self, dataset: Dataset, seed: int, skip_bad: int) -> None:
        self.dataset, self.seed, self.skip_bad = dataset, seed, skip_bad

    def __getitem__(self, place: EpochIndex) -> Any:
        bad: dict[int, str] = {}
        with seeded(self.seed, place.epoch, place.index):
            sample = _guarded(self.dataset.__getitem__, place.index)
            if self.skip_bad and isinstance(sample, ImageError):
                sample, bad = usable(self.dataset, place.index, sample, self.skip_bad)
        sample = _padding_sample(*sample) if place.is_padding and not isinstance(sample, DataError) else sample
        return Replaced(sample, bad) if bad else sample


class _Prepared(Dataset):
    """Images without objects, preprocessed by the worker."""

    def __init__(self, dataset: DataSet, prepare: Callable[[Tensor], Tensor]) -> None:
        self.dataset, self.prepare = dataset, prepare

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Any:
        return _guarded(self._prepared, i)

    def _prepared(self, i: int) -> tuple[Tensor, tuple[int, int], int]:
        image = self.dataset.image(i)
        return self.prepare(image), (image.shape[1], image.shape[2]), int(self.dataset.image_ids[i])


def _padding_sample(image: Tensor, target: Target, image_id: int) -> tuple[Tensor, Target, int]:
    """The image without objects and classes of pixels, and with all of it ignored as background."""
    semantic = None if target.semantic is None else torch.full_like(target.semantic, UNLABELLED)
    return image, replace(target[:0], crowd=torch.tensor(IGNORE_ALL), semantic=semantic), image_id


def _guarded(sample: Callable[[int], Any], i: int) -> Any:
    """A sample, or the `DataError` that it raised (see `ImageLoader`)."""
    try:
        return sample(i)
    except DataError as error:
        return error
