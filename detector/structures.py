"""The records that travel between the parts of a detector. See the legend in `detector/__init__.py`.

A record is indexed, moved and transformed as a whole: each field states its kind once, and every operation goes over all
fields. So a field that a subclass adds (masks, keypoints, a tag per object) takes part everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

Size = tuple[int, int]  # (h, w)
Rec = TypeVar("Rec", bound="Record")


def image_size(image: Tensor) -> Size:
    """(h, w) of an image (..., h, w)."""
    h, w = image.shape[-2:]
    return h, w


def boxes_field(*, aligned: bool = True, **options: Any) -> Any:
    """A field of boxes (n, 4) xyxy in pixels of the image; `aligned`: a row for each of the record's rows."""
    return dataclasses.field(metadata={"boxes": True, "aligned": aligned}, **options)


def rows_field(**options: Any) -> Any:
    """A field with a row for each of the record's rows, which geometry does not change: scores, labels, tags."""
    return dataclasses.field(metadata={"boxes": False, "aligned": True}, **options)


def _no_boxes() -> Tensor:
    return torch.zeros(0, 4)


@dataclass
class Record:
    """Fields that belong together. Fields without a kind (names, nested records) are carried along as they are."""

    def __getitem__(self: Rec, rows: Any) -> Rec:
        """The record of some rows: a mask, indices or a slice."""
        return self._replaced(lambda value, kind: value[rows] if kind.get("aligned") else value)

    def to(self: Rec, device: torch.device | str) -> Rec:
        """On that device; boxes and floating-point fields as float32, integers as int64, masks as bool."""

        def move(value: Tensor, kind: Mapping[str, bool]) -> Tensor:
            return value.to(device, torch.float32 if kind.get("boxes") else _dtype(value))

        return self._replaced(move, nested=lambda record: record.to(device))

    def cpu(self: Rec) -> Rec:
        """On the CPU."""
        return self.to("cpu")

    def with_boxes(self: Rec, change: Callable[[Tensor], Tensor]) -> Rec:
        """`change`, (n, 4) -> (n, 4), applied to every field of boxes, those of nested records included."""
        return self._replaced(
            lambda value, kind: change(value) if kind.get("boxes") else value, nested=lambda r: r.with_boxes(change)
        )

    def resized(self: Rec, old: Size, new: Size) -> Rec:
        """From the pixels of an image of size `old` to those of the same image at size `new`."""
        ratio = torch.tensor([new[1] / old[1], new[0] / old[0]] * 2)
        return self.with_boxes(lambda boxes: boxes * ratio.to(boxes.device))

    def mirrored(self: Rec, width: int) -> Rec:
        """As it is where left becomes right in an image of that width."""

        def mirror(boxes: Tensor) -> Tensor:
            x1, y1, x2, y2 = boxes.unbind(dim=-1)
            return torch.stack([width - x2, y1, width - x1, y2], dim=-1)

        return self.with_boxes(mirror)

    def clipped(self: Rec, size: Size) -> Rec:
        """Boxes moved into an image of size (h, w); rows whose box has no area there are dropped."""
        limit = torch.tensor([size[1], size[0]] * 2)
        inside = self.with_boxes(lambda boxes: boxes.clamp(min=0).minimum(limit.to(boxes)))
        return inside._solid()

    def _solid(self: Rec) -> Rec:
        """Without the rows, and without the boxes of unaligned fields, that have no area."""
        values: dict[str, Any] = {}
        keep = None
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Record):
                values[field.name] = value._solid()
            elif field.metadata.get("boxes"):
                solid = (value[:, 2:] > value[:, :2]).all(dim=1)
                if field.metadata["aligned"]:
                    keep = solid if keep is None else keep & solid
                else:
                    values[field.name] = value[solid]
        left = dataclasses.replace(self, **values)
        return left if keep is None else left[keep]

    def _replaced(
        self: Rec, change: Callable[[Tensor, Mapping[str, bool]], Tensor],
        nested: Callable[[Record], Record] = lambda record: record,
    ) -> Rec:  # fmt: skip
        """A copy with every tensor changed by `change(value, kind)` and every nested record by `nested`."""
        values: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                values[field.name] = change(value, field.metadata)
            elif isinstance(value, Record):
                values[field.name] = nested(value)
        return dataclasses.replace(self, **values)

    def row_fields(self) -> dict[str, Tensor]:
        """The fields with a row for each of the record's rows, by name."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata.get("aligned")}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def joined(cls: type[Rec], records: Sequence[Rec]) -> Rec:
        """The rows of all records, one after the other; the other fields are the first record's."""
        rows = [record.row_fields() for record in records]
        return dataclasses.replace(records[0], **{name: torch.cat([r[name] for r in rows]) for name in rows[0]})


def _dtype(value: Tensor) -> torch.dtype:
    if value.is_floating_point():
        return torch.float32
    return value.dtype if value.dtype == torch.bool else torch.int64


@dataclass
class Proposals(Record):
    """Where objects may be in one image, best first: from an RPN or from a file."""

    boxes: Tensor = boxes_field()
    """(R, 4) xyxy."""
    scores: Tensor = rows_field()
    """(R,) objectness logits."""

    def __len__(self) -> int:
        return len(self.scores)


@dataclass
class Target(Record):
    """The objects of one training image, in its pixels; with proposals, where they are given."""

    boxes: Tensor = boxes_field()
    """(G, 4) float32 xyxy."""
    labels: Tensor = rows_field()
    """(G,) int64 in 0..K-1."""
    crowd: Tensor = boxes_field(aligned=False, default_factory=_no_boxes)
    """(I, 4) regions that are neither object nor background."""
    proposals: Proposals | None = None
    """For a detector without an RPN."""

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of(cls, target: Target | Mapping[str, Any]) -> Target:
        """Accept a plain dictionary with `boxes`, `labels` and perhaps `crowd`."""
        return cls(**target) if isinstance(target, Mapping) else target


@dataclass
class Detections(Record):
    """What was found in one image, best first."""

    boxes: Tensor = boxes_field()
    """(D, 4) float32 xyxy."""
    scores: Tensor = rows_field()
    """(D,) float32 in 0..1."""
    labels: Tensor = rows_field()
    """(D,) int64 in 0..K-1."""
    class_names: list[str] | None = None
    """By label; None if the detections come from a model and not from a predictor."""
    proposals: Proposals | None = dataclasses.field(default=None, repr=False)
    """The first stage's boxes of the image, where they are kept."""

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The class name of every detection, aligned with `labels`."""
        if self.class_names is None:
            raise ValueError("these detections carry no class names: call the predictor, not the model")
        return [self.class_names[label] for label in self.labels.tolist()]


@dataclass
class Batch:
    """Normalised images, padded right and below to one size."""

    images: Tensor  # (N, 3, H, W)
    sizes: list[Size]  # (h, w) of every image before padding
    proposals: Sequence[Proposals | None] = ()  # of every image, for a detector without an RPN


class Features(list[Tensor]):
    """The levels of a pyramid, [P2..P6], which also carry the `laterals` [M2..M5] before any fusion (AugFPN, in training)."""

    def __init__(self, levels: Iterable[Tensor], laterals: list[Tensor]):
        super().__init__(levels)
        self.laterals = laterals
