"""Images of near-equal content by a difference hash: re-encoded or resized copies, consecutive frames.

A hash has 16 x 16 bits: on a grey copy of 17 x 16 pixels, whether a pixel is brighter than its left neighbour by more than a
grey level. The distance of two images is the share of bits set in one that the other lacks, among all bits set in either.
Between photos that have nothing in common it is about 0.7.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from detector.coco_format import join_within
from detector.data.image import MAX_PIXELS, ImageError, read_image
from detector.errors import DataError

SIDE = 16  # of the hash; 8, as is common, leaves no gap between moved copies and other photos
MARGIN = 1  # grey levels: the noise of compression in an even area sets no bit
LIMIT = 0.3  # JPEG of quality 30, a third of the size, a shift by 1 % stay below; different photos start at 0.48
CELLS = 2**24  # distances computed at a time, which limits the memory to some 300 MB
ROUNDING = 1e-3  # of a product of 258 numbers up to 256
THREADS = 8  # decoding runs outside of Python's lock

Pair = tuple[float, int, int]  # distance, and the rows of two images


def difference_hash(image: Tensor) -> Tensor:
    """uint8 RGB (3, H, W) -> bits (256,) bool."""
    grey = Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")
    small = np.asarray(grey.resize((SIDE + 1, SIDE), Image.Resampling.BOX), dtype=np.int16)  # (16, 17)
    return torch.from_numpy(small[:, 1:] - small[:, :-1] > MARGIN).flatten()


def hashes_of(
    folder: Path, names: Sequence[str], max_pixels: int = MAX_PIXELS
) -> tuple[Tensor, list[int], list[ImageError]]:
    """The hashes (r, 256) bool of the images in a folder that can be read, their r rows, and the errors of the others.

    Raises DataError if none can be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such image folder; correct the path")

    def read(name: str) -> Tensor | ImageError:
        try:
            return difference_hash(read_image(join_within(folder, name), max_pixels))
        except ImageError as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(tqdm(pool.map(read, names), total=len(names), desc="compare images", unit="img", disable=None))
    hashes = {row: result for row, result in enumerate(found) if isinstance(result, Tensor)}
    errors = [result for result in found if isinstance(result, ImageError)]
    if not hashes:
        raise DataError(f"{folder}: none of the images can be read; the first: {errors[0]}")
    return torch.stack(list(hashes.values())), list(hashes), errors


def near_equal_pairs(hashes: Tensor, limit: float = LIMIT) -> Iterator[Pair]:
    """Pairs of rows of (n, 256) bool with a distance up to `limit`; equal hashes are paired with the first of them alone.

    All distances are computed, as products of matrices, whose time grows with the square of n.
    """
    distinct, inverse = torch.unique(hashes, dim=0, return_inverse=True)
    first = [0] * len(distinct)
    for row in range(len(hashes) - 1, -1, -1):
        first[inverse[row]] = row
    for row, one in enumerate(inverse.tolist()):
        if first[one] != row:
            yield 0.0, first[one], row
    bits, size = distinct.float(), distinct.sum(dim=1, keepdim=True).float()
    # distance <= limit just where shared >= least * (size + size); with two more columns one product tells
    least, one = (1 - limit) / (2 - limit), torch.ones_like(size)
    rows, columns = torch.cat([bits, -least * size, one], dim=1), torch.cat([bits, one, -least * size], dim=1)
    step = max(1, CELLS // len(bits))
    for start in range(0, len(bits), step):
        found = (rows[start : start + step] @ columns[start:].T > -ROUNDING).nonzero() + start
        for i, j in found[found[:, 0] < found[:, 1]].tolist():
            distance = _distance(distinct[i], distinct[j])
            if distance <= limit:
                yield distance, *sorted((first[i], first[j]))


def _distance(a: Tensor, b: Tensor) -> float:
    return int((a ^ b).sum()) / max(int((a | b).sum()), 1)
