"""Metrics as aligned text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def summary_table(metrics: dict[str, dict[str, Any]]) -> str:
    """The metrics of `evaluate_results`, and those of proposals if there are any, as aligned text."""
    tables = []
    for title in ("bbox", "segm", "boundary", "keypoints", "configured"):
        names = list(metrics.get(title, {}))
        tables += [[["", *part], [title, *_row(metrics[title], part)]] for part in (names[:6], names[6:]) if part]
    of_classes = metrics["per_class"]
    columns = list(next(iter(of_classes.values()), ("AP", "AP50")))
    tables.append([["class", *columns], *([name, *_row(scores, columns)] for name, scores in of_classes.items())])
    texts = [_lined_up(rows) for rows in tables]
    return "\n\n".join(texts + ([recall_table(metrics["proposals"])] if "proposals" in metrics else []))


def recall_table(recall: dict[str, float]) -> str:
    """AR of proposals as aligned text."""
    rows = [[name, *_row(recall, [name + size for size in ("", *"sml")])] for name in ("AR100", "AR1000")]
    return _lined_up([["proposals", "all", "small", "medium", "large"], *rows])


def _lined_up(rows: list[list[str]]) -> str:
    first, *others = zip(*rows)
    columns = [[cell.ljust(max(map(len, first))) for cell in first]]
    columns += [[cell.rjust(max(10, len(column[0]) + 2)) for cell in column] for column in others]
    return "\n".join(map("".join, zip(*columns)))


def _row(values: dict[str, float], names: Iterable[str]) -> list[str]:
    """Cells with six decimals; a dash where there are no objects."""
    return [f"{values[name]:.6f}" if values[name] >= 0 else "-" for name in names]
