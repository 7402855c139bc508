"""Semantic maps of images: a PNG for each, whose value is the class of every pixel (COCO's stuffthingmaps)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detector.coco_format import join_within
from detector.data.image import ImageError
from detector.errors import DataError
from detector.records.geometry import Size

MODES = ("L", "P")  # one byte for each pixel: a grey value, or a number in a palette


class SemanticMaps:
    """A folder of PNG files that have the images' names, whatever those end with."""

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder of semantic maps; correct `semantic` of the split")
        self.folder = folder

    def read(self, image_name: str, size: Size) -> Tensor:
        """(h, w) uint8 for an image of that name and size; 255 stands for no class.

        Raises ImageError for a map that is missing, of another size or no image with a byte for each pixel.
        """
        path = join_within(self.folder, str(Path(image_name).with_suffix(".png")))
        try:
            with Image.open(path, formats=("PNG",)) as image:
                if image.mode not in MODES or (image.height, image.width) != size:
                    found = f"{image.width} x {image.height} with mode {image.mode}"
                    expected = f"{size[1]} x {size[0]} with one byte for each pixel (mode {' or '.join(MODES)})"
                    raise ImageError(f"{path}: the semantic map is {found}; its image needs {expected}")
                return torch.from_numpy(np.array(image))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ImageError(f"{path}: no readable semantic map of {image_name} ({error})") from error
