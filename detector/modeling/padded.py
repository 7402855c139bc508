"""Records of several images as tensors whose shapes do not depend on what was found in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.modeling.shapes import constants
from detector.records.record import Record

Rec = TypeVar("Rec", bound=Record)


class Padded(Sequence[Rec], Generic[Rec]):
    """The records of N images with R rows each, of which the first are valid and the rest is padding.

    As a sequence it has the record of every image without padding; this alone waits for the device, once for all images.

    Args:
        rows: fields (N, R, ...).
        valid: (N, R) bool, true before false.
    """

    def __init__(self, rows: Rec, valid: Tensor):
        self.rows, self.valid = rows, valid

    @classmethod
    def of(cls, records: Sequence[Rec]) -> Padded[Rec]:
        """The records of N images, at least one, padded with zeros to the longest."""
        if isinstance(records, Padded):
            return records
        counts = [len(record) for record in records]
        most = max(counts)
        fields = [record.row_fields() for record in records]
        values = {name: torch.stack([_lengthened(of_image[name], most) for of_image in fields]) for name in fields[0]}
        device = next(iter(values.values())).device
        rows = torch.arange(most, device=device)
        valid = rows < constants(counts, rows)[:, None]
        return cls(replace(records[0], **values), valid)

    def whole(self) -> list[Rec]:
        """The record of every image, padding included: R rows each."""
        return [self._image(i, None) for i in range(len(self))]

    def __len__(self) -> int:
        return len(self.valid)

    def __iter__(self) -> Iterator[Rec]:
        counts = self.valid.sum(dim=1).tolist()
        return iter([self._image(i, count) for i, count in enumerate(counts)])

    @overload
    def __getitem__(self, i: int) -> Rec: ...
    @overload
    def __getitem__(self, i: slice) -> list[Rec]: ...
    def __getitem__(self, i: Any) -> Any:
        return list(self)[i]

    def _image(self, i: int, count: int | None) -> Rec:
        """The first rows of an image."""
        return replace(self.rows, **{name: value[i, :count] for name, value in self.rows.row_fields().items()})


def _lengthened(value: Tensor, count: int) -> Tensor:
    """(n, ...) -> (count, ...), zeros after the rows."""
    return F.pad(value, [0, 0] * (value.ndim - 1) + [0, count - len(value)])
