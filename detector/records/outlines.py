"""Outlines of objects as an annotation file gives them: polygons of several parts, or run lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import roi_align

from detector.records.geometry import Bitmaps, Points, Size, Window
from detector.records.raster import (
    part_within,
    polygon_area,
    polygon_bitmap,
    polygon_rle,
    runs_bitmap,
    runs_box,
    runs_of_bitmap,
    runs_of_counts,
    runs_rle,
)
from detector.records.record import Record
from detector.rows import row_index


def _bounds() -> Tensor:
    return torch.zeros(1, dtype=torch.int64)


@dataclass(eq=False)
class Outlines(Record):
    """The outline of each of G objects: polygons of one or more parts, or run lengths. Always on the CPU.

    Points may lie outside the image. What is drawn or measured is the part inside.
    """

    points: Tensor
    """(V, 2) x, y of the polygons' corners, one part after the other."""
    part_ends: Tensor
    """(P + 1,) where each part ends in `points`, led by a zero."""
    object_ends: Tensor
    """(G + 1,) where the parts of each object end, led by a zero."""
    runs: Tensor
    """Lengths of alternate runs of 0 and 1, down the columns one after the other, of objects that have no polygons."""
    run_ends: Tensor
    """(G + 1,) where the runs of each object end, led by a zero."""
    sizes: Tensor
    """(G, 2) h, w of the image of each."""

    @classmethod
    def of(cls, segmentations: Sequence[Any], sizes: Any) -> Outlines:
        """Of valid `segmentation` values of a COCO file, in images of `sizes` (h, w): one size, or (G, 2).

        Raises ValueError for run lengths that are malformed or of another size.
        """
        sizes = np.broadcast_to(np.asarray(sizes, dtype=np.int32), (len(segmentations), 2))
        polygons = [() if isinstance(value, dict) else value for value in segmentations]
        parts = [np.asarray(part, dtype=np.float64) for value in polygons for part in value]
        runs = [_checked_runs(value, size) for value, size in zip(segmentations, sizes)]
        return cls(
            points=_joined([part.reshape(-1, 2) for part in parts], (0, 2), np.float64),
            part_ends=_ends(len(part) // 2 for part in parts),
            object_ends=_ends(map(len, polygons)),
            runs=_joined(runs, (0,), np.int32),
            run_ends=_ends(map(len, runs)),
            sizes=torch.from_numpy(sizes.copy()),
        )

    @classmethod
    def of_bitmaps(cls, bitmaps: Tensor) -> Outlines:
        """Of bitmaps (G, h, w), as run lengths."""
        runs = [runs_of_bitmap(bitmap) for bitmap in bitmaps.cpu().numpy()]
        none = cls.of([()] * len(runs), tuple(bitmaps.shape[1:]))
        return replace(none, runs=_joined(runs, (0,), np.int32), run_ends=_ends(map(len, runs)))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, rows: Any) -> Outlines:
        index = row_index(rows, len(self))
        if isinstance(index, slice):
            chosen = torch.tensor(range(len(self))[index], dtype=torch.int64)
        else:
            chosen = index.cpu().nonzero()[:, 0] if index.dtype == torch.bool else index.cpu()
            chosen = torch.where(chosen < 0, chosen + len(self), chosen)
        parts, object_ends = _stretches(self.object_ends, chosen)
        points, part_ends = _stretches(self.part_ends, parts)
        runs, run_ends = _stretches(self.run_ends, chosen)
        return Outlines(self.points[points], part_ends, object_ends, self.runs[runs], run_ends, self.sizes[chosen])

    @classmethod
    def joined(cls, records: Sequence[Outlines]) -> Outlines:  # type: ignore[override]
        """The objects of all records, one after the other."""
        return cls(
            *(torch.cat([getattr(record, name) for record in records]) if name in ("points", "runs", "sizes")
              else _joined_ends([getattr(record, name) for record in records])
              for name in ("points", "part_ends", "object_ends", "runs", "run_ends", "sizes"))
        )  # fmt: skip

    def to(self, device: torch.device | str) -> Outlines:
        """The same: outlines are drawn on the CPU."""
        return self

    def pin_memory(self) -> Outlines:
        """The same: no GPU reads outlines."""
        return self

    def resized(self, old: Size, new: Size) -> Outlines:
        """In the pixels of the image resized from `old` to `new`; bitmaps by the nearest pixel."""
        return self._moved_to(
            lambda kind, x: kind.resized(x, old, new), torch.tensor(new, dtype=torch.int32).expand_as(self.sizes)
        )

    def mirrored(self, width: int) -> Outlines:
        """As they are where left becomes right."""
        return self._moved_to(lambda kind, x: kind.mirrored(x, width), self.sizes)

    def flipped(self, height: int) -> Outlines:
        """As they are where top becomes bottom."""
        return self._moved_to(lambda kind, x: kind.flipped(x, height), self.sizes)

    def cropped(self, window: Window) -> Outlines:
        """In the pixels of a window; polygons keep their points outside of it."""
        size = torch.tensor(window[2:], dtype=torch.int32)
        return self._moved_to(lambda kind, x: kind.cropped(x, window), size.expand_as(self.sizes))

    def placed(self, window: Window, size: Size) -> Outlines:
        """In the pixels of the image of that size whose window they are in."""
        sizes = torch.tensor(size, dtype=torch.int32)
        return self._moved_to(lambda kind, x: kind.placed(x, window, size), sizes.expand_as(self.sizes))

    def _moved_to(self, move: Callable[[Any, Tensor], Tensor], sizes: Tensor) -> Outlines:
        """With points and bitmaps moved by the functions of geometry.py."""
        runs = [self._runs(i) for i in range(len(self))] if len(self.runs) else []
        for i, old in enumerate(runs):
            if len(old):
                bitmap = torch.from_numpy(np.ascontiguousarray(runs_bitmap(old, self._size(i))))
                runs[i] = runs_of_bitmap(move(Bitmaps, bitmap).numpy())
        ends = _ends(map(len, runs)) if runs else self.run_ends
        points = move(Points, self.points[None])[0]
        return replace(self, points=points, runs=_joined(runs, (0,), np.int32), run_ends=ends, sizes=sizes)

    def bitmaps(self, size: Size) -> Tensor:
        """(G, h, w) uint8, 1 inside, in an image of that size."""
        drawn = np.zeros((len(self), *size), dtype=np.uint8)
        for i in range(len(self)):
            drawn[i] = (
                runs_bitmap(self._runs(i), self._size(i)) if self._has_runs(i) else polygon_bitmap(self.parts(i), size)
            )
        return torch.from_numpy(drawn)

    def in_boxes(self, boxes: Tensor, rows: Tensor, side: int, min_side: float = 0.1) -> Tensor:
        """The content of each box (P, 4) float32 of the object `rows` (P,) at side x side cells: (P, side, side) uint8.

        A polygon is moved and scaled into the box and drawn there. A box is taken to be at least `min_side` wide and high
        (0.1 in Detectron2, 1 in MMDetection). A bitmap is pooled by RoIAlign, and cells of at least 0.5 are inside.
        """
        drawn = np.zeros((len(boxes), side, side), dtype=np.uint8)
        corner, extent = boxes.cpu().float()[:, :2], (boxes[:, 2:] - boxes[:, :2]).cpu().float()
        # in float32 as in both frameworks, the points in float64; torch would multiply by a rounded reciprocal
        scales = np.float32(side) / extent.clamp(min=min_side).numpy()
        bitmap_of: dict[int, Tensor] = {}
        for place, (i, low, scale) in enumerate(zip(rows.tolist(), corner.numpy(), scales)):
            if not self._has_runs(i):
                drawn[place] = polygon_bitmap([(part - low) * scale for part in self.parts(i)], (side, side))
                continue
            if i not in bitmap_of:
                bitmap_of[i] = self[i].bitmaps(self._size(i))[None].float()
            box = boxes[place : place + 1].cpu().float()
            drawn[place] = roi_align(bitmap_of[i], [box], side, aligned=True)[0, 0].numpy() >= 0.5
        return torch.from_numpy(drawn).to(boxes.device)

    def boxes(self) -> Tensor:
        """(G, 4) float32 xyxy: the tight box of each outline inside its image; zeros if nothing of it is there."""
        return torch.from_numpy(np.array([self._box(i) for i in range(len(self))], np.float32).reshape(-1, 4))

    def areas(self) -> Tensor:
        """(G,) float64: of polygons the sum of their parts by the coordinates, also outside the image; of bitmaps pixels."""
        return torch.tensor([self._area(i) for i in range(len(self))], dtype=torch.float64)

    def drawable(self) -> Tensor:
        """(G,) bool: run lengths hold a pixel, or three points or more of a part span an area that reaches into the image.

        Points in a slanted line pass.
        """
        sizes = self.sizes.repeat_interleave(self.object_ends.diff(), dim=0).flip(1).double()  # (P, 2) w, h
        spans = _least_and_most(self.points, self.part_ends)
        reaches = ((spans[1] > spans[0]) & (spans[1] > 0) & (spans[0] < sizes)).all(dim=1)
        ones = torch.arange(len(self.runs)) - self.run_ends[:-1].repeat_interleave(self.run_ends.diff())
        return _any(reaches & (self.part_ends.diff() >= 3), self.object_ends) | _any(
            (ones % 2 == 1) & (self.runs > 0), self.run_ends
        )

    def rle(self) -> list[dict[str, Any]]:
        """Compressed run-length dictionaries of COCO, `counts` as bytes, at the size of each image."""
        return [
            runs_rle(self._runs(i), self._size(i)) if self._has_runs(i) else polygon_rle(self.parts(i), self._size(i))
            for i in range(len(self))
        ]

    def segmentations(self) -> list[Any]:
        """Values of `segmentation` in a COCO file: polygons as they are, and run lengths compressed."""
        return [
            {"size": list(self._size(i)), "counts": runs_rle(self._runs(i), self._size(i))["counts"].decode()}
            if self._has_runs(i) else [part.ravel().tolist() for part in self.parts(i)]
            for i in range(len(self))
        ]  # fmt: skip

    def parts(self, i: int) -> list[np.ndarray]:
        """The polygons (n, 2) of the i-th object; none if it is given as run lengths."""
        ends = self.part_ends[self.object_ends[i] : self.object_ends[i + 1] + 1].tolist()
        points = self.points.numpy()
        return [points[start:end] for start, end in zip(ends, ends[1:])]

    def _runs(self, i: int) -> np.ndarray:
        return self.runs[self.run_ends[i] : self.run_ends[i + 1]].numpy()

    def _has_runs(self, i: int) -> bool:
        return bool(self.run_ends[i] < self.run_ends[i + 1])

    def _size(self, i: int) -> Size:
        h, w = self.sizes[i].tolist()
        return h, w

    def _box(self, i: int) -> np.ndarray:
        if self._has_runs(i):
            return runs_box(self._runs(i), self._size(i))
        corners = [point for part in self.parts(i) if len(part) >= 3 for point in part_within(part, self._size(i))]
        found = np.reshape(corners, (-1, 2))
        return np.concatenate([found.min(axis=0), found.max(axis=0)]) if len(found) else np.zeros(4)

    def _area(self, i: int) -> float:
        if self._has_runs(i):
            return float(self._runs(i)[1::2].sum())
        return float(sum(map(polygon_area, self.parts(i))))


def _checked_runs(value: Any, size: np.ndarray) -> np.ndarray:
    """The run lengths of a `segmentation`; none of polygons."""
    if not isinstance(value, dict):
        return np.zeros(0, dtype=np.int64)
    h, w = value["size"]
    if (h, w) != tuple(size.tolist()):
        raise ValueError(f"has the size {h} x {w} (height x width), its image {size[0]} x {size[1]}")
    runs = runs_of_counts(value["counts"])
    if (runs < 0).any() or runs.sum() != h * w:
        raise ValueError(f"has {runs.sum()} pixels, its size {h} x {w}")
    return runs


def _joined(pieces: Sequence[np.ndarray], empty: tuple[int, ...], dtype: Any) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(empty, dtype), *pieces], dtype=dtype))


def _ends(lengths: Any) -> Tensor:
    return torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int64))


def _least_and_most(points: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the most (P, 2) of each stretch of points (V, 2); zeros for one without any."""
    filled = (ends.diff() > 0).numpy()
    starts, found = ends[:-1].numpy()[filled], [np.zeros((len(filled), 2)) for _ in range(2)]
    for values, ufunc in zip(found, (np.minimum, np.maximum)):
        if len(starts):
            values[filled] = ufunc.reduceat(points.numpy(), starts)
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])


def _any(flags: Tensor, ends: Tensor) -> Tensor:
    """Whether any flag of each stretch is set."""
    return torch.cat([_bounds(), flags.cumsum(0)])[ends].diff() > 0


def _stretches(ends: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Of stretches that end at `ends`, the indices of all elements of the chosen ones, and where those then end."""
    starts, lengths = ends[chosen], ends[chosen + 1] - ends[chosen]
    new = torch.cat([_bounds(), lengths.cumsum(0)])
    return torch.arange(int(new[-1])) + torch.repeat_interleave(starts - new[:-1], lengths), new


def _joined_ends(pieces: Sequence[Tensor]) -> Tensor:
    """Ends of the stretches of records that come one after the other."""
    lengths = torch.cat([piece.diff() for piece in pieces])
    return torch.cat([_bounds(), lengths.cumsum(0)])
