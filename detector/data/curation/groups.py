"""Groups of images that stay together: by a key of their entries, by a part of their names, or by pairs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from detector.errors import DataError

Link = tuple[int, int]  # two images, by their rows, that stay together


def links_by_key(entries: Sequence[dict[str, Any]], key: str, path: Path) -> list[Link]:
    """Link the image entries with the same value of `key`. Raises DataError for entries without one."""
    lacking = [entry for entry in entries if entry.get(key) is None]
    if lacking:
        raise DataError(
            f"{path}: images, id {lacking[0]['id']}: `{key}` is missing{_more(lacking)}; give every image entry the key, a value "
            f"of its own for an image that belongs to no group, or group by another key"
        )
    return _links(json.dumps(entry[key], sort_keys=True) for entry in entries)


def links_by_name(names: Sequence[str], pattern: str, path: Path) -> list[Link]:
    """Link the file names in which the regular expression finds the same: its groups, or all of it without any.

    Raises DataError for an invalid expression, and for names in which it finds nothing.
    """
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise DataError(f"--group-name {pattern!r}: not a regular expression ({error}); correct it") from error
    found = [search(name) for name in names]
    lacking = [name for name, match in zip(names, found) if match is None]
    if lacking:
        raise DataError(
            f"{path}: the file name {lacking[0]!r} does not match --group-name {pattern!r}{_more(lacking)}; "
            f"write an expression that finds the group in every name"
        )
    return _links(repr(match.groups() or match[0]) for match in found if match is not None)


def _more(lacking: Sequence[object]) -> str:
    return f" ({len(lacking) - 1} more like it)" if len(lacking) > 1 else ""


def _links(values: Iterable[str]) -> list[Link]:
    """A link from each row to the first one with the same value."""
    first: dict[str, int] = {}
    return [(first.setdefault(value, row), row) for row, value in enumerate(values)]


def joined_groups(count: int, links: Iterable[Link]) -> list[list[int]]:
    """The rows 0..count-1 in groups: rows that are linked, directly or through others, are in one."""
    parent = list(range(count))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]  # halves the path, so that the next search is short
            row = parent[row]
        return row

    for a, b in links:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for row in range(count):
        groups.setdefault(root(row), []).append(row)
    return list(groups.values())
