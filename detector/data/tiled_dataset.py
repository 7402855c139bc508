"""Training on tiles of images: they are places in an index, and no file is written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from detector.data.coco import CocoDataset
from detector.data.tiles import TrainingTiles
from detector.data.wrapped_dataset import WrappedDataset
from detector.errors import ConfigError, DataError
from detector.protocols import DataSet
from detector.records.geometry import Window
from detector.structures import Target


class TiledDataset(WrappedDataset):
    """The tiles of the images of another data set, each with the objects that it shows; its transform sees a tile as an image.

    The last image stays decoded, so that tiles in order read a file once; in random order each tile reads its image.

    Args:
        dataset: the images.
        tiles: where the tiles lie, and which objects are learnt in them.
        keep_empty: keep tiles without objects to learn.

    Raises ConfigError for a data set that is no CocoDataset, DataError where no tile is left.
    """

    dataset: CocoDataset

    def __init__(self, dataset: DataSet, tiles: TrainingTiles, *, keep_empty: bool) -> None:
        if not isinstance(dataset, CocoDataset):
            raise ConfigError(
                f"data.tiles: cuts the images of CocoDataset and its subclasses; {type(dataset).__name__} may give tiles itself"
            )
        super().__init__(dataset)
        self.tiles = tiles
        boxes, labels, _ = dataset.boxes()
        ends = np.searchsorted(dataset.objects()[0], np.arange(len(dataset) + 1))
        image_of, windows, learnt = [], [], []
        for i, size in enumerate(dataset.sizes.tolist()):
            own = slice(ends[i], ends[i + 1])
            for window in tiles.windows(tuple(size)):
                found = labels[own][tiles.learns(shares(boxes[own], window))]
                if keep_empty or len(found):
                    image_of.append(i)
                    windows.append(window)
                    learnt.append(found)
        if not image_of:
            raise DataError(
                f"{dataset.annotation_file}: no tile shows {tiles.keep:g} of an object; raise data.tiles.size or "
                "lower data.tiles.keep"
            )
        self._image_of, self._windows = np.array(image_of), np.array(windows).reshape(-1, 4)
        self._owner = np.repeat(np.arange(len(learnt)), [len(found) for found in learnt])
        self._labels = np.concatenate([labels[:0], *learnt])
        self.sizes, self.image_ids = self._windows[:, 2:], dataset.image_ids[self._image_of]
        self.report = f"{dataset.report}; {len(self)} {tiles}, with {len(self._labels)} objects"
        self._last: tuple[int, tuple[Tensor, Target]] | None = None

    def __len__(self) -> int:
        return len(self._image_of)

    def __getitem__(self, i: int) -> tuple[Tensor, Target, int]:
        number = int(self._image_of[i])
        if self._last is None or self._last[0] != number:
            self._last = None  # not two images at once
            self._last = number, self.dataset.plain(number)
        image, target = self._last[1]
        top, left, h, w = window = tuple(self._windows[i].tolist())
        part = image[:, top : top + h, left : left + w].clone()  # another process would be sent the whole image with it
        return *self.dataset.finished(part, part_of(target, window, self.tiles)), int(self.image_ids[i])

    def objects(self) -> tuple[np.ndarray, np.ndarray]:
        """The index of the tile (B,) and the label (B,) of every object that is learnt there."""
        return self._owner, self._labels


def shares(boxes: np.ndarray, window: Window) -> np.ndarray:
    """(B, 4) -> (B,) the share of the area of each box that lies in a window."""
    top, left, h, w = window
    inside = boxes.clip([left, top] * 2, [left + w, top + h] * 2)
    area, seen = ((x[:, 2:] - x[:, :2]).astype(np.float64).prod(axis=1) for x in (boxes, inside))
    return seen / area


def part_of(target: Target, window: Window, tiles: TrainingTiles) -> Target:
    """The objects that are learnt in a window, cut to it; what it shows of others becomes a crowd region."""
    shown = shares(target.boxes.numpy(), window)
    learnt = torch.from_numpy(tiles.learns(shown))
    crowd = torch.cat([target.crowd, target.boxes[torch.from_numpy(shown > 0) & ~learnt]])
    return replace(target, crowd=crowd)[learnt].cropped(window).clipped(window[2:])
