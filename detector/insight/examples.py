"""Images to look at: the worst ones, and places where the labels may be wrong, each beside what was found there."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from detector.data.describe import short_names_of
from detector.errors import DetectorError
from detector.evaluation.coco import Scored
from detector.inference.lettering import fonts_of, readable_names, typeset
from detector.insight.analysis import Analysis
from detector.insight.errors import BKG, CLS, HIT
from detector.protocols import DataSet

COUNT = 12  # of each kind
WHOLE, DETAIL = 400, 240  # pixels of the longer side of a picture of an image, and of a place in it
PER_IMAGE = 2  # places of one image
CONTEXT, LEAST = 1.5, 48  # a place in sides of its box, and in pixels of the image at least
RIGHT, WRONG = (0, 158, 115), (213, 62, 20)
OPACITY = 110  # of masks, of 255
QUALITY = 80  # of a JPEG file
LETTERS = 12  # pixels
NAMED = 12  # objects and detections of a whole image whose names are drawn

Box = tuple[float, float, float, float]  # xyxy, in pixels of the image


@dataclass(frozen=True)
class PicturePair:
    """A place as it is labelled and as it was found; what both agree on is green, what not is red."""

    caption: str
    truth: bytes
    """JPEG."""
    found: bytes
    """JPEG."""


@dataclass(frozen=True)
class _Mark:
    box: Sequence[float]  # xyxy
    right: bool
    text: str
    mask: Any  # run lengths or None
    named: bool  # whether its text is drawn


class Examples:
    """The pictures of one analysis.

    Args:
        analysis: of boxes or masks.
        scored: what it was made of.
        dataset: the images.
    """

    def __init__(self, analysis: Analysis, scored: Scored, dataset: DataSet):
        self.analysis, self.errors, self.dataset = analysis, analysis.errors, dataset
        self._index = {int(number): i for i, number in enumerate(dataset.image_ids)}
        self._image_names = short_names_of(dataset)
        self._names = readable_names(tuple(one.name for one in analysis.classes))
        self._fonts = fonts_of(sorted(set(self._names)))
        counts = scored.counts[analysis.kind]
        self._boxes = {e["id"]: e["bbox"] for e in scored.objects}, {e["id"]: e["bbox"] for e in scored.detections}
        masks = analysis.kind == "segm"
        self._masks = (counts.cocoGt.anns, counts.cocoDt.anns) if masks else ({}, {})
        errors = self.errors
        self.agreed = np.zeros(len(errors.object_ids), dtype=bool)
        self.agreed[errors.targets[analysis.kept & (errors.kinds == HIT)]] = True
        self._rows = _grouped(errors.images, analysis.kept), _grouped(errors.object_images)

    def worst_images(self) -> Iterator[PicturePair]:
        """The images with the most wrong detections and unfound objects, those of equal number in the order of the split."""
        errors = self.errors
        wrong = Counter(errors.images[self.analysis.kept & (errors.kinds != HIT)].tolist())
        missed = Counter(errors.object_images[~self.agreed].tolist())
        total = wrong + missed
        for image in sorted(total, key=lambda i: (-total[i], i))[:COUNT]:
            objects, found = self._rows[1].get(image, []), self._rows[0].get(image, [])
            named = max(len(objects), len(found)) <= NAMED
            caption = f"{self._name(image)}: {wrong[image]} wrong, {missed[image]} of {len(objects)} not found"
            yield from self._pair(image, None, caption, objects if named else [], found if named else [])

    def doubtful_labels(self) -> Iterator[PicturePair]:
        """The most confident detections where nothing or another class is labelled, then the largest objects not found at all."""
        errors, taken = self.errors, Counter[int]()
        suspects = np.flatnonzero(np.isin(errors.kinds, (BKG, CLS)))  # by falling score
        for row in _few(suspects, errors.images, taken):
            image, target = int(errors.images[row]), int(errors.targets[row])
            there = [target] if errors.kinds[row] == CLS else []
            said = f"labelled {self._names[errors.object_labels[target]]}" if there else "not labelled"
            caption = f"{self._name(image)}: {self._names[errors.labels[row]]} {errors.scores[row]:.2f}, {said}"
            yield from self._pair(image, self._box(1, errors.ids[row]), caption, there, [row])
        unseen = np.flatnonzero(errors.missed())
        for row in _few(unseen[np.argsort(-errors.object_areas[unseen], kind="stable")], errors.object_images, taken):
            image = int(errors.object_images[row])
            caption = f"{self._name(image)}: labelled {self._names[errors.object_labels[row]]}, not found"
            yield from self._pair(image, self._box(0, errors.object_ids[row]), caption, [row], [])

    def _name(self, image: int) -> str:
        return self._image_names[self._index[self.analysis.image_ids[image]]]

    def _pair(
        self, image: int, box: Sequence[float] | None, caption: str, objects: Sequence[int], found: Sequence[int]
    ) -> Iterator[PicturePair]:
        """The pictures of an image, or of what is around a box; none where the image cannot be read any more.

        The rows `objects` and `found` are those whose names are drawn.
        """
        try:
            pixels = self.dataset.image(self._index[self.analysis.image_ids[image]])
        except DetectorError:
            return
        whole = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        window = (0.0, 0.0, float(whole.width), float(whole.height)) if box is None else _around(box, whole.size)
        marks = self._truth(image, objects), self._found(image, found)
        side = WHOLE if box is None else DETAIL
        yield PicturePair(caption, *(self._drawn(whole, window, of, side) for of in marks))

    def _truth(self, image: int, named: Sequence[int]) -> list[_Mark]:
        errors, marks = self.errors, []
        for row in self._rows[1].get(image, []):
            number, text = errors.object_ids[row], self._names[errors.object_labels[row]]
            mask = self._masks[0].get(number, {}).get("segmentation")
            marks.append(_Mark(self._box(0, number), bool(self.agreed[row]), text, mask, row in named))
        return marks

    def _found(self, image: int, named: Sequence[int]) -> list[_Mark]:
        """Those that are kept, and those that are named."""
        errors, marks = self.errors, []
        for row in dict.fromkeys([*self._rows[0].get(image, []), *named]):
            number, text = errors.ids[row], f"{self._names[errors.labels[row]]} {errors.scores[row]:.2f}"
            mask = self._masks[1].get(number, {}).get("segmentation")
            marks.append(_Mark(self._box(1, number), bool(errors.kinds[row] == HIT), text, mask, row in named))
        return marks

    def _box(self, found: int, number: int) -> list[float]:
        """xyxy of the entry of an object or, with 1, of a detection."""
        x, y, w, h = self._boxes[found][number]
        return [x, y, x + w, y + h]

    def _drawn(self, whole: Image.Image, window: Box, marks: Sequence[_Mark], side: int) -> bytes:
        """The window of an image with marks, its longer side so many pixels, the wrong marks on top."""
        x1, y1, x2, y2 = window
        scale = side / max(x2 - x1, y2 - y1)
        size = max(round((x2 - x1) * scale), 1), max(round((y2 - y1) * scale), 1)
        picture = whole.resize(size, Image.Resampling.BICUBIC, box=window)
        marks = sorted(marks, key=lambda mark: not mark.right)
        for mark in marks:
            if mark.mask is not None:
                inside = Image.fromarray(coco_mask.decode(mark.mask) * np.uint8(OPACITY)).resize(size, box=window)
                picture.paste(Image.new("RGB", size, _colour(mark)), mask=inside)
        places = [[(value - start) * scale for value, start in zip(mark.box, (x1, y1, x1, y1))] for mark in marks]
        for mark, box in zip(marks, places):
            _frame(ImageDraw.Draw(picture), box, size, _colour(mark), 2 if mark.right else 3)
        for mark, box in zip(marks, places):
            if mark.named:
                self._letter(picture, box, mark.text, _colour(mark))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=QUALITY)
        return file.getvalue()

    def _letter(self, picture: Image.Image, box: Sequence[float], text: str, colour: tuple[int, int, int]) -> None:
        """A text above a box, or within it at the border of the picture."""
        line = typeset(text, LETTERS, self._fonts, picture.width - 4)
        height = line.ascent + line.descent
        x = round(min(max(box[0], 0), picture.width - line.width - 4))
        y = round(min(max(box[1] - height, 0), picture.height - height))
        ImageDraw.Draw(picture).rectangle((x, y, x + line.width + 4, y + height), fill=colour)
        line.draw(picture, x + 2, y + line.ascent, (255, 255, 255))


def _colour(mark: _Mark) -> tuple[int, int, int]:
    return RIGHT if mark.right else WRONG


def _few(rows: np.ndarray, images: np.ndarray, taken: Counter[int]) -> Iterator[int]:
    """The first rows, few of them in one image; counted in `taken`."""
    count = 0
    for row in rows.tolist():
        image = int(images[row])
        if count < COUNT and taken[image] < PER_IMAGE:
            taken[image] += 1
            count += 1
            yield row


def _grouped(images: np.ndarray, kept: np.ndarray | None = None) -> dict[int, list[int]]:
    """Image -> its rows, of those that are kept."""
    rows: dict[int, list[int]] = {}
    for row in range(len(images)) if kept is None else np.flatnonzero(kept).tolist():
        rows.setdefault(int(images[row]), []).append(row)
    return rows


def _around(box: Sequence[float], size: tuple[int, int]) -> Box:
    """A square around a box xyxy with some context, moved into the image."""
    x1, y1, x2, y2 = box
    side = min(max(x2 - x1, y2 - y1) * (1 + CONTEXT), *size)
    side = min(max(side, LEAST), *size)
    x, y = (min(max((a + b - side) / 2, 0), most - side) for a, b, most in ((x1, x2, size[0]), (y1, y2, size[1])))
    return x, y, x + side, y + side


def _frame(
    pen: ImageDraw.ImageDraw, box: Sequence[float], size: tuple[int, int], colour: tuple[int, int, int], width: int
) -> None:
    x1, y1 = (max(round(v), -width) for v in box[:2])
    x2, y2 = (min(round(v), limit + width) for v, limit in zip(box[2:], size))
    if x2 >= x1 and y2 >= y1:
        pen.rectangle((x1, y1, x2, y2), outline=colour, width=width)
