"""Rows of a record: which ones an index or a class means, and all of them as text, HTML, pandas, supervision."""

from __future__ import annotations

import difflib
import html
import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor

Classes = str | int | Iterable[str | int]  # names or labels
SHOWN = 8  # rows of a table for people
SINGULAR = {"scores": "score", "labels": "label"}


def row_index(rows: Any, number: int) -> slice | Tensor:
    """An index of `number` rows that selects from a tensor: torch has no negative step, and drops an axis for a number."""
    if isinstance(rows, slice) and (rows.step is None or rows.step > 0):
        return rows
    if isinstance(rows, Tensor) and rows.ndim:
        return rows
    if isinstance(rows, slice):
        return torch.tensor(range(number)[rows], dtype=torch.int64)
    if isinstance(rows, bool) or rows is None:
        raise TypeError(f"rows are a number, a slice, a mask or indices, not {rows}")
    if isinstance(rows, SupportsIndex) and not getattr(rows, "ndim", 0):
        if not -number <= operator.index(rows) < number:
            raise IndexError(f"there is no row {operator.index(rows)}: the record has {number}")
        return torch.tensor([operator.index(rows)])
    return torch.as_tensor(np.ascontiguousarray(rows)) if len(rows) else torch.zeros(0, dtype=torch.int64)


def labels_of(classes: Classes, class_names: Sequence[str] | None) -> list[int]:
    """The labels of classes that are given by name or by label. Raises ValueError for one that there is not."""
    labels: list[int] = []
    for wanted in [classes] if isinstance(classes, str | int | np.integer) else classes:
        if class_names is None and isinstance(wanted, str):
            raise ValueError(f"classes: no names to look up {wanted!r} in: call the predictor, not the model")
        found = [label for label, name in enumerate(class_names or ()) if wanted in (label, name)]
        if class_names is not None and not found:
            raise ValueError(f"classes: there is no class {wanted!r}; {_known(wanted, class_names)}")
        labels += found or [int(wanted)]
    return labels


def _known(wanted: str | int, class_names: Sequence[str]) -> str:
    if not isinstance(wanted, str):
        return f"labels are 0 to {len(class_names) - 1}"
    return f"nearest: {', '.join(difflib.get_close_matches(wanted, class_names, n=1, cutoff=0.0))}"


@dataclass(frozen=True)
class Table:
    """A headline, the first rows as cells of text, and how many rows there are besides."""

    headline: str
    header: Sequence[str]
    cells: Sequence[Sequence[str]]
    more: int

    @classmethod
    def of(cls, kind: str, rows: Mapping[str, Tensor], classes: Sequence[str], parts: Sequence[str]) -> Table:
        """The table of fields (n, ...) and a class for each row. Added fields of a number per row are columns, too.

        `parts` are named in the headline: what else the record holds.
        """
        counts = Counter(classes).most_common()
        listed = ", ".join(f"{count} {name}" for name, count in counts[:SHOWN])
        more = f" and {len(counts) - SHOWN} more classes" if len(counts) > SHOWN else ""
        added = {
            name: value[:SHOWN] for name, value in rows.items() if name not in ("boxes", *SINGULAR) and value.ndim == 1
        }
        first = zip(rows["scores"][:SHOWN].tolist(), classes, rows["boxes"][:SHOWN].tolist())
        cells = [
            [f"{score:.3f}", name, *(f"{v:.1f}" for v in box), *(f"{value[i].item():.6g}" for value in added.values())]
            for i, (score, name, box) in enumerate(first)
        ]
        headline = f"{kind}: {len(classes)}" + (f" ({listed}{more})" if counts else "")
        headline += f", with {' and '.join(parts)}" if parts else ""
        return cls(headline, ["score", "class", "x1", "y1", "x2", "y2", *added], cells, max(len(classes) - SHOWN, 0))

    def text(self) -> str:
        """As aligned lines."""
        rows = [self.header, *self.cells] if self.cells else []
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = [
            "  ".join(
                cell.ljust(width) if i == 1 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
            )
            for row in rows
        ]
        return "\n".join([self.headline, *(f"  {line}" for line in lines), *self._rest()])

    def html(self) -> str:
        """As an HTML table."""
        rows = [_html_row("th", self.header), *(_html_row("td", row) for row in self.cells)] if self.cells else []
        table = f"<table>{''.join(rows)}</table>" if rows else ""
        return f"<div>{html.escape(self.headline)}{table}{html.escape(''.join(self._rest()))}</div>"

    def _rest(self) -> list[str]:
        return [f"  ... {self.more} more"] if self.more else []


def _html_row(tag: str, row: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in row)}</tr>"


def data_frame(rows: Mapping[str, Tensor], names: Sequence[str] | None, shapes: Mapping[str, list[Any]]) -> Any:
    """A pandas.DataFrame of fields (n, ...) on the CPU: x1, y1, x2, y2, score, label, name, then added fields and `shapes`."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError(f"a table needs pandas: pip install pandas ({error})") from error
    columns: dict[str, Any] = dict(zip(("x1", "y1", "x2", "y2"), rows["boxes"].numpy().T))
    columns |= {singular: rows[name].numpy() for name, singular in SINGULAR.items()}
    columns |= {} if names is None else {"name": pandas.Series(names, dtype=object)}
    added = {name: value for name, value in rows.items() if name not in ("boxes", *SINGULAR)}
    columns |= {n: v.numpy() if v.ndim == 1 else v.tolist() for n, v in added.items()}
    return pandas.DataFrame(columns | {n: pandas.Series(v, dtype=object) for n, v in shapes.items()})


def supervision_detections(rows: Mapping[str, Tensor], names: Sequence[str] | None, masks: Tensor | None) -> Any:
    """A supervision.Detections of fields (n, ...) on the CPU; names are its `class_name`, added fields its `data`."""
    try:
        import supervision
    except ImportError as error:
        raise ImportError(f"supervision.Detections needs supervision: pip install supervision ({error})") from error
    data = {name: value.numpy() for name, value in rows.items() if name not in ("boxes", *SINGULAR)}
    data |= {} if names is None else {"class_name": np.array(names, dtype=str)}
    boxes, scores, labels = (rows[name].numpy() for name in ("boxes", "scores", "labels"))
    mask = None if masks is None else masks.numpy()
    return supervision.Detections(xyxy=boxes, mask=mask, confidence=scores, class_id=labels, data=data)
