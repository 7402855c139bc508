"""The table of a comparison: a row a system, with the means of its runs over several seeds."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from detector.errors import DataError

SCORE = "score"  # subfolder of a training for the evaluation that is compared
BOXES = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # of the detections
SHAPES = ("segm/AP", "segm/AP50", "segm/AP75", "segm/APs", "segm/APm", "segm/APl", "boundary/AP", "keypoints/AP")
RECALLS = tuple(f"AR{limit}{size}" for limit in (100, 1000) for size in ("", "s", "m", "l"))  # of the proposals
COSTS = ("parameters", "flops", "ms", "memory_mib")
COLUMNS = (*BOXES, *SHAPES, *RECALLS, *COSTS)
UNITS = {"parameters": ("M parameters", 1e-6, 2), "flops": ("GFLOPs", 1e-9, 2), "ms": ("ms", 1, 1)}
UNITS |= {"memory_mib": ("MiB", 1, 0)}  # column: heading, factor, decimals; any other is a percentage
CAPTION = """
AP of the detections (segm/AP: of their masks, boundary/AP: of boundary IoU) and AR of the proposals in %, mean ± half the
range over the seeds. GFLOPs (two a multiplication with its addition) of one image; ms: median of one image from pixels to
detections, whose masks are not pasted; MiB: peak of the training.
"""


@dataclass(frozen=True)
class SeedMean:
    """A number of several seeds: its mean and half its range; NaN where there is nothing to measure."""

    mean: float
    spread: float


@dataclass(frozen=True)
class SystemRow:
    """One system of a comparison."""

    name: str
    seeds: int
    numbers: dict[str, SeedMean]  # by COLUMNS


def read_run(folder: Path, *, rpn_alone: bool = False) -> dict[str, float]:
    """The numbers of one training and its evaluation; NaN for COCO's -1, and for the AP of an RPN alone, which has no classes.

    Only the evaluation in SCORE counts: another one in the folder may be of any split and settings. Raises DataError
    for files that are not those of a finished run.
    """
    path = folder / SCORE / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        numbers = {name: float(metrics["bbox"][name]) for name in BOXES}
        numbers |= {name: float(metrics["proposals"][name]) for name in RECALLS}
        for title, name in (column.split("/") for column in SHAPES):
            numbers[f"{title}/{name}"] = float(metrics[title][name]) if title in metrics else math.nan
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not the metrics of an evaluation ({error!r}); remove the file to evaluate again"
        ) from error
    nothing = BOXES if rpn_alone else ()
    numbers = {name: math.nan if value < 0 or name in nothing else value for name, value in numbers.items()}
    return numbers | {"memory_mib": _peak_memory(folder / "metrics.csv")}


def _peak_memory(path: Path) -> float:
    """Peak memory of a training, in MiB."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            found = [float(row["memory_mib"]) for row in csv.DictReader(file) if row["memory_mib"]]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not the metrics of a training ({error!r})") from error
    return max(found, default=math.nan)


def make_row(name: str, runs: Sequence[Mapping[str, float]], costs: Mapping[str, float]) -> SystemRow:
    """The row of one system: the numbers of its runs with all seeds, and its costs."""
    numbers = {c: _number([run[c] for run in runs]) for c in COLUMNS if c in runs[0]}
    numbers |= {c: SeedMean(value, 0.0) for c, value in costs.items()}
    return SystemRow(name, len(runs), {c: numbers[c] for c in COLUMNS})


def _number(values: list[float]) -> SeedMean:
    return SeedMean(fmean(values), (max(values) - min(values)) / 2)


def shown_columns(rows: Sequence[SystemRow]) -> list[str]:
    """Those of a table: masks and keypoints only where a system finds them."""
    return [c for c in COLUMNS if c not in SHAPES or not all(math.isnan(row.numbers[c].mean) for row in rows)]


def to_markdown(rows: Sequence[SystemRow]) -> str:
    """The table and the meaning of its columns."""
    columns = shown_columns(rows)
    heads = ["system", "seeds", *(UNITS.get(c, (c,))[0] for c in columns)]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for row in rows:
        shown = [_shown(c, row.numbers[c], row.seeds) for c in columns]
        lines.append([row.name.replace("|", r"\|"), str(row.seeds), *shown])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + CAPTION


def _shown(column: str, number: SeedMean, seeds: int) -> str:
    """One cell, in the unit of its column."""
    _, factor, decimals = UNITS.get(column, ("", 100, 1))
    if math.isnan(number.mean):
        return "–"
    spread = f" ± {number.spread * factor:.{decimals}f}" if seeds > 1 and column not in COSTS else ""
    return f"{number.mean * factor:.{decimals}f}{spread}"


def to_csv(rows: Sequence[SystemRow]) -> str:
    """The table, unrounded: fractions 0..1, and for every column its spread, empty where nothing was measured."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = shown_columns(rows)
    writer.writerow(["system", "seeds", *(name for c in columns for name in (c, f"{c}_spread"))])
    for row in rows:
        values = [value for c in columns for value in (row.numbers[c].mean, row.numbers[c].spread)]
        writer.writerow([row.name, row.seeds, *("" if math.isnan(v) else f"{v:.6g}" for v in values)])
    return file.getvalue()
