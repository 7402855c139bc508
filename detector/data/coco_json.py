"""Fast reading of COCO files without segmentations."""

from __future__ import annotations

import gc
import json
import re
from pathlib import Path
from typing import Any

from detector.errors import DataError

# A list of numbers after this key. Inside a JSON string a quote has a backslash, so strings never match.
OUTLINE = re.compile(rb'"segmentation"\s*:\s*\[[\[\]\s0-9.,eE+-]*\]')


def read_document(path: Path) -> Any:
    """A JSON file without its outlines, which take most of a COCO file. Raises DataError if it cannot be read."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe could block
            raise DataError(f"{path}: is not a file; correct the path of the annotations")
        try:
            return _parsed(OUTLINE.sub(b'"segmentation": 0', path.read_bytes()))
        except ValueError:
            return _parsed(path.read_bytes())  # its error states the position in the unchanged file
    except OSError as error:
        raise DataError(f"{path}: cannot read the annotations ({error.strerror}); correct the path") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file ({error}); export the annotations again") from error


def read_whole(path: Path) -> Any:
    """A JSON file with all that it holds. Raises DataError if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot read the annotations ({error.strerror}); correct the path") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file ({error}); export the annotations again") from error


def _parsed(content: bytes) -> Any:
    """Parse without garbage collection, which finds no cycles among the new objects and takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        return json.loads(content.decode("utf-8-sig"), object_hook=_without_outline)
    finally:
        if enabled:
            gc.enable()


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    """Drop a segmentation in another form at once, which limits the memory."""
    entry.pop("segmentation", None)
    return entry
