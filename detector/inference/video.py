"""Frames of video files and cameras, one by one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detector.data.image import MAX_PIXELS, check_pixels
from detector.errors import DataError

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


def video_frames(path: str | Path, max_pixels: int = MAX_PIXELS) -> Iterator[Tensor]:
    """The frames of a video file in order, upright, uint8 RGB (3, H, W); each is decoded when it is asked for.

    Raises DataError for a file that is missing, damaged or without pictures, for frames of more than `max_pixels`, and
    without the package av.
    """
    av = _av()
    if not os.path.isfile(path):
        raise DataError(f"{path}: no such video")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path}: has no pictures, only {len(container.streams)} other streams")
            video = container.streams.video[0]
            check_pixels(video.height, video.width, max_pixels, str(path))  # before a frame is decoded
            for frame in container.decode(video):
                yield _upright(frame)
    except av.FFmpegError as error:
        raise DataError(f"{path}: not a readable video ({error}); convert it, or give its frames one by one") from error


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise DataError("videos need the package av: pip install 'detector[video]'") from error
    return av


def _upright(frame: Any) -> Tensor:
    """A frame turned as players show it: a phone stores the angle beside the pixels."""
    pixels = np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90))  # counterclockwise both
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def is_camera(source: object) -> bool:
    """Whether this is an OpenCV VideoCapture, or behaves like one."""
    return all(hasattr(source, name) for name in ("isOpened", "grab", "read"))


def camera_frames(capture: Any) -> Iterator[Tensor]:
    """The frames of a cv2.VideoCapture until it has no more, uint8 RGB (3, H, W). Raises DataError if it is not open."""
    if not capture.isOpened():
        raise DataError(
            "the camera or video of this VideoCapture is not open: check its number, its path and its permissions"
        )
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield torch.from_numpy(frame[:, :, ::-1].copy()).permute(2, 0, 1)  # OpenCV's frames are BGR
