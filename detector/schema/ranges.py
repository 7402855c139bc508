"""Allowed ranges as part of a signature: `width: Annotated[int, Range(1, 1000)]`. schema/signatures.py checks them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, both included unless `above` or `below` leaves that end out."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def __contains__(self, number: float) -> bool:
        """False for NaN."""
        from_low = self.low < number if self.above else self.low <= number
        return from_low and (number < self.high if self.below else number <= self.high)

    def __str__(self) -> str:
        """As a message shows it: "in 0..1", "above 0 and at most 1"."""
        if not (self.above or self.below):
            return f"in {self.low:g}..{self.high:g}"
        return f"{'above' if self.above else 'at least'} {self.low:g} and {'below' if self.below else 'at most'} {self.high:g}"


Fraction = Annotated[float, Range(0, 1)]
IoU = Annotated[float, Range(1e-3, 1)]  # a threshold; at 0, boxes that do not touch would match
Weight = Annotated[float, Range(0, 1e6)]  # of a loss, or the corner of one
Count = Annotated[int, Range(1, 10**9)]
Width = Annotated[int, Range(1, 10**5)]  # channels or features
Repeats = Annotated[int, Range(1, 100)]  # layers of one kind
