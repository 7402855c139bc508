"""Checks of image files: existence, decoding, size, orientation and content."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from detector.coco_format import join_within
from detector.data.coco import FlatStrings
from detector.data.image import ORIENTATION, SUFFIXES, OversizedError, read_image, used_bits
from detector.data.near_names import twin_on_disk
from detector.dataset_check.checked_split import CheckedSplit
from detector.dataset_check.findings import FaultPlace, Findings
from detector.errors import DataError

BLOCK = 2**20  # bytes that are hashed at a time


class Scan(NamedTuple):
    """The result of reading one file."""

    fault: str | None = None  # a kind of finding
    note: str = ""
    size: tuple[int, int] | None = None  # height and width, upright
    orientation: int = 1  # EXIF's
    digest: bytes = b""  # of the file's content; empty if it was not read
    path: str = ""  # the real one, behind symbolic links
    bits: int | None = None  # that are used of 16


def scan_images(
    splits: Sequence[CheckedSplit],
    findings: Findings,
    *,
    max_pixels: int,
    bit_depth: int | None,
    workers: int,
    read: bool,
) -> list[list[Scan]]:
    """Check the image files of all splits and report faults; without `read` files are not opened.

    Returns a scan of every image of every split.
    """
    files = _Files(splits, max_pixels, read)
    loader = DataLoader(files, batch_size=16, num_workers=workers, collate_fn=list)  # in order
    scans: list[Scan] = []
    with tqdm(total=len(files), desc="images", unit="img", disable=None) as bar:
        for batch in _guarded(loader):
            scans += batch
            bar.update(len(batch))
    ends = np.cumsum([len(split.file_names) for split in splits])
    parts = [scans[end - len(split.file_names) : end] for split, end in zip(splits, ends)]
    for split, part in zip(splits, parts):
        _report(split, part, findings)
        _report_bits(split, part, bit_depth, findings)
    _report_unlisted(splits, scans, findings)
    return parts


def _guarded(loader: DataLoader) -> Iterator[list[Scan]]:
    try:
        yield from loader
    except RuntimeError as error:  # raised by torch when a worker is killed
        raise DataError(f"a process that reads images died ({error}); data.workers=0 shows at which") from error


class _Files(Dataset):
    """A scan of every image of some splits, one after the other."""

    def __init__(self, splits: Sequence[CheckedSplit], max_pixels: int, read: bool) -> None:
        self.folders = [split.folder for split in splits]
        self.names = FlatStrings(name for split in splits for name in split.file_names)
        self.which = np.repeat(np.arange(len(splits)), [len(split.file_names) for split in splits])
        self.max_pixels, self.read = max_pixels, read

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Scan:
        return scan(self.folders[self.which[i]], self.names[i], self.max_pixels, read=self.read)


def scan(folder: Path, name: str, max_pixels: int, *, read: bool = True) -> Scan:
    """Read one file; any fault becomes part of the result."""
    try:
        path = join_within(folder, name)
    except DataError as error:
        return Scan("outside folder", str(error))
    try:
        real = os.path.realpath(path)
        if not os.path.isfile(real):
            there = os.path.exists(real)
            return (
                Scan("corrupt file", "it is not a file") if there else Scan("missing file", twin_on_disk(folder, name))
            )
        return _read(path, max_pixels, real) if read else Scan(path=real)
    except (OSError, ValueError) as error:
        return Scan("corrupt file", str(error))


def _read(path: Path, max_pixels: int, real: str) -> Scan:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd metadata
        digest = _digest(path)
        try:
            _, height, width = read_image(path, max_pixels).shape
        except DataError as error:
            if isinstance(error, OversizedError):
                return Scan("oversized file", str(error).removeprefix(f"{path}: "), digest=digest, path=real)
            cause = error.__cause__
            return Scan("corrupt file", f"{type(cause).__name__}: {cause}", digest=digest, path=real)
        return Scan(
            size=(height, width),
            orientation=_orientation(path),
            digest=digest,
            path=real,
            bits=used_bits(path, max_pixels),
        )


def _orientation(path: Path) -> int:
    try:
        with Image.open(path) as image:
            return image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged metadata, which decoding does not need
        return 1


def _digest(path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.digest()


def _report(split: CheckedSplit, scans: Sequence[Scan], findings: Findings) -> None:
    """The findings about single files."""
    for kind in ("outside folder", "missing file", "corrupt file", "oversized file"):
        rows = [row for row, scan in enumerate(scans) if scan.fault == kind]
        findings.add(kind, split.name, rows, lambda row: split.image_place(row, note=scans[row].note))
    other = [row for row, scan in enumerate(scans) if scan.size and scan.size != tuple(split.sizes[row])]
    findings.add(
        "other size", split.name, other, lambda row: split.image_place(row, note=_sizes(split, row, scans[row]))
    )
    turned = [row for row, scan in enumerate(scans) if scan.size and scan.orientation in range(2, 9)]
    turned = sorted(set(turned) - set(other))
    note = "EXIF orientation {}"
    findings.add(
        "rotated file", split.name, turned, lambda row: split.image_place(row, note=note.format(scans[row].orientation))
    )


def _report_bits(split: CheckedSplit, scans: Sequence[Scan], bit_depth: int | None, findings: Findings) -> None:
    """Grey images of 16 bits that use a part of them, or more of them than the configuration says."""
    kind, most = ("part of the bit depth", 15) if bit_depth is None else ("beyond the bit depth", 16)
    used = {row: scan.bits for row, scan in enumerate(scans) if scan.bits is not None}
    rows = [row for row, bits in used.items() if (bit_depth or 0) < bits <= most]
    note = "it uses {} of 16 bits; " + f"data.bit_depth={max(used.values(), default=0)} holds all"
    findings.add(kind, split.name, rows, lambda row: split.image_place(row, note=note.format(used[row])))


def _sizes(split: CheckedSplit, row: int, scan: Scan) -> str:
    (height, width), (said_height, said_width) = scan.size, split.sizes[row]
    turned = f" (turned upright, EXIF orientation {scan.orientation})" if scan.orientation != 1 else ""
    return f"the image{turned} is {width} x {height}, the annotations say {said_width} x {said_height}"


def _report_unlisted(splits: Sequence[CheckedSplit], scans: Sequence[Scan], findings: Findings) -> None:
    """Images in a folder, or below it, that no split names."""
    listed = {scan.path for scan in scans} | {os.path.abspath(s.folder / name) for s in splits for name in s.file_names}
    seen: set[str] = set()
    for split in splits:
        lost = sorted(path for path in _images_below(split.folder) if path not in seen and not _is_in(path, listed))
        seen.update(lost)
        folder = os.path.abspath(split.folder)
        findings.add(
            "unlisted file", split.name, lost, lambda path, folder=folder: FaultPlace(os.path.relpath(path, folder))
        )


def _is_in(path: str, listed: set[str]) -> bool:
    return path in listed or os.path.realpath(path) in listed


def _images_below(folder: Path) -> Iterator[str]:
    """Absolute paths of the images in a folder and below it, hidden ones left out."""
    for where, folders, files in os.walk(os.path.abspath(folder)):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (
            os.path.join(where, name) for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        )
