"""Masks and other shapes in the targets of a data set of the user's own."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from torch import Tensor

from detector.data.wrapped_dataset import WrappedDataset
from detector.errors import DataError
from detector.protocols import DataSet
from detector.structures import Target, check_fields, image_size

HOW = {
    "masks": "`outlines` or `masks`",
    "outlines": "`outlines`",
    "keypoints": "`keypoints`",
    "semantic": "`semantic`",
}


class OwnTargets(WrappedDataset):
    """Another data set whose targets hold the `fields` that the model reads.

    Masks are drawn here, by the processes that load images, where a target has outlines and no masks. Raises DataError for
    a target that lacks a field, or whose masks are no bitmaps of its image.
    """

    def __init__(self, dataset: DataSet, fields: Collection[str]) -> None:
        super().__init__(dataset)
        self.fields = frozenset(fields)

    def __getitem__(self, i: int) -> tuple[Tensor, Target, int]:
        image, target, image_id = self.dataset[i]
        if "masks" in self.fields and target.masks is None:
            target = target.drawn(image_size(image))
        where = f"data.type: {type(self.dataset).__name__}, image id {image_id}"
        for name in sorted(self.fields):
            if getattr(target, name) is None:
                raise DataError(
                    f"{where}: its target has no {HOW.get(name, name)}, from which the model learns; docs/extending.md "
                    "shows a data set that has them"
                )
        try:
            check_fields(target, self.fields, image_size(image), where)
        except ValueError as error:
            raise DataError(str(error)) from error
        return image, target if "outlines" in self.fields else replace(target, outlines=None), image_id
