"""Reading of COCO files: fast without segmentations, or whole."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detector.errors import DataError

# A list of numbers after this key. Inside a JSON string a quote has a backslash, so strings never match.
OUTLINE = re.compile(rb'"segmentation"\s*:\s*\[[\[\]\s0-9.,eE+-]*\]')


def read_document(path: Path, collect: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """A JSON file without its outlines, which take most of a COCO file, or with each object given to `collect` at once.

    What `collect` returns stands for the object. Raises DataError if the file cannot be read.
    """
    return _read(path, _without_outlines if collect is None else lambda content: _parsed(content, collect))


def read_whole_document(path: Path) -> Any:
    """A JSON file with everything in it. Raises DataError as `read_document` does."""
    return _read(path, _parsed)


def _read(path: Path, parse: Callable[..., Any]) -> Any:
    try:
        if path.exists() and not path.is_file():  # reading a pipe could block
            raise DataError(f"{path}: is not a file; correct the path of the annotations")
        return parse(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot read the annotations ({error.strerror}); correct the path") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file ({error}); export the annotations again") from error


def _without_outlines(content: bytes) -> Any:
    try:
        return _parsed(OUTLINE.sub(b'"segmentation": 0', content), _without_outline)
    except ValueError:
        return _parsed(content, _without_outline)  # its error states the position in the unchanged file


def _parsed(content: bytes, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Parse without garbage collection, which finds no cycles among the new objects and takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        return json.loads(content.decode("utf-8-sig"), object_hook=object_hook)
    finally:
        if enabled:
            gc.enable()


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    """Drop a segmentation in another form at once, which limits the memory."""
    entry.pop("segmentation", None)
    return entry
