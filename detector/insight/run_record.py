"""What a training left in its folder: the rows of metrics.csv, the lines of train.log, and what its checkpoint says."""

from __future__ import annotations

import csv
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from detector.errors import DataError

STAMP = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)")
GENERAL = ("step", "epoch", "lr", "grad_norm", "data_s", "step_s", "memory_mib", "val_loss")
SCORED = "AP"  # a column that only evaluations fill


@dataclass
class RunRecord:
    """One training."""

    folder: Path
    steps: list[dict[str, float]] = field(default_factory=list)
    """Of metrics.csv, one for each step; values that are missing are left out."""
    evaluations: list[dict[str, float]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    @property
    def losses(self) -> list[str]:
        """The names of the losses, the sum first."""
        named = dict.fromkeys(key for row in self.steps for key in row)
        return sorted((key for key in named if key not in GENERAL), key=lambda key: key != "loss")

    def best(self, criterion: str) -> dict[str, float] | None:
        """The evaluation with the highest score, the first of equals."""
        known = [row for row in self.evaluations if criterion in row]
        return max(known, key=lambda row: row[criterion], default=None)

    def training_seconds(self) -> float:
        """Of all steps and their loading, without evaluations."""
        return math.fsum(row.get("data_s", 0) + row.get("step_s", 0) for row in self.steps)

    def span(self) -> tuple[str, str] | None:
        """The times of the first and the last line of the log."""
        found = [match[1] for line in self.log if (match := STAMP.match(line))]
        return (found[0], found[-1]) if found else None

    def hours(self) -> float:
        """Between these lines; NaN without a log."""
        span = self.span()
        if span is None:
            return math.nan
        first, last = (datetime.strptime(text, "%Y-%m-%d %H:%M:%S") for text in span)
        return (last - first).total_seconds() / 3600

    def said(self, start: str) -> str | None:
        """What follows the first words `start` in the newest line of the log with them."""
        for line in reversed(self.log):
            rest = STAMP.sub("", line, count=1).partition(" ")[2]
            if rest.startswith(start):
                return rest[len(start) :].strip()
        return None

    def command(self) -> str:
        """The command that repeats the training in another folder."""
        start = self.said("init-from: ")
        words = ["detector", "train", self.folder / "config.yaml", "--output", f"{self.folder}-again"]
        return shlex.join(map(str, words + (["--init-from", start] if start else [])))


def read_record(folder: Path) -> RunRecord:
    """The record of a folder; a file that is missing leaves its part empty. Raises DataError for one that cannot be read."""
    record = RunRecord(folder)
    try:
        for row in _rows(folder / "metrics.csv"):
            (record.evaluations if SCORED in row else record.steps).append(row)
        log = folder / "train.log"
        record.log = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    except (OSError, csv.Error) as error:
        raise DataError(
            f"{folder}: its metrics.csv or train.log cannot be read ({error}); move the file away"
        ) from error
    return record


def _rows(path: Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        return [row for row in map(_numbers, csv.DictReader(file)) if "step" in row]


def _numbers(row: Mapping[str | None, Any]) -> dict[str, float]:
    """The cells that are numbers."""
    out = {}
    for key, text in row.items():
        try:
            out[str(key)] = float(text)
        except (TypeError, ValueError):
            continue
    return out


def thinned(values: Sequence[tuple[float, float]], most: int = 240) -> list[tuple[float, float]]:
    """Points of a curve, at most so many: each is the mean of as many in a row."""
    step = -(-len(values) // most) if values else 1
    groups = [values[i : i + step] for i in range(0, len(values), step)]
    return [(group[-1][0], math.fsum(y for _, y in group) / len(group)) for group in groups]
