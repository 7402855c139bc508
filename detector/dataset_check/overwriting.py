"""Reports replace only files that an earlier run wrote."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from detector.dataset_check.picture import MAKER
from detector.errors import DataError
from detector.files import begins, check_folder

ANCHORS = "# Anchors by k-means over the boxes of"  # first words of a configuration of anchors
JSON = (b'{\n  "data": ',)  # how our file begins


def check_own_json(path: Path) -> None:
    """Raise DataError if the path cannot be written, or holds a file that no earlier run wrote."""
    _check(path, begins(path, JSON))


def check_own_anchors(path: Path) -> None:
    """The same for a configuration of anchors."""
    _check(path, begins(path, (ANCHORS.encode()[:30],)))


def check_own_picture(path: Path) -> None:
    """The same for a picture."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            own = image.info.get("Software") == MAKER
    except Exception:  # not a picture of an earlier run
        own = False
    _check(path, own)


def _check(path: Path, own: bool) -> None:
    check_folder(path.parent, "name another file")
    if (path.exists() or path.is_symlink()) and not own:
        raise DataError(f"{path}: not of an earlier run, and would be written over; name another file")
