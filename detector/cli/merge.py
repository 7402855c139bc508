"""`detector merge JSON [JSON ...] --output FILE.json [--rename old=new ...] [--drop NAME ...]`."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detector.cli.arguments import CommandParser
from detector.cli.ending import ending
from detector.cli.printing import print_report
from detector.data.curation.merge import merge_files
from detector.data.curation.whole_file import document_text, read_whole_file
from detector.dataset_check.text_table import text_table
from detector.errors import DataError
from detector.files import check_new_file, make_folder, write_text

EPILOG = "With one JSON its classes are renamed, joined or dropped. Classes of several files are joined by name."


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; `rename` is a dictionary."""
    parser = CommandParser("merge", epilog=EPILOG)
    add = parser.add_argument
    add("annotations", metavar="JSON", type=Path, nargs="+", help="COCO files; they are only read")
    add("--output", metavar="FILE", type=Path, required=True, help="the COCO file to write; never one that exists")
    add("--images", metavar="DIR", type=Path, nargs="+", help="the image folder of each JSON, in their order; file names "
        "become relative to the folder that holds them all (default: all have the same folder)")  # fmt: skip
    add(
        "--rename",
        metavar="old=new",
        nargs="+",
        default=[],
        help="classes that get another name; equal names are joined",
    )
    add("--drop", metavar="NAME", nargs="+", default=[], help="classes that are left out; their images stay")
    add("--join-images", action="store_true", help="an image in two files becomes one, with the annotations of both")
    args = parser.parse_args(argv)
    if args.images and len(args.images) != len(args.annotations):
        parser.error(f"--images: {len(args.images)} folders for {len(args.annotations)} files; name one for each file")
    pairs = [text.partition("=") for text in args.rename]
    if not all(old and new for old, _, new in pairs) or len({old for old, _, _ in pairs}) < len(pairs):
        parser.error("--rename: expected old=new, each old name once")
    args.rename = {old: new for old, _, new in pairs}
    return args


def common_folder(folders: Sequence[Path]) -> tuple[Path, list[str]]:
    """The folder that holds all of these, and their paths relative to it. Raises DataError for a missing folder."""
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such image folder; correct the path")
    try:  # behind symbolic links, because an image has to be inside the common folder
        root = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    except ValueError as error:
        raise DataError(f"{', '.join(map(str, folders))}: no folder holds them all; move them to one disk") from error
    below = [folder.resolve().relative_to(root).as_posix() for folder in folders]
    return root, ["" if path == "." else path for path in below]


def counts_table(documents: dict[str, dict[str, Any]]) -> list[str]:
    """A row for images, annotations and each class; a column for each document."""
    columns = {title: _counts(document) for title, document in documents.items()}
    rows = [["", *columns]]
    for what in dict.fromkeys(what for counts in columns.values() for what in counts):
        rows.append([what, *(str(counts[what]) if what in counts else "-" for counts in columns.values())])
    return text_table(rows, "l" + "r" * len(columns))


def _counts(document: dict[str, Any]) -> dict[str, int]:
    crowds = sum(bool(entry.get("iscrowd", 0)) for entry in document["annotations"])
    counts = {"images": len(document["images"]), "annotations": len(document["annotations"]), "of them crowd": crowds}
    of_id = Counter(entry["category_id"] for entry in document["annotations"])
    return counts | {entry["name"]: of_id[entry["id"]] for entry in document["categories"]}


def main(argv: list[str] | None = None) -> int:
    """Merge, write and report; the exit status."""
    args = parse(argv)
    with ending(args) as end:
        check_new_file(args.output)
        root, folders = common_folder(args.images) if args.images else (None, [""] * len(args.annotations))
        files = [read_whole_file(path) for path in args.annotations]
        document, notes = merge_files(files, folders, rename=args.rename, drop=args.drop, join_images=args.join_images)
        make_folder(args.output.parent, "name another file")
        write_text(args.output, document_text(document))
        numbered = {f"file {number}": whole.document for number, whole in enumerate(files, start=1)}
        names = [f"{title}: {path}" for title, path in zip(numbered, args.annotations)]
        print_report("\n".join([*names, *counts_table(numbered | {"merged": document}), *notes.lines()]))
        print_report(f"{args.output}: its images are relative to {root or 'the same folder as before'}")
    return end.status
