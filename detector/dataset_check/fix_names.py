"""A copy of a COCO file whose file names are those on disk."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path, PurePosixPath

from detector.coco_format import stays_inside
from detector.data.coco_json import read_whole_document
from detector.data.near_names import names_below
from detector.errors import DataError
from detector.files import check_new_file, write_text

SHOWN = 5  # names without a file that are listed


def fix_names(annotations: Path, folder: Path, output: Path) -> list[str]:
    """Write a copy of a COCO file in which each name without a file becomes that of its twin; returns what was changed.

    A name of which no file, or more than one, is the twin stays as it is, and so does one whose twin another entry has.
    Raises DataError for a file that cannot be read, that has no list `images`, or where something exists at `output`.
    """
    check_new_file(output)
    names_below.cache_clear()
    document, files = read_whole_document(annotations), names_below(folder)
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list):
        raise DataError(f"{annotations}: `images` is missing or is not a list; nothing to correct")
    names = [
        image["file_name"] for image in images if isinstance(image, dict) and isinstance(image.get("file_name"), str)
    ]
    twins = {name: files.twin(name) for name in names if not (stays_inside(name) and (folder / name).is_file())}
    claims = Counter(str(PurePosixPath(name)) for name in names if name not in twins)
    claims.update(twin.name for twin in twins.values() if twin)
    changes: Counter[str] = Counter()
    corrected, lost = 0, []
    for image in images:
        name = image.get("file_name") if isinstance(image, dict) else None
        if name not in names or name not in twins:
            continue
        twin = twins[name]
        if twin is None or claims[twin.name] > 1:  # two entries would share a file
            lost.append(name)
            continue
        image["file_name"] = twin.name
        corrected += 1
        changes.update(twin.differences)
    write_text(output, json.dumps(document) + "\n")
    what = ", ".join(f"{difference}: {count}" for difference, count in changes.most_common())
    lines = [f"{output}: {corrected} of {len(images)} file names corrected" + (f" ({what})" if what else "")]
    if lost:
        listed = ", ".join(map(repr, lost[:SHOWN]))
        lines.append(
            f"{output}: {len(lost)} file names have no file, several alike, or one that another entry has: {listed}"
        )
    return lines
