"""PNG files whose pixels are numbers: of classes (COCO's stuffthingmaps) or of objects (Pascal VOC's SegmentationObject)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from detector.data.image import ImageError
from detector.records.geometry import Size


def read_numbered_pixels(path: Path, size: Size) -> np.ndarray:
    """(h, w) uint8, grey values or places in a palette.

    Raises ImageError for a file that does not exist or is no such PNG of that size.
    """
    if not path.is_file():
        raise ImageError(f"{path}: no such file; write the map of the image there")
    try:
        # other formats may run programs: Pillow gives EPS files, whatever their name, to Ghostscript
        with Image.open(path, formats=("PNG",)) as picture:
            if picture.mode not in ("L", "P"):
                raise ImageError(
                    f"{path}: holds colours ({picture.mode}), not a number for each pixel; write it as a grey PNG"
                )
            if (picture.height, picture.width) != tuple(size):
                raise ImageError(
                    f"{path}: is {picture.width} x {picture.height}, its image {size[1]} x {size[0]}; draw it at that size"
                )
            return np.array(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: cannot be read as a PNG ({error}); restore it") from error
