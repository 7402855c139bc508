"""Decoding of images, for training, evaluation and inference alike."""

from __future__ import annotations

import functools
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from detector.errors import DataError

MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a gigabyte of RGB
# EPS is left out because Pillow would run Ghostscript, others because they have no decoder or hold no photographs.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
WRITABLE = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # suffixes of pictures that keep their name
SUFFIXES = (  # of images in a folder: all of FORMATS
    *(".avif", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpf", ".jpx", ".pbm", ".pgm", ".pnm"),
    *(".ppm", ".tga", *WRITABLE),
)
ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {  # EXIF orientation -> its inverse; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DEPTHS = (8, 10, 12, 14, 16)  # bits of grey that sensors have
STRIP = 2**22  # pixels that are copied at once
MAX_SAMPLE = 281  # the TIFF tag with the largest value that a sample may have
SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange height and width


log = logging.getLogger("detector")


class ImageError(DataError):
    """One image that cannot be used: missing, broken, too large, or not of the size that its annotations say."""


class OversizedError(ImageError):
    """An image of more pixels than the limit."""


def read_image(
    source: str | Path | IO[bytes] | Image.Image, max_pixels: int = MAX_PIXELS, name: str = "", *, bit_depth: int | None = None
) -> Tensor:  # fmt: skip
    """Decode a file, or a PIL image, to uint8 RGB (3, H, W), upright; an `ImageError` names a missing, broken or oversized one.

    The size is read from the header, so that an image over `max_pixels` is refused before it takes memory. An open file is
    read from its beginning and stays open; `name` stands for it in messages. `bit_depth` is that of `to_rgb`.
    """
    with _opened(source, max_pixels, name) as image:
        return to_rgb(image, bit_depth)


def read_size(path: str | Path, max_pixels: int = MAX_PIXELS, limit: str = "data.max_pixels") -> tuple[int, int]:
    """Height and width of the image that `read_image` would give, from its header. Raises ImageError as that does.

    `limit` is what a user calls `max_pixels`.
    """
    with _opened(path, max_pixels, limit=limit) as image:
        turned = image.format != "TIFF" and image.getexif().get(ORIENTATION) in SIDEWAYS  # a TIFF is upright already
        return (image.width, image.height) if turned else (image.height, image.width)


def used_bits(path: str | Path, max_pixels: int = MAX_PIXELS) -> int | None:
    """The bits that a grey image of 16 bits uses; None for other images. Raises ImageError as `read_image` does."""
    with _opened(path, max_pixels) as image:
        return _used_bits(np.asarray(image), _stated(image)) if image.mode.startswith("I") else None


def check_pixels(height: int, width: int, max_pixels: int, name: str, limit: str = "data.max_pixels") -> None:
    """Raise an ImageError for an image of more than `max_pixels`, which a user calls `limit`."""
    if height * width > max_pixels:
        raise OversizedError(_too_large(name, f"{width} x {height} pixels", max_pixels, limit))


def _too_large(name: str, reason: object, max_pixels: int, limit: str) -> str:
    return f"{name}: too large ({reason}); the limit is {max_pixels}: raise {limit} or shrink the image"


@contextmanager
def _opened(
    source: str | Path | IO[bytes] | Image.Image, max_pixels: int, name: str = "", limit: str = "data.max_pixels"
) -> Iterator[Image.Image]:
    """An image of which the header is read; whatever goes wrong with it in here names it."""
    # Pillow's limit holds for the whole process: ours may raise it, never lower it.
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    name = name or _name_of(source)
    try:
        if isinstance(source, str | Path) and not stat.S_ISREG(os.stat(source).st_mode):  # reading a pipe could block
            raise OSError("it is not a file")
        # a PIL image stays open, as an open file does
        given = nullcontext(source) if isinstance(source, Image.Image) else Image.open(source, formats=FORMATS)
        with given as image:
            check_pixels(image.height, image.width, max_pixels, name, limit)
            yield image
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such image; check the image folder and the file names") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise OversizedError(_too_large(name, error, max_pixels, limit)) from error
    except Exception as error:  # decoders raise many kinds of errors for damaged files
        reason = f"{type(error).__name__}: {error}"
        raise ImageError(f"{name}: not a readable image ({reason}); replace the file or remove its entry") from error


def _name_of(source: str | Path | IO[bytes] | Image.Image) -> str:
    """A path, the path of an open file, or what kind of object it is."""
    if isinstance(source, str | Path):
        return str(source)
    return str(getattr(source, "filename", "") or getattr(source, "name", "") or f"an image in {type(source).__name__}")


def to_rgb(image: Image.Image, bit_depth: int | None = None) -> Tensor:
    """An open image of any mode as uint8 RGB (3, H, W), upright. Alpha is dropped.

    Of a grey image of more than 8 bits the 8 highest of its `bit_depth` bits are taken; larger values become 255. Without
    a `bit_depth` it is the least of DEPTHS that holds the image's stated or largest value.
    """
    image.load()  # first: it may change the mode, and a TIFF turns itself upright and forgets its orientation
    rgb, turn = _rgb(image, bit_depth), UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    upright = rgb if turn is None else rgb.transpose(turn)
    # (H, W, 3) -> (3, H, W), channels last in memory: torchvision resizes this layout two to five times as fast
    return torch.from_numpy(_pixels(upright)).permute(2, 0, 1)


def _pixels(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of an RGB image, a strip of rows after the other: NumPy would copy a large one twice."""
    w, h = image.size
    rows = max(1, STRIP // w)
    if rows >= h:
        return np.array(image)
    pixels = np.empty((h, w, 3), dtype=np.uint8)
    for top in range(0, h, rows):
        pixels[top : top + rows] = np.asarray(image.crop((0, top, w, min(top + rows, h))))
    return pixels


def _rgb(image: Image.Image, bit_depth: int | None) -> Image.Image:
    if image.mode == "F":
        raise DataError("floating-point pixels have no known range: save the image with 8 or 16 bits")
    if image.mode.startswith("I"):  # "I", "I;16", "I;16B", ...: grey of 16 bits, which Pillow itself would clip at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            reach = f"values from {values.min()} to {values.max()}"
            raise DataError(f"{reach} do not fit 16 bits: save the image with 8 or 16 bits, from 0")
        image = Image.fromarray(to_bytes(values, bit_depth, _stated(image)))
    if "transparency" in image.info:  # colours first: Pillow warns when a palette loses its transparency unasked
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def to_bytes(values: np.ndarray, bit_depth: int | None, stated: int = 0) -> np.ndarray:
    """The 8 highest of `bit_depth` bits of values up to 65535, uint8 of the same shape; larger values become 255.

    Without a `bit_depth` it is the least of DEPTHS that holds the largest value, or the one that the file has `stated`.
    """
    depth = bit_depth or _used_bits(values, stated)
    if bit_depth is None and depth < DEPTHS[-1]:
        _say_depth(depth)
    return (values >> depth - 8).clip(0, 255).astype(np.uint8)


def _used_bits(values: np.ndarray, stated: int) -> int:
    largest = max(int(values.max()), stated)
    return next((depth for depth in DEPTHS if largest < 2**depth), DEPTHS[-1])


def _stated(image: Image.Image) -> int:
    """The largest value that a TIFF says its samples may have; 0 where nothing is said."""
    return int(np.max(getattr(image, "tag_v2", {}).get(MAX_SAMPLE, 0)))


@functools.cache  # once for each depth
def _say_depth(depth: int) -> None:
    if get_worker_info() is None:  # a training says it before its first step
        log.info(
            "images of 16 bits use %d: each is scaled by its own range; data.bit_depth=%d scales all alike",
            depth,
            depth,
        )
