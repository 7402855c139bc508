"""The records that travel between the parts of a detector. See the legend in `detector/__init__.py`.

A record is indexed, moved and transformed as a whole: each field states its kind once, and every operation goes over all
fields. So a field that a subclass adds (masks, keypoints, a tag per object) takes part everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from detector.coco_format import coco_results
from detector.rows import Classes, Table, data_frame, labels_of, row_index, supervision_detections

Size = tuple[int, int]  # (h, w)
Rec = TypeVar("Rec", bound="Record")
Det = TypeVar("Det", bound="Detections")


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


@dataclass(eq=False)
class Record:
    """Fields that belong together. Fields without a kind (names, nested records) are carried along as they are.

    A record is equal to itself alone: compare the tensors.
    """

    def __getitem__(self: Rec, rows: Any) -> Rec:
        """The record of some rows: a number (of one row), a slice, a mask, or indices; lists, arrays or tensors.

        Raises IndexError for a number beyond the last row.
        """
        index = row_index(rows, len(next(iter(self.row_fields().values()), ())))

        def pick(value: Tensor, kind: Mapping[str, bool]) -> Tensor:
            if not kind.get("aligned"):
                return value
            far = isinstance(index, Tensor) and index.device != value.device
            return value[index.to(value.device) if far else index]

        return self._replaced(pick)

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


@dataclass(eq=False)
class Proposals(Record):
    """Where objects may be in one image, best first: from an RPN or from a file."""

    boxes: Tensor = boxes_field()
    """(R, 4) xyxy."""
    scores: Tensor = rows_field()
    """(R,) objectness logits."""

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(eq=False)
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


@dataclass(repr=False, eq=False)
class Detections(Record):
    """What was found in one image, best first. Iteration gives the record of each detection."""

    boxes: Tensor = boxes_field()
    """(D, 4) float32 xyxy."""
    scores: Tensor = rows_field()
    """(D,) float32 in 0..1."""
    labels: Tensor = rows_field()
    """(D,) int64 in 0..K-1."""
    class_names: list[str] | None = None
    """By label; None if the detections come from a model and not from a predictor, as for the next two."""
    proposals: Proposals | None = None
    """The first stage's boxes of the image, where they are kept."""
    category_ids: list[int] | None = None
    """Of the training annotations, by label."""
    draw: Callable[[Any, Detections], Any] | None = None
    """Draws them on a picture, for `plot`."""

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):  # a dataclass would get another one
            cls.__repr__ = Detections.__repr__  # type: ignore[method-assign]

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self: Det) -> Iterator[Det]:
        return (self[i : i + 1] for i in range(len(self)))

    @property
    def names(self) -> list[str]:
        """The class name of every detection, aligned with `labels`."""
        if self.class_names is None:
            raise ValueError("these detections carry no class names: call the predictor, not the model")
        return [self.class_names[label] for label in self.labels.tolist()]

    def sort(self: Det, by: str = "scores", *, descending: bool = True) -> Det:
        """In the order of a field with a number per row, of `area` or of `names`; equal ones stay in their order."""
        keys = {name: value for name, value in self.row_fields().items() if value.ndim == 1}
        keys["area"] = (self.boxes[:, 2:] - self.boxes[:, :2]).prod(dim=1)
        if by == "names":
            ranks = {name: rank for rank, name in enumerate(sorted(set(self.names)))}
            keys["names"] = torch.tensor([ranks[name] for name in self.names], device=self.labels.device)
        if by not in keys:
            raise ValueError(f"cannot sort by {by!r}: choose one of {', '.join(sorted({*keys, 'names'}))}")
        return self[keys[by].argsort(descending=descending, stable=True)]

    def filter(self: Det, score: float | None = None, classes: Classes | None = None) -> Det:
        """Those of at least `score`, and of some classes: names or labels. Raises ValueError for an unknown one."""
        if score is not None and not 0 <= score <= 1:
            raise ValueError(f"score={score}: expected a number in 0..1")
        keep = torch.ones_like(self.labels, dtype=torch.bool) if score is None else self.scores >= score
        if classes is not None:
            labels = torch.tensor(labels_of(classes, self.class_names), dtype=torch.int64)
            keep = keep & torch.isin(self.labels, labels.to(self.labels.device))
        return self[keep]

    def to_dict(self) -> dict[str, list[Any]]:
        """Plain lists, for JSON: boxes (xyxy), scores, labels, names if there are any, and added fields."""
        rows = {name: value.tolist() for name, value in self.row_fields().items()}
        return rows if self.class_names is None else rows | {"names": self.names}

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """COCO results. `category_ids`, by label, are those of the training annotations unless others are given."""
        ids = self.category_ids if category_ids is None else category_ids
        if ids is None:
            raise ValueError("these detections carry no category ids: call the predictor, or give `category_ids`")
        return coco_results(self.row_fields(), self.class_names, int(image_id), ids)

    def to_pandas(self) -> Any:
        """A pandas.DataFrame with columns x1, y1, x2, y2, score, label, name if there are any, and added fields."""
        return data_frame(self.cpu().row_fields(), self.class_names and self.names)

    def to_supervision(self) -> Any:
        """A supervision.Detections; names are its `class_name`, added fields are in its `data`."""
        return supervision_detections(self.cpu().row_fields(), self.class_names and self.names)

    def plot(self, image: Any) -> Any:
        """A PIL picture of them on their image: a path, a PIL image, a uint8 RGB tensor (3, H, W) or array (H, W, 3)."""
        if self.draw is None:
            raise ValueError("only a predictor's detections can be plotted: use detector.inference.drawing.plot")
        return self.draw(image, self)

    def __repr__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()

    def _table(self) -> Table:
        known = self.class_names or []
        classes = [known[label] if label < len(known) else f"class {label}" for label in self.labels.tolist()]
        return Table.of(type(self).__name__, self.row_fields(), classes)


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
