"""Outlines of a whole data set in little memory."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from detector.records.outlines import Outlines

STEPS = 100  # to a pixel: most files write two decimals


class OutlineStore:
    """Outlines whose coordinates are kept as 32-bit numbers of hundredths where that is exact; indexing restores them."""

    def __init__(self, outlines: Outlines) -> None:
        steps = (outlines.points * STEPS).round()
        fits = bool((steps.abs() < 2**31).all()) and torch.equal(steps / STEPS, outlines.points)
        self._stored = replace(outlines, points=steps.int()) if fits else outlines

    def __getitem__(self, rows: Any) -> Outlines:
        found = self._stored[rows]
        return found if found.points.is_floating_point() else replace(found, points=found.points.double() / STEPS)


def return_free_memory() -> None:
    """Give back to the system what was freed while a large file was read; glibc keeps hundreds of MiB of it."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
