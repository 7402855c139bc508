"""The class of every pixel of an image, for a semantic branch: COCO's stuffthingmaps, a grey PNG for each image."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detector.coco_format import join_within
from detector.data.image import ImageError
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
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("L", "P"):
                raise ImageError(
                    f"{path}: holds colours ({picture.mode}), not a class for each pixel; write it as grey PNG"
                )
            if (picture.height, picture.width) != tuple(size):
                raise ImageError(
                    f"{path}: the semantic map is {picture.width} x {picture.height}, its image {size[1]} x {size[0]}"
                )
            return torch.from_numpy(np.array(picture))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: the semantic map of {file_name} cannot be read ({error}); restore it") from error
