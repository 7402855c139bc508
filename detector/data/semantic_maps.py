"""The class of every pixel of an image, for a semantic branch: COCO's stuffthingmaps, a grey PNG for each image."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from detector.coco_format import join_within
from detector.data.numbered_pixels import read_numbered_pixels
from detector.errors import DataError
from detector.records.geometry import Size

UNLABELLED = 255


def semantic_folder(path: str | Path | None) -> Path | None:
    """The folder of the maps. Raises DataError if it does not exist."""
    if path is not None and not Path(path).is_dir():
        raise DataError(f"{path}: no such folder of semantic maps; correct `semantic` of the split")
    return None if path is None else Path(path)


def read_semantic_map(folder: Path, file_name: str, size: Size) -> Tensor:
    """(h, w) uint8 of the PNG with the name of the image: 255 where no class is known.

    Raises ImageError if there is none of that size.
    """
    path = join_within(folder, str(PurePosixPath(file_name).with_suffix(".png")))
    return torch.from_numpy(read_numbered_pixels(path, size))
