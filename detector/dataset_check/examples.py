"""Objects of a data set with their outlines and keypoints as pictures: those at fault, then a usual one of each class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from detector.coco_format import join_within
from detector.data.image import read_image
from detector.data.tracing import borders
from detector.dataset_check.checked_split import CheckedSplit
from detector.dataset_check.findings import Findings
from detector.errors import DataError

MOST = 8
SIDE = 180  # pixels of a picture
MARGIN = 0.15  # of the object's longer side that is shown around it
OUTLINE, BOX, POINT, HALO = (255, 220, 40), (70, 200, 255), (255, 80, 120), (0, 0, 0)


class Example(NamedTuple):
    """An object in a square of SIDE pixels."""

    caption: str
    picture: Image.Image


def find_examples(split: CheckedSplit, findings: Findings, max_pixels: int, bit_depth: int | None) -> list[Example]:
    """At most MOST examples of a split; none if it has neither outlines nor keypoints, or no image folder."""
    if split.folder is None:
        return []
    found: list[Example] = []
    for row, caption in _chosen(split, findings):
        try:
            path = join_within(split.folder, split.file_names[split.owner[row]])
            pixels = read_image(path, max_pixels, bit_depth=bit_depth).permute(1, 2, 0).numpy()
        except DataError:  # a finding of its own
            continue
        if pixels.shape[:2] == tuple(split.sizes[split.owner[row]]):
            found.append(Example(caption, _drawn(Image.fromarray(pixels), split, row)))
        if len(found) == MOST:
            break
    return found


def _chosen(split: CheckedSplit, findings: Findings) -> Iterator[tuple[int, str]]:
    """Rows and captions: faulty outlines, then of each class the object of median area that has an outline or keypoints."""
    row_of = {number: row for row, number in enumerate(split.annotation_ids.tolist())}
    faults = {
        row_of[place.annotation_id]: finding.kind
        for finding in findings.all()
        if "outline" in finding.kind and finding.split == split.name
        for place in finding.places
        if place.annotation_id in row_of
    }
    yield from faults.items()
    outlined = np.diff(split.outlines.object_ends) + np.diff(split.outlines.run_ends) > 0
    shown = outlined | (split.keypoints[..., 2] > 0).any(axis=1)
    usable = shown & split.is_object() & ~np.isin(np.arange(len(shown)), list(faults))
    for label in np.bincount(split.labels, minlength=len(split.class_names)).argsort(kind="stable")[::-1]:
        rows = np.flatnonzero(usable & (split.labels == label))
        if len(rows):
            yield int(rows[split.areas[rows].argsort(kind="stable")[len(rows) // 2]]), split.class_names[label]


def _drawn(image: Image.Image, split: CheckedSplit, row: int) -> Image.Image:
    """The object with what is around it, its box, outline, and keypoints: hidden ones hollow."""
    box, parts = split.clipped_boxes()[row].reshape(2, 2), _parts(split, row)
    limit = split.sizes[split.owner[row]][::-1]
    seen_of_it = np.concatenate([box, *parts]).clip(0, limit)
    low, high = seen_of_it.min(axis=0), seen_of_it.max(axis=0)
    longer = max(float((high - low).max()) * (1 + 2 * MARGIN), 8.0)
    corner, scale = (low + high) / 2 - longer / 2, SIDE / longer

    def place(points: np.ndarray) -> list[tuple[float, float]]:
        return [(float(x), float(y)) for x, y in (points - corner) * scale]

    window = (*corner.tolist(), *(corner + longer).tolist())
    tile = image.transform((SIDE, SIDE), Image.Transform.EXTENT, window, Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(tile)
    pen.rectangle([xy for point in place(box) for xy in point], outline=BOX)
    for part in parts:
        for colour, width in ((HALO, 4), (OUTLINE, 2)):
            pen.line(place(np.concatenate([part, part[:1]])), fill=colour, width=width, joint="curve")
    points, seen = place(split.keypoints[row, :, :2]), split.keypoints[row, :, 2]
    for a, b in split.poses[split.labels[row]].skeleton:
        if seen[a] and seen[b]:
            pen.line([points[a], points[b]], fill=POINT, width=2)
    for (x, y), kind in zip(points, seen):
        if kind:
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), POINT if kind == 2 else None, HALO if kind == 2 else POINT, 2)
    return tile


def _parts(split: CheckedSplit, row: int) -> list[np.ndarray]:
    """The polygons of an outline, those along the edges of its pixels where it is given as run lengths."""
    outline = split.outlines[[row]]
    h, w = outline.sizes[0].tolist()
    polygons = [part for part in outline.parts(0) if len(part)]
    if polygons or not len(outline.runs):
        return polygons
    outer, holes = borders(outline.bitmaps((h, w))[0].numpy())
    return [*outer, *holes]
