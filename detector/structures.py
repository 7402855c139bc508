"""The records that travel between the parts of a detector. See the legend in `detector/__init__.py`.

records/record.py has what they share: a record is indexed, moved and transformed as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from detector.coco_format import coco_results
from detector.records.geometry import Size, Window, tight_boxes
from detector.records.keypoints import Keypoints
from detector.records.outlines import Outlines
from detector.records.record import Record, bitmaps_field, boxes_field, record_field, rows_field
from detector.records.region_masks import RegionMasks
from detector.rows import SINGULAR, Classes, Table, data_frame, labels_of, supervision_detections

Det = TypeVar("Det", bound="Detections")


def image_size(image: Tensor) -> Size:
    """(h, w) of an image (..., h, w)."""
    h, w = image.shape[-2:]
    return h, w


def _no_boxes() -> Tensor:
    return torch.zeros(0, 4)


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
    outlines: Outlines | None = record_field(default=None)
    """Of the objects, as polygons or run lengths, where the model asks for masks."""
    masks: Tensor | None = bitmaps_field(default=None)
    """(G, h, w) uint8, 1 inside; the loading processes make them of the outlines."""
    keypoints: Keypoints | None = record_field(default=None)
    """Of the objects."""
    semantic: Tensor | None = bitmaps_field(aligned=False, default=None)
    """(h, w) uint8 class of every pixel, 255 for none, for the semantic branch of HTC."""

    def __len__(self) -> int:
        return len(self.labels)

    def cropped(self, window: Window) -> Target:
        """In the pixels of a window. The boxes of objects that it cuts are those of what is left of their outlines."""
        cut = super().cropped(window)
        left = None if cut.outlines is None else cut.outlines.boxes()
        if left is None and cut.masks is not None:
            left = tight_boxes(cut.masks)
        if left is None:
            return cut
        whole = (cut.boxes == self.boxes - self.boxes.new_tensor([window[1], window[0]] * 2)).all(dim=1)
        return replace(cut, boxes=torch.where(whole[:, None], cut.boxes, left.to(cut.boxes)))

    def drawn(self, size: Size) -> Target:
        """With masks of its outlines in an image of size (h, w), without the objects of which nothing is left there."""
        if self.outlines is None:
            return self
        masks = self.outlines.bitmaps(size)
        drawn, seen = replace(self, masks=masks), masks.flatten(1).any(dim=1).bool()
        return drawn if seen.all() else drawn[seen]  # indexing would copy all masks

    @classmethod
    def of(cls, target: Target | Mapping[str, Any]) -> Target:
        """Accept a plain dictionary with `boxes`, `labels` and perhaps `crowd`, `masks` and the other fields.

        `keypoints` may be a tensor (G, J, 3) of x, y and visibility, as torchvision takes it.
        """
        if not isinstance(target, Mapping):
            return target
        points = target.get("keypoints")
        known = {"keypoints": Keypoints.of(points)} if isinstance(points, Tensor) else {}
        return cls(**{**target, **known})


def check_fields(target: Target, fields: Collection[str], size: Size, where: str) -> None:
    """Raise ValueError where a target for an image of that size lacks one of the `fields` or its masks do not fit."""
    for name in sorted(fields):
        value = getattr(target, name)
        if value is None:
            raise ValueError(f"{where}: this model learns from `{name}`, and there is none; give it for every image")
        if not isinstance(value, Tensor) and len(value) != len(target):
            raise ValueError(f"{where}: {len(target)} boxes with {len(value)} {name}; give one for each")
    masks = target.masks
    if "masks" in fields and isinstance(masks, Tensor):
        if masks.shape != (len(target), *size) or masks.dtype not in (torch.uint8, torch.bool):
            raise ValueError(
                f"{where}: masks must be {(len(target), *size)} uint8, 1 inside: one of the image's size for each box; "
                f"not {tuple(masks.shape)} {str(masks.dtype).removeprefix('torch.')}"
            )


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
    masks: RegionMasks | None = record_field(default=None)
    """Of each detection, within its box until they are pasted."""
    keypoints: Keypoints | None = record_field(default=None)
    """Of each detection, with scores."""

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
        """In the order of a field with a number per row, of `area` or of `names`; equal ones stay in their order.

        `score` and `label`, as tables call them, mean `scores` and `labels`.
        """
        by = {singular: name for name, singular in SINGULAR.items()}.get(by, by)
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
        """Plain lists, for JSON: boxes (xyxy), scores, labels, names if there are any, and added fields.

        Masks and keypoints are as in `to_coco`.
        """
        rows = {name: value.tolist() for name, value in self.row_fields().items()} | self._shapes()
        return rows if self.class_names is None else rows | {"names": self.names}

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """COCO results. `category_ids`, by label, are those of the training annotations unless others are given.

        A mask is a `segmentation` in compressed run lengths, with text counts, and has a `mask_score` if the model judges masks;
        `keypoints` are x, y, score of each in turn, and `keypoint_names` their names where these are known.
        """
        ids = self.category_ids if category_ids is None else category_ids
        if ids is None:
            raise ValueError("these detections carry no category ids: call the predictor, or give `category_ids`")
        return coco_results(self.row_fields(), self.class_names, int(image_id), ids, self._shapes())

    def _shapes(self) -> dict[str, list[Any]]:
        """COCO's `segmentation` and `keypoints` of each detection, with the names of these, those that there are."""
        shapes: dict[str, list[Any]] = {} if self.masks is None else {"segmentation": self.masks.rle()}
        if self.masks is not None and self.masks.scores is not None:
            shapes["mask_score"] = self.masks.scores.tolist()
        if self.keypoints is not None:
            shapes["keypoints"] = self.keypoints.scored().flatten(1).tolist()
            if self.keypoints.pose is not None:
                shapes["keypoint_names"] = [self.keypoints.pose.names] * len(self)
        return shapes

    def to_pandas(self) -> Any:
        """A pandas.DataFrame with columns x1, y1, x2, y2, score, label, name if there are any, and added fields.

        Masks and keypoints are columns of objects, as in `to_coco`.
        """
        return data_frame(self.cpu().row_fields(), self.class_names and self.names, self._shapes())

    def to_supervision(self) -> Any:
        """A supervision.Detections; names are its `class_name`, added fields are in its `data`.

        Masks are its `mask` (D, h, w), a byte for each pixel of the image; keypoints (D, J, 3) are in its `data`.
        """
        found = self.cpu()
        masks = None if found.masks is None else found.masks.paste()
        points = {} if found.keypoints is None else {"keypoints": found.keypoints.scored()}
        return supervision_detections(found.row_fields() | points, self.class_names and self.names, masks)

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
        parts = [name for name in ("masks", "keypoints") if getattr(self, name) is not None]
        return Table.of(type(self).__name__, self.row_fields(), classes, parts)


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
