"""Images whose values tell a quantiser the range of each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from detector.data.settings import build_dataset
from detector.errors import DetectorError
from detector.export.graph import padded
from detector.inference.folder import find_images
from detector.inference.predictor import Predictor
from detector.records.geometry import Size

ENOUGH = 300  # images, NNCF's own number


class CalibrationImages(Sequence[tuple[Tensor, Tensor]]):
    """Inputs of a graph, made of up to 300 images that lie evenly among those given; read when they are asked for.

    Raises DetectorError for training images that cannot be found.

    Args:
        predictor: the detector.
        paths: files, folders and patterns; none: the images that it was trained on.
        size: (h, w) of the graph.
        batch: images at once.
    """

    def __init__(self, predictor: Predictor, paths: Sequence[str], size: Size, batch: int):
        self.predictor, self.size = predictor, size
        self.read, count = self._files(paths) if paths else self._training_images()
        groups = -(-min(count, ENOUGH) // batch)
        self.groups = [
            [i * count // (groups * batch) for i in range(g * batch, (g + 1) * batch)] for g in range(groups)
        ]

    def _files(self, paths: Sequence[str]) -> tuple[Callable[[int], Tensor], int]:
        jobs = find_images(paths, Path(".none"))
        return lambda i: self.predictor.read(jobs[i].path), len(jobs)

    def _training_images(self) -> tuple[Callable[[int], Tensor], int]:
        try:
            data = replace(self.predictor.config.needed_data(), keep_empty=True)
            dataset = build_dataset(data, "train", class_names=self.predictor.class_names)
        except DetectorError as error:
            raise type(error)(f"{error}; or name images for int8 by --calibrate") from error
        return dataset.image, len(dataset)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, i):  # type: ignore[no-untyped-def, override]
        images = [self.predictor.resize.resize_within(self.read(n), self.size) for n in self.groups[i]]
        return padded(images, self.size)
