"""What a predictor accepts: one picture in any of its forms, or something that gives pictures one by one."""

from __future__ import annotations

import http.client
import io
import os
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detector import __version__
from detector.data.image import ImageError, check_pixels, read_image, to_bytes
from detector.inference.search import is_pattern, search_images
from detector.inference.video import VIDEO_SUFFIXES, camera_frames, is_camera, video_frames

Encoded = bytes | bytearray | memoryview  # the content of an image file
Picture = str | Path | Image.Image | Tensor | np.ndarray | Encoded | IO[bytes]
URL = ("http://", "https://")
TIMEOUT = 20  # seconds without an answer
MAX_BYTES = 100 * 2**20  # of a file behind a URL
EXPECTED = (
    "expected a path, a URL, the bytes of an image file, an open file, a PIL image, a NumPy array (H, W, 3), "
    "a uint8 RGB tensor (3, H, W), or an iterable of these"
)


def is_picture(source: object) -> TypeGuard[Picture]:
    """Whether this is one picture, and not a folder, a pattern, a video, a camera or an iterable."""
    if isinstance(source, str | Path):
        return not (_is_video(source) or _is_search(source))
    return isinstance(source, Image.Image | Tensor | np.ndarray | Encoded) or _is_open_file(source)


def iterate_pictures(source: Any, max_pixels: int) -> Iterator[Picture]:
    """The pictures of a source in order: of a folder or a pattern by name; of an iterable, those of its items.

    Nothing is read ahead. Raises DataError for a folder or a pattern without images and for what is no video, TypeError for
    what is no source.
    """
    if is_picture(source):
        yield source
    elif isinstance(source, str | Path):
        yield from video_frames(source, max_pixels) if _is_video(source) else search_images(str(source))[1]
    elif is_camera(source):
        yield from camera_frames(source)
    elif isinstance(source, Iterable) and not isinstance(source, Mapping):
        for item in source:
            yield from iterate_pictures(item, max_pixels)
    else:
        raise TypeError(f"{EXPECTED}; got {type(source).__name__}")


def _is_video(path: str | Path) -> bool:
    return Path(path).suffix.lower() in VIDEO_SUFFIXES and not _is_url(path) and not os.path.isdir(path)


def _is_search(path: str | Path) -> bool:
    return not _is_url(path) and (os.path.isdir(path) or is_pattern(str(path)))


def _is_url(source: object) -> TypeGuard[str]:
    return isinstance(source, str) and source.lower().startswith(URL)


def _is_open_file(source: object) -> TypeGuard[IO[bytes]]:
    return hasattr(source, "read") and not is_camera(source)


def read_picture(picture: Picture, max_pixels: int, *, bit_depth: int | None = None, bgr: bool = False) -> Tensor:
    """A picture that is no tensor as an upright uint8 RGB tensor (3, H, W).

    Raises ImageError for what cannot be read or has more than `max_pixels`, ValueError for an array of another form,
    TypeError for another type. `bit_depth`: that of `to_rgb`; `bgr`: arrays have blue first.
    """
    if isinstance(picture, np.ndarray):
        return from_array(picture, max_pixels, bit_depth=bit_depth, bgr=bgr)
    if _is_url(picture):
        return read_image(_fetch(picture), max_pixels, name=picture, bit_depth=bit_depth)
    if isinstance(picture, Encoded):
        name = f"an image of {len(picture)} bytes"
        return read_image(io.BytesIO(picture), max_pixels, name=name, bit_depth=bit_depth)
    if isinstance(picture, str | Path | Image.Image) or _is_open_file(picture):
        return read_image(picture, max_pixels, bit_depth=bit_depth)
    raise TypeError(f"{EXPECTED}; got {type(picture).__name__}")


def from_array(array: np.ndarray, max_pixels: int, *, bit_depth: int | None = None, bgr: bool = False) -> Tensor:
    """A uint8 or uint16 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) as uint8 RGB (3, H, W).

    As in files, the 8 highest of `bit_depth` bits are taken and alpha is dropped. `bgr`: blue comes first.
    Raises ValueError for another form, ImageError for more than `max_pixels`.
    """
    pixels = array[:, :, None] if array.ndim == 2 else array
    if (
        array.dtype not in (np.uint8, np.uint16)
        or pixels.ndim != 3
        or pixels.shape[2] not in (1, 3, 4)
        or not array.size
    ):
        raise ValueError(
            f"expected a uint8 or uint16 array of shape (H, W, 3), (H, W, 4), (H, W, 1) or (H, W), got {array.dtype} "
            f"{array.shape}; {_remedy(array)}"
        )
    check_pixels(pixels.shape[0], pixels.shape[1], max_pixels, f"an array of shape {array.shape}")
    colours = pixels[:, :, :3] if pixels.shape[2] > 1 else pixels.repeat(3, axis=2)
    colours = colours[:, :, ::-1] if bgr else colours
    colours = to_bytes(colours, bit_depth) if colours.dtype == np.uint16 else colours
    # copied: the array may be read-only, or filled again by a camera; channels last in memory as in to_rgb
    return torch.from_numpy(np.array(colours, dtype=np.uint8, order="C")).permute(2, 0, 1)


def _remedy(array: np.ndarray) -> str:
    """What to do with an array of another form."""
    if array.ndim == 4:
        return "give the images of a batch one by one: list(array)"
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        return "channels come last: array.transpose(1, 2, 0)"
    if array.dtype.kind == "f":
        return "values in 0..1 become pixels by (255 * array).round().astype(np.uint8)"
    if array.dtype.kind == "b":
        return "a mask becomes black and white by (255 * array).astype(np.uint8)"
    if array.dtype.kind in "iu" and array.dtype not in (np.uint8, np.uint16):
        return "array.astype(np.uint8) converts integers in 0..255"
    return "it has no pixels, or no channels that make a picture"


def _fetch(url: str) -> IO[bytes]:
    """The file behind a URL, in memory. Raises ImageError if it does not come or is too large."""
    request = urllib.request.Request(url, headers={"User-Agent": f"detector/{__version__}"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            content = response.read(MAX_BYTES + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:  # no network, no such page, no URL
        raise ImageError(
            f"{url}: could not be fetched ({getattr(error, 'reason', None) or error}); check the address and the network, or "
            "give the path of a downloaded file"
        ) from error
    if len(content) > MAX_BYTES:
        raise ImageError(f"{url}: more than {MAX_BYTES >> 20} MiB; download the file and give its path")
    return io.BytesIO(content)
