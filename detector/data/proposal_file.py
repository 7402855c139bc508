"""A file of proposals for every image of a data set, for a detector without an RPN (Fast R-CNN)."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detector.errors import DataError
from detector.files import load_tensors
from detector.structures import Proposals

FORMAT = "detector proposals 1"
COLUMNS = {  # dtype and shape of every tensor; n images, R proposals of all images together
    "image_ids": (torch.int64, ("n",)),
    "names": (
        torch.int64,
        ("n",),
    ),  # CRC-32 of every image's folder and file name: ids and sizes of two splits may be alike
    "sizes": (torch.int64, ("n", 2)),  # (h, w) of every image
    "ends": (torch.int64, ("n",)),  # where the rows of every image end
    "boxes": (torch.float32, ("R", 4)),  # xyxy in the pixels of the image, best first
    "scores": (torch.float32, ("R",)),  # objectness logits
}


def pack(
    image_ids: Sequence[int], names: Sequence[str], sizes: Sequence[tuple[int, int]], proposals: Sequence[Proposals]
) -> dict[str, Any]:
    """The content of a proposal file: flat tensors, which `torch.load(weights_only=True)` reads.

    Args:
        image_ids: id of every image.
        names: "folder/file" of every image.
        sizes: height and width of every image.
        proposals: proposals of every image, best first.
    """
    none = Proposals(torch.zeros(0, 4), torch.zeros(0))
    return {
        "format": FORMAT,
        "image_ids": torch.tensor(image_ids, dtype=torch.int64),
        "names": torch.from_numpy(_checksums(names)),
        "sizes": torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2),
        "ends": torch.tensor([len(p.scores) for p in proposals], dtype=torch.int64).cumsum(dim=0),
        "boxes": torch.cat([p.boxes.float() for p in [none, *proposals]]),
        "scores": torch.cat([p.scores.float() for p in [none, *proposals]]),
    }


class ProposalFile:
    """Proposals by image id. The boxes are mapped into memory from the disk, so that all workers share them."""

    def __init__(self, path: str | Path, *, intact: bool = False) -> None:
        """Raises DataError for another or a damaged file. With `intact` the check that reads the whole file is skipped."""
        self.path = Path(path)
        content = _read(self.path, intact)
        self._boxes, self._scores = content["boxes"], content["scores"]
        ids, names, sizes, ends = (content[name].numpy() for name in ("image_ids", "names", "sizes", "ends"))
        order = np.argsort(ids)  # for binary search: workers would copy a dictionary page by page
        self._ids, self._names, self._sizes, self._ends = ids[order], names[order], sizes[order], ends[order]
        self._starts = np.append(0, ends)[:-1][order]

    def check(self, image_ids: np.ndarray, names: Sequence[str], sizes: np.ndarray, annotations: Path) -> None:
        """Raise DataError unless the file has all these images: ids (n,), "folder/file" and sizes (n, 2) h, w."""
        known = np.isin(image_ids, self._ids)
        if not known.all():
            missing = image_ids[~known]
            raise DataError(
                f"{self.path}: has no proposals for image id {missing[0]} ({len(missing)} of the {len(image_ids)} images of "
                f"{annotations} are missing); write them with detector evaluate CKPT --split ... --proposals FILE"
            )
        row = np.searchsorted(self._ids, image_ids)
        other = np.flatnonzero((self._names[row] != _checksums(names)) | (self._sizes[row] != sizes).any(axis=1))
        if len(other):
            (h, w), i = sizes[other[0]], other[0]
            raise DataError(
                f"{self.path}: its image id {image_ids[i]} is not {names[i]}, {w} x {h}, of {annotations} ({len(other)} of "
                f"{len(image_ids)} images differ): these are the proposals of another split or data set"
            )

    def __getitem__(self, image_id: int) -> Proposals:
        """The proposals of one image, clipped to it, those without area dropped. Raises DataError for non-finite values."""
        row = self._row(image_id)
        rows, (h, w) = slice(self._starts[row], self._ends[row]), self._sizes[row].tolist()
        boxes, scores = self._boxes[rows].clone(), self._scores[rows].clone()
        if not (boxes.isfinite().all() and scores.isfinite().all()):
            raise DataError(f"{self.path}: a proposal of image id {image_id} is not finite; write the file again")
        return Proposals(boxes, scores).clipped((h, w))

    def __reduce__(self) -> tuple:
        return functools.partial(ProposalFile, intact=True), (
            self.path,
        )  # a worker that is no fork maps the file itself

    def _row(self, image_id: int) -> int:
        return int(np.searchsorted(self._ids, image_id))


def _checksums(names: Sequence[str]) -> np.ndarray:
    return np.array([zlib.crc32(name.encode()) for name in names], dtype=np.int64)


def _read(path: Path, intact: bool) -> dict[str, Tensor]:
    if not path.is_file():
        raise DataError(f"{path}: no such file of proposals; correct `proposals`, which is relative to data.root")
    try:
        content = load_tensors(path, intact=intact, mmap=True)
    except Exception as error:  # torch raises a dozen kinds; its own text advises to read the file unsafely
        raise DataError(f"{path}: damaged, or holds more than plain tensors; it was not read") from error
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise DataError(f"{path}: is not a file of proposals, which `detector evaluate CKPT --proposals FILE` writes")
    lengths: dict[str, set[int]] = {"n": set(), "R": set()}
    for name, (dtype, (length, *rest)) in COLUMNS.items():
        column = content.get(name)
        if not isinstance(column, Tensor) or column.dtype != dtype or list(column.shape[1:]) != rest or column.ndim < 1:
            raise DataError(f"{path}: `{name}` must be a tensor ({', '.join(map(str, [length, *rest]))}) of {dtype}")
        lengths[length].add(len(column))
    if any(len(found) > 1 for found in lengths.values()) or not _partition(content["ends"], len(content["scores"])):
        raise DataError(f"{path}: damaged: its tensors do not belong together")
    if len(content["image_ids"].unique()) < len(content["image_ids"]):
        raise DataError(f"{path}: damaged: an image id occurs twice")
    return dict(content)


def _partition(ends: Tensor, rows: int) -> bool:
    """Whether each row belongs to exactly one image."""
    steps = ends.diff(prepend=ends.new_zeros(1))
    return bool((steps >= 0).all()) and (int(ends[-1]) if len(ends) else 0) == rows
