"""Files of results: none is left half written, and none that something else wrote is replaced."""

from __future__ import annotations

import os
from pathlib import Path

from detector.errors import DataError

BEGINNINGS = {  # of our own files
    "metrics.json": (b'{\n  "bbox": {\n    "AP": ',),
    "detections.json": (b'[{"image_id": ', b"[]"),
    "table.csv": (b"system,seeds,AP,",),
    "table.md": (b"| system | seeds | AP |",),
    "ap_latency.png": (b"\x89PNG",),
    "output.txt": (b"scripts/compare.py: ",),
}
WITNESS = {  # what looks like anybody's is ours beside this
    "detections.json": "metrics.json",
    "table.md": "table.csv",
    "ap_latency.png": "table.csv",
}
ADVICE = "choose another --output"


def check_own(folder: Path, *names: str) -> None:
    """DataError where writing these results would replace a file that no earlier run of the program wrote."""
    for path in (folder / name for name in names):
        if path.exists() and not (_is_own(path) and _is_own(folder / WITNESS.get(path.name, path.name))):
            raise DataError(f"{path}: not of an earlier run, and would be written over; {ADVICE}")


def _is_own(path: Path) -> bool:
    return begins(path, BEGINNINGS[path.name])


def begins(path: Path, beginnings: tuple[bytes, ...]) -> bool:
    """Whether there is a file at `path` that begins with one of these, of 30 bytes at most."""
    try:
        with open(path, "rb") as file:
            return file.read(30).startswith(beginnings)
    except OSError:
        return False


def check_new_file(path: Path) -> None:
    """DataError where a file, or anything else, has that name already, or none could be made there."""
    if path.exists() or path.is_symlink():
        raise DataError(f"{path}: exists already and is not written over; name another file, or remove it")
    check_folder(path.parent, "name another file")


def check_folder(folder: Path, advice: str = ADVICE) -> None:
    """DataError if `make_folder` would fail, or nothing could be written there."""
    there = next(path for path in [folder, *folder.parents] if path.exists())
    if not there.is_dir():
        raise DataError(f"{folder}: cannot be made ({there} is no folder); {advice}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise DataError(f"{there}: cannot be written to; {advice}")


def make_folder(folder: Path, advice: str = ADVICE) -> Path:
    """The folder, made if need be; DataError at once if results could not be written into it at the end."""
    check_folder(folder, advice)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made ({error.strerror}); {advice}") from error
    return folder


def write_text(path: Path, text: str) -> None:
    """`write_bytes` in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or none: a reader, or a crash, never meets half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({error.strerror}); {ADVICE}") from error
