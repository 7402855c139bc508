"""Files: archives checked before torch reads them, atomic writes, and results that never replace foreign files."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

from detector.errors import CheckpointError, DataError

# first bytes of the files that the program writes
SIGNATURES = {
    "metrics.json": (b'{\n  "bbox": {\n    "AP": ',),
    "detections.json": (b'[{"image_id": ', b"[]"),
    "uncertain.csv": (b"rank,file_name,image_id,",),
    "label-studio.json": (b'[{"data": {"image": "/data/loc', b"[]"),
    "label-studio.xml": (b'<View>\n  <Image name="image"',),
    "cvat.json": (b'{"info": {"description": "pre-',),
    "coco.json": (b'{"info": {"description": "pre-',),
    "table.csv": (b"system,seeds,AP,",),
    "table.md": (b"| system | seeds | AP |",),
    "ap_latency.png": (b"\x89PNG",),
    "output.txt": (b"detector compare: ", b"scripts/compare.py: "),  # the latter by version 0.1
    "explanation.json": (b'{\n  "explained": "',),
    "explanation.txt": (b"Explanation of ",),
    "explanation.png": (b"\x89PNG",),
}
# a file whose signature other programs share, and the file in the same folder that must be there, too
COMPANIONS = {
    "detections.json": "metrics.json",
    "table.md": "table.csv",
    "ap_latency.png": "table.csv",
    "explanation.txt": "explanation.json",
    "explanation.png": "explanation.json",
}
ADVICE = "choose another --output"
ARCHIVE = b"PK\x03\x04"  # the first bytes of a zip file; torch reads any other file in the format of torch < 1.6


class NotWritten(CheckpointError):
    """A file could not be written."""


def check_there(path: Path) -> None:
    """Raise CheckpointError where there is no file, with the checkpoint that may be meant."""
    if path.is_file():
        return
    near = [other for other in (path / "best.pth", path / "last.pth", path.with_name("last.pth")) if other.is_file()]
    hint = f"; {near[0]} is there" if near else ""
    if near and path.name == "best.pth":
        hint += ", and best.pth comes with the first evaluation"
    raise CheckpointError(f"{path}: no such checkpoint{hint}")


def check_archive(path: Path, *, intact: bool = False) -> None:
    """Raise zipfile.BadZipFile for an archive that is damaged or compressed, or for a file that is no archive.

    Torch compares no checksums: it would load changed bytes as weights. It also stores entries uncompressed, so that
    compressed ones are rejected (zip bomb). The checksums of an `intact` archive are not compared.
    """
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise zipfile.BadZipFile("its entries are larger than the file")
        if not intact and archive.testzip() is not None:
            raise zipfile.BadZipFile("changed since it was written")


def load_tensors(path: Path, *, intact: bool = False, mmap: bool = False) -> Any:
    """The content of a file that torch.save wrote, on the CPU; no code in it is run.

    Raises zipfile.BadZipFile for an archive that is damaged or compressed, and torch's own errors for any other file that
    it cannot read safely. A file by torch < 1.6 is no archive and has no checksums.

    Args:
        path: the file.
        intact: the archive is known to be undamaged; its checksums are not compared.
        mmap: map the tensors' memory to the file instead of reading it.
    """
    if begins(path, (ARCHIVE,)):
        check_archive(path, intact=intact)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def write_atomically(path: Path, content: Mapping[str, Any], previous: Path | None = None) -> None:
    """Atomic torch.save; see `write_beside`."""
    write_beside(path, lambda file: torch.save(content, file), previous)


def write_beside(path: Path, write: Callable[[IO[bytes]], object], previous: Path | None = None) -> None:
    """Atomic write: `write(file)` fills a temporary file, which is flushed to the disk and renamed to `path`.

    An older file at `path` is kept as `previous`, if given. Raises NotWritten if the system refuses; nothing has changed then.
    """
    temporary, link = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("tmp", "link.tmp"))
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _link(path, link)
            os.replace(link, previous)
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:  # on a full disk torch.save hides the first behind the second
        reason = error if isinstance(error, OSError) else error.__context__ or error
        raise NotWritten(f"{path}: could not be written ({reason}); the older file, if any, is untouched") from error
    finally:
        for leftover in (temporary, link):
            with suppress(OSError):  # a name too long to be written is too long to be removed
                leftover.unlink(missing_ok=True)


def _link(path: Path, other: Path) -> None:
    """A second name for a file, so that it is never without one; a copy where the file system has no links."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)


def _flush_folder(folder: Path) -> None:
    """Flush the entries of a folder, and with them a rename; Windows does not open folders."""
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def check_own(folder: Path, *names: str) -> None:
    """Raise DataError where a result would replace a file that no earlier run of the program wrote."""
    for path in (folder / name for name in names):
        if path.exists() and not (_is_own(path) and _is_own(folder / COMPANIONS.get(path.name, path.name))):
            raise DataError(f"{path}: not of an earlier run, and would be written over; {ADVICE}")


def _is_own(path: Path) -> bool:
    return begins(path, SIGNATURES[path.name])


def begins(path: Path, signatures: tuple[bytes, ...]) -> bool:
    """Whether there is a file at `path` with one of these first bytes, at most 30."""
    try:
        with open(path, "rb") as file:
            return file.read(30).startswith(signatures)
    except OSError:
        return False


def check_new_file(path: Path, advice: str = "name another file") -> None:
    """Raise DataError where anything exists at `path`, a broken link as well, or where no file could be made."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        check_folder(path.parent, advice)
    except OSError as error:
        raise DataError(f"{path}: cannot be a file ({error.strerror}); {advice}") from error
    else:
        raise DataError(f"{path}: exists already and is not written over; {advice}, or remove it")


def check_folder(folder: Path, advice: str = ADVICE) -> None:
    """Raise DataError where `make_folder` would fail, or where nothing could be written into the folder."""
    there = next(path for path in [folder, *folder.parents] if path.exists())
    if not there.is_dir():
        raise DataError(f"{folder}: cannot be made ({there} is no folder); {advice}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise DataError(f"{there}: cannot be written to; {advice}")


def make_folder(folder: Path, advice: str = ADVICE) -> Path:
    """The folder, made if it is missing. Raises DataError where nothing could be written into it."""
    check_folder(folder, advice)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made ({error.strerror}); {advice}") from error
    return folder


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` unless an error is raised. Raises DataError if anything exists there."""
    check_new_file(path, "name another folder")
    make_folder(path.parent, "name another folder")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.mkdir()
        yield unfinished
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Atomic write of a result. Raises DataError if the system refuses."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({error.strerror}); {ADVICE}") from error
