"""Metrics as aligned text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def summary_table(metrics: dict[str, dict[str, Any]]) -> str:
    """The metrics of `evaluate_results`, and those of proposals if there are any, as aligned text."""
    tables = []
    for title, section in (("bbox", "bbox"), ("configured", "configured")):
        names = list(metrics.get(section, {}))
        tables += [[["", *part], [title, *_row(metrics[section], part)]] for part in (names[:6], names[6:]) if part]
    classes = [[name, *_row(scores, ["AP", "AP50"])] for name, scores in metrics["per_class"].items()]
    tables.append([["class", "AP", "AP50"], *classes])
    texts = [_lined_up(rows) for rows in tables]
    return "\n\n".join(texts + ([recall_table(metrics["proposals"])] if "proposals" in metrics else []))


def recall_table(recall: dict[str, float]) -> str:
    """AR of proposals as aligned text."""
    rows = [[name, *_row(recall, [name + size for size in ("", *"sml")])] for name in ("AR100", "AR1000")]
    return _lined_up([["recall of proposals", "all", "small", "medium", "large"], *rows])


def _lined_up(rows: list[list[str]]) -> str:
    width = max(len(row[0]) for row in rows)
    return "\n".join(row[0].ljust(width) + "".join(cell.rjust(10) for cell in row[1:]) for row in rows)


def _row(values: dict[str, float], names: Iterable[str]) -> list[str]:
    """Cells with six decimals; a dash where there are no objects."""
    return [f"{values[name]:.6f}" if values[name] >= 0 else "-" for name in names]
