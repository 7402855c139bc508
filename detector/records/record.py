"""The base of all records: fields that belong together and are indexed, moved and transformed as a whole.

Each field states its kind once, and every operation goes over all fields. So a field that a subclass adds (masks,
keypoints, a tag per object) takes part everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from detector.records.geometry import Bitmaps, Boxes, Points, Rows, Size, Window
from detector.rows import row_index

Rec = TypeVar("Rec", bound="Record")


def on_device(value: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor on that device, with that type.

    A copy from the host to a GPU is queued: from pinned memory the host goes on at once, from other memory CUDA first copies to
    memory of its own, which takes the host's time. A copy to the host is never queued: it would be read before it is there.
    """
    queued = value.device.type == "cpu" and torch.device(device).type == "cuda"
    return value.to(device, value.dtype if dtype is None else dtype, non_blocking=queued)


def boxes_field(*, aligned: bool = True, **options: Any) -> Any:
    """A field of boxes (n, 4) xyxy in pixels of the image; `aligned`: a row for each of the record's rows."""
    return _field(Boxes, aligned, options)


def points_field(**options: Any) -> Any:
    """A field of points (n, J, 2) x, y in pixels of the image, with a row for each of the record's rows."""
    return _field(Points, True, options)


def bitmaps_field(*, aligned: bool = True, **options: Any) -> Any:
    """A field of uint8 values for each pixel of the image: (n, h, w) if `aligned`, else (h, w)."""
    return _field(Bitmaps, aligned, options)


def rows_field(**options: Any) -> Any:
    """A field with a row for each of the record's rows, which geometry does not change: scores, labels, tags."""
    return _field(Rows, True, options)


def record_field(**options: Any) -> Any:
    """A field of another record with a row for each of the record's rows, or None: keypoints, outlines."""
    return _field(None, True, options)


def _field(kind: type[Rows] | None, aligned: bool, options: dict[str, Any]) -> Any:
    return dataclasses.field(metadata={"kind": kind, "aligned": aligned}, **options)


@dataclass(eq=False)
class Record:
    """Fields that belong together. Fields without a kind (names, proposals) are carried along as they are.

    A record is equal to itself alone: compare the tensors.
    """

    def __len__(self) -> int:
        return len(next(iter(self.row_fields().values()), ()))

    def __getitem__(self: Rec, rows: Any) -> Rec:
        """The record of some rows: a number (of one row), a slice, a mask, or indices; lists, arrays or tensors.

        Raises IndexError for a number beyond the last row.
        """
        index = row_index(rows, len(self))

        def pick(value: Tensor) -> Tensor:
            return value[index.to(value.device) if isinstance(index, Tensor) else index]

        return self._replaced(
            lambda value, kind: pick(value) if kind.aligned else value,
            nested=lambda record, kind: record[index] if kind.aligned else record,
        )

    def to(self: Rec, device: torch.device | str) -> Rec:
        """On that device; boxes and floating-point fields as float32, integers as int64, masks as bool, bitmaps as they are."""
        return self._replaced(
            lambda value, kind: on_device(value, device, kind.dtype(value)), lambda r, _: r.to(device)
        )

    def cpu(self: Rec) -> Rec:
        """On the CPU."""
        return self.to("cpu")

    def pin_memory(self: Rec) -> Rec:
        """In pinned memory, from which `to` copies to a GPU while the host goes on; torch's DataLoader calls it."""
        return self._replaced(lambda value, kind: value.pin_memory(), lambda r, kind: r.pin_memory())

    def with_boxes(self: Rec, change: Callable[[Tensor], Tensor]) -> Rec:
        """`change`, (n, 4) -> (n, 4), applied to every field of boxes, those of nested records included.

        Nothing else moves with the boxes: use `resized`, `mirrored`, `flipped`, `cropped` or `placed` for what happens to an
        image.
        """
        return self._replaced(
            lambda value, kind: change(value) if kind.values is Boxes else value, lambda r, kind: r.with_boxes(change)
        )

    def resized(self: Rec, old: Size, new: Size) -> Rec:
        """From the pixels of an image of size `old` to those of the same image at size `new`."""
        return self._moved("resized", old, new)

    def mirrored(self: Rec, width: int) -> Rec:
        """As it is where left becomes right in an image of that width."""
        return self._moved("mirrored", width)

    def flipped(self: Rec, height: int) -> Rec:
        """As it is where top becomes bottom in an image of that height."""
        return self._moved("flipped", height)

    def cropped(self: Rec, window: Window) -> Rec:
        """In the pixels of a window (top, left, h, w) of the image; boxes are clipped to it, and no row is dropped."""
        return self._moved("cropped", window)

    def placed(self: Rec, window: Window, size: Size) -> Rec:
        """From the pixels of a window (top, left, h, w) to those of its image of size (h, w): the way back from `cropped`."""
        return self._moved("placed", window, size)

    def _moved(self: Rec, operation: str, *arguments: Any) -> Rec:
        return self._replaced(
            lambda value, kind: getattr(kind.values, operation)(value, *arguments),
            nested=lambda record, kind: getattr(record, operation)(*arguments),
        )

    def clipped(self: Rec, size: Size) -> Rec:
        """Boxes moved into an image of size (h, w); rows whose box has no area there are dropped."""
        limit = torch.tensor([size[1], size[0]] * 2)
        inside = self.with_boxes(lambda boxes: boxes.clamp(min=0).minimum(limit.to(boxes)))
        return inside._solid()

    def _solid(self: Rec) -> Rec:
        """Without the rows, and without the boxes of unaligned fields, that have no area."""
        values: dict[str, Any] = {}
        keep = None
        for name, value, kind in self._kinds():
            if isinstance(value, Record):
                values[name] = value if kind.aligned else value._solid()
            elif kind.values is Boxes:
                solid = (value[:, 2:] > value[:, :2]).all(dim=1)
                if kind.aligned:
                    keep = solid if keep is None else keep & solid
                else:
                    values[name] = value[solid]
        left = dataclasses.replace(self, **values)
        return left if keep is None else left[keep]

    def _replaced(
        self: Rec, change: Callable[[Tensor, Kind], Tensor], nested: Callable[[Record, Kind], Record]
    ) -> Rec:  # fmt: skip
        """A copy with every tensor changed by `change` and every nested record by `nested`."""
        values = {
            name: nested(value, kind) if isinstance(value, Record) else change(value, kind)
            for name, value, kind in self._kinds()
        }
        return dataclasses.replace(self, **values)

    def _kinds(self) -> Iterator[tuple[str, Any, Kind]]:
        """Name, value and kind of every field that is a tensor or a record."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor | Record):
                yield field.name, value, Kind(field.metadata.get("kind") or Rows, field.metadata.get("aligned", False))

    def row_fields(self) -> dict[str, Tensor]:
        """The tensors with a row for each of the record's rows, by name."""
        return {name: value for name, value, kind in self._kinds() if kind.aligned and isinstance(value, Tensor)}

    @classmethod
    def joined(cls: type[Rec], records: Sequence[Rec]) -> Rec:
        """The rows of all records, one after the other; the other fields are the first record's."""
        values: dict[str, Any] = {}
        for name, value, kind in records[0]._kinds():
            if kind.aligned:
                parts = [getattr(record, name) for record in records]
                values[name] = type(value).joined(parts) if isinstance(value, Record) else torch.cat(parts)
        return dataclasses.replace(records[0], **values)


class Kind(NamedTuple):
    """What a field holds."""

    values: type[Rows]
    """How its values follow the image."""
    aligned: bool
    """Whether it has a row for each of the record's rows."""

    def dtype(self, value: Tensor) -> torch.dtype:
        """Of its values when the record moves to another device."""
        if self.values is Bitmaps or value.dtype == torch.bool:
            return value.dtype
        return torch.float32 if self.values in (Boxes, Points) or value.is_floating_point() else torch.int64
