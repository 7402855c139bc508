"""The report as one HTML file that needs nothing else: no script, no font, no address outside of it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path

from detector.insight.svg import escaped

MARK = "<!doctype html><!-- detector report -->"  # the first words of the file; they identify one of an earlier run
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = Path(__file__).with_name("report.css")
# the colours of the curves of a chart, which the legend and bars share
SERIES = "".join(
    f".s{k} {{ stroke: var(--c{k}); }} .k{k} {{ background: var(--c{k}); }} .f{k}, .b{k} {{ fill: var(--c{k}); }}"
    for k in range(8)
)


def page(title: str, body: str) -> str:
    """The whole file; `title` is plain text, `body` HTML."""
    return (
        f'{MARK}\n<html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE.read_text()}{SERIES}</style></head>'
        f"<body>{body}</body></html>\n"
    )


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    """A table that scrolls where the screen is narrow; a cell is HTML, perhaps with its own <td ...> or <th ...>."""
    top = "".join(cell if cell.startswith("<t") else f"<th>{cell}</th>" for cell in head)
    lines = "".join(
        f"<tr>{''.join(cell if cell.startswith('<t') else f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows
    )
    body = f"<thead><tr>{top}</tr></thead>" if head else ""
    return f'<div class=scroll><table class="{kind}">{body}<tbody>{lines}</tbody></table></div>'


def prose(text: str, tag: str = "td") -> str:
    """A cell of plain text to read."""
    return f"<{tag} class=text>{escaped(text)}</{tag}>"


def bar(share: float) -> str:
    """A cell with a bar of 0..1 of its width."""
    return f'<td class=bars><div class=bar style="width:{100 * min(max(share, 0), 1):.1f}%"></div></td>'


def image(jpeg: bytes, text: str) -> str:
    """A JPEG picture in the page."""
    return f'<img alt="{escaped(text)}" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'


def points(value: float, digits: int = 1) -> str:
    """A fraction as points of a hundred; a dash for NaN and COCO's -1."""
    return f"{100 * value:.{digits}f}" if value >= 0 else "-"


def signed(value: float) -> str:
    """A difference of fractions in points of a hundred; a dash for NaN."""
    return f"{100 * value:+.1f}" if value == value else "-"
