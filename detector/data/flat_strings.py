"""Many strings as one block of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


class FlatStrings(Sequence[str]):
    """Strings in one blob: touching a list of strings copies its pages, one by one, into every worker's memory."""

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [string.encode() for string in strings]
        self._blob = b"".join(encoded)
        self._end = np.cumsum([0, *map(len, encoded)])  # (n + 1,), led by a zero

    def __len__(self) -> int:
        return len(self._end) - 1

    def __getitem__(self, i: int) -> str:
        i = range(len(self))[i]
        return self._blob[self._end[i] : self._end[i + 1]].decode()
