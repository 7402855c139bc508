"""The image files of a path, a folder or a pattern."""

from __future__ import annotations

import glob
import logging
import os
from pathlib import Path

from detector.data.image import SUFFIXES
from detector.errors import DataError
from detector.inference.video import VIDEO_SUFFIXES

SHOWN = 5  # files that are no images, by name
MAGIC = "*?["  # characters that make a path a pattern


log = logging.getLogger("detector")


def is_pattern(path: str) -> bool:
    """Whether a path is no file and no folder, and has characters of a pattern."""
    return any(c in path for c in MAGIC) and not os.path.exists(path)


def search_images(path: str, *, skip: Path | None = None) -> tuple[Path, list[Path]]:
    """The folder that was searched, and the images in it by name.

    A file of any suffix is itself the only image. Hidden files below a folder are left out, and those below `skip`, an
    absolute path within the searched folder. Raises DataError if there is nothing there, or no image.
    """
    if not path:
        raise DataError("an empty path was given (an unset variable?); name a file, a folder or a pattern")
    place = _absolute(path)
    if place.is_file():
        if place.suffix.lower() in VIDEO_SUFFIXES:
            raise DataError(
                f"{path}: a video, which `predictor.stream` reads frame by frame in Python; name images here"
            )
        return place.parent, [place]
    if place.is_dir():
        folder, found = place, [f for f in place.rglob("*") if not _hidden(f.relative_to(place))]
    elif is_pattern(path):
        fixed = path[: min(path.find(c) for c in MAGIC if c in path)]
        folder = _absolute(f"{fixed}x").parent  # photos/2*/*.jpg: photos
        found = [_absolute(match) for match in glob.glob(path, recursive=True)]
    else:
        raise DataError(f"{path}: no such file or folder")
    if skip is not None and folder in skip.parents:
        found = [file for file in found if skip not in file.parents]
    files = [file for file in found if file.is_file()]
    others = sorted(os.path.relpath(file, folder) for file in files if file.suffix.lower() not in SUFFIXES)
    files = [file for file in files if file.suffix.lower() in SUFFIXES]
    images = sorted(files, key=lambda file: Path(os.path.relpath(file, folder)).as_posix())  # as conversion
    if not images:
        raise DataError(f"{path}: no images found there ({' '.join(SUFFIXES)})")
    if others:
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        log.warning("%s: %d files are no images, passed over: %s%s", path, len(others), ", ".join(others[:SHOWN]), more)
    return folder, images


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(path))  # without ".." but, unlike resolve(), with links kept


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
