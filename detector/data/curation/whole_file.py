"""A COCO file with everything in it, once the one reader of COCO files has found it valid."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.box_arrays import clip_to_images, corners, have_area
from detector.data.coco_json import read_whole_document
from detector.data.coco_reader import CocoFile, read_coco_file


@dataclass(frozen=True)
class WholeFile:
    """The document as it is written, and its valid entries; entry i of a section is row i of the arrays."""

    document: dict[str, Any]
    coco: CocoFile

    def is_object(self) -> np.ndarray:
        """(m,) bool: annotations that training learns from: no crowd regions, and with an area inside their image."""
        sizes = self.coco.sizes[self.coco.image_rows]
        return ~self.coco.crowd & have_area(clip_to_images(corners(self.coco.xywh), sizes))

    def label_order(self) -> np.ndarray:
        """(c,) rows of the categories by ascending id, the order of the labels."""
        return np.argsort(self.coco.category_ids)


def read_whole_file(path: str | Path, fields: Collection[str] = ()) -> WholeFile:
    """Raises DataError for what training and evaluation refuse that need these `fields`, in the same words."""
    coco = read_coco_file(path, fields=fields)  # first: its memory is small, and it raises
    return WholeFile(read_whole_document(Path(path)), coco)


def document_text(document: dict[str, Any]) -> str:
    """The content of a COCO file; equal for equal documents."""
    return json.dumps(document) + "\n"
