"""Replacing unusable images in training: up to a limit, and each is logged."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from detector.data.image import ImageError
from detector.errors import DataError

SHOWN = 20  # reasons in the final message; the log has all

log = logging.getLogger("detector")


class Replaced(NamedTuple):
    """A replacement (a sample, a batch, or an error if there was none) and the reasons why images were replaced."""

    sample: Any
    bad: dict[int, str]  # index -> reason


def usable(dataset: Dataset, index: int, error: ImageError, most: int) -> Replaced:
    """A replacement for the sample that raised `error`, of the same orientation (wide or tall) if there is one.

    The choice is a function of the seed of torch's generator alone. After more than `most` bad images the replacement is
    the last error.
    """
    bad = {index: str(error)}
    for other in _others(dataset.sizes, index):
        if len(set(bad.values())) > most:  # the tiles of an image have one reason
            break
        try:
            return Replaced(dataset[other], bad)
        except ImageError as another:
            bad[other], error = str(another), another
        except DataError as another:  # not the fault of an image: no replacement
            return Replaced(another, bad)
    return Replaced(error, bad)


def _others(sizes: np.ndarray, index: int) -> Iterator[int]:
    """All other images in random order, those of the same orientation first."""
    order = torch.randperm(len(sizes)).numpy()
    wide = sizes[:, 1] > sizes[:, 0]  # (n,) from (h, w)
    like = wide[order] == wide[index]
    return (int(i) for i in np.concatenate([order[like], order[~like]]) if i != index)


class BadImages:
    """The images that were replaced in a training; each is logged once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.found: dict[int, str] = {}

    def add(self, bad: Mapping[int, str]) -> None:
        """Log new ones. Raises DataError with all of them when there are more than `most`."""
        for index, reason in bad.items():
            if reason not in self.found.values():
                self.found[index] = reason
                if len(self.found) <= self.most:
                    log.warning("another image replaces a bad one (%d of %d): %s", len(self.found), self.most, reason)
        if len(self.found) > self.most:
            more = f"; and {len(self.found) - SHOWN} more" if len(self.found) > SHOWN else ""
            raise DataError(
                f"data.skip_bad: allows {self.most} bad images, but there are {len(self.found)}: fix them, or raise the limit. "
                f"{'; '.join(list(self.found.values())[:SHOWN])}{more}"
            )
