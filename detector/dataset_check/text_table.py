"""Tables as aligned text."""

from __future__ import annotations

from collections.abc import Sequence

from detector.dataset_check.findings import printable

WIDEST = 40  # characters of a name in a table


def text_table(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Rows as lines; each column as wide as its widest entry, to the (l)eft or (r)ight."""
    short = [
        [_cut(printable(cell)) if i < len(align) - 1 else printable(cell) for i, cell in enumerate(row)] for row in rows
    ]
    widths = [max(len(row[i]) for row in short) for i in range(len(align))]
    cells = ([c.rjust(w) if a == "r" else c.ljust(w) for c, w, a in zip(row, widths, align)] for row in short)
    return ["  ".join(row).rstrip() for row in cells]


def _cut(cell: str) -> str:
    return cell if len(cell) <= WIDEST else cell[: WIDEST - 3] + "..."
