"""Files that torch writes are zip archives: whether one is whole, and no larger than it looks, before torch reads it."""

from __future__ import annotations

import zipfile
from pathlib import Path


def check_archive(path: Path, *, intact: bool = False) -> None:
    """Raise zipfile.BadZipFile for what is no such archive, or a damaged one; what is known to be `intact` is not read.

    Torch itself would take changed bytes for weights. It stores them as they are: entries that are larger than the file
    were packed, to fill the memory of whoever unpacks them.
    """
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise zipfile.BadZipFile("its entries are larger than the file")
        if not intact and archive.testzip() is not None:
            raise zipfile.BadZipFile("changed since it was written")
