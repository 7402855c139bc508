"""A dirty data set: a training may do without some images that cannot be used, by number, and never silently."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from detector.data.image import ImageError
from detector.errors import DataError

SHOWN = 20  # in one message; the log has named every one

log = logging.getLogger("detector")


class Replaced(NamedTuple):
    """What takes a place (a sample, a batch, or the error that nothing could), and what is wrong with whose it was."""

    sample: Any
    bad: dict[int, str]  # index -> what is wrong


def usable(dataset: Dataset, index: int, error: ImageError, most: int) -> Replaced:
    """Another sample for one that raised `error`: of its shape, wide or tall, if there is one.

    Chosen by torch's generator alone, not by what was met before: a function of that generator's seed. It gives up, with
    the last error, after more than `most` bad images.
    """
    bad = {index: str(error)}
    for other in _others(dataset.sizes, index):
        if len(bad) > most:
            break
        try:
            return Replaced(dataset[other], bad)
        except ImageError as another:
            bad[other], error = str(another), another
        except DataError as another:  # not of the image: nothing takes its place
            return Replaced(another, bad)
    return Replaced(error, bad)


def _others(sizes: np.ndarray, index: int) -> Iterator[int]:
    """All other images in a random order, those of the same shape first."""
    order = torch.randperm(len(sizes)).numpy()
    wide = sizes[:, 1] > sizes[:, 0]  # (n,) from (h, w)
    like = wide[order] == wide[index]
    return (int(i) for i in np.concatenate([order[like], order[~like]]) if i != index)


class BadImages:
    """The images that a training did without, each named once in the log."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.found: dict[int, str] = {}

    def add(self, bad: Mapping[int, str]) -> None:
        """Raises DataError that lists them when there are more than `most`."""
        for index, reason in bad.items():
            if index not in self.found:
                self.found[index] = reason
                if len(self.found) <= self.most:
                    log.warning(
                        "another image takes the place of a bad one (%d of %d): %s", len(self.found), self.most, reason
                    )
        if len(self.found) > self.most:
            more = f"; and {len(self.found) - SHOWN} more" if len(self.found) > SHOWN else ""
            raise DataError(
                f"data.skip_bad: allows {self.most} bad images, but there are {len(self.found)}: mend them, or raise it. "
                f"{'; '.join(list(self.found.values())[:SHOWN])}{more}"
            )
