"""`detector check-data CONFIG-or-JSON`."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path

from detector.cli.arguments import CommandParser
from detector.cli.ending import ending
from detector.cli.printing import print_report
from detector.config.config import Config, load_config, parse_config
from detector.dataset_check.check import CheckResult, check_data
from detector.dataset_check.fix_names import fix_names
from detector.dataset_check.overwriting import ANCHORS, check_own_anchors, check_own_json, check_own_picture
from detector.dataset_check.picture import picture_png
from detector.dataset_check.report import report_json, report_text
from detector.errors import DataError
from detector.files import make_folder, write_bytes, write_text


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; `alone` says whether an annotation file stands in for a configuration."""
    parser = CommandParser("check-data", epilog="exit status: 0 healthy, 1 errors in the data, 2 no check")
    add = parser.add_argument
    add("data", metavar="CONFIG-or-JSON", help="a configuration, or a COCO annotation file alone")
    add("overrides", metavar="key=value", nargs="*", help="changes to the configuration, or to the default one")
    add("--images", metavar="DIR", type=Path, help="with an annotation file: its image folder")
    add("--no-images", action="store_true", help="look for the image files, but do not open them")
    add("--json", metavar="FILE", type=Path, help="write the result there too")
    add("--fix-names", metavar="OUT.json", type=Path, help="write a copy there whose file names are those in --images")
    add(
        "--anchors",
        metavar="FILE",
        type=Path,
        help="write anchors by k-means there, a configuration that a training takes",
    )
    add(
        "--picture",
        metavar="FILE",
        type=Path,
        help="draw classes, box sizes and shapes, outlines and keypoints there, a PNG",
    )
    args = parser.parse_intermixed_args(argv)
    args.alone = is_annotation_file(args.data)
    if args.images and not args.alone:
        parser.error("--images goes with an annotation file; a configuration names its own folders")
    if args.fix_names and not args.images:
        parser.error("--fix-names goes with an annotation file and --images DIR")
    if args.json and args.picture and os.path.realpath(args.json) == os.path.realpath(args.picture):
        parser.error("--json and --picture name the same file")
    return args


def is_annotation_file(path: str) -> bool:
    """Whether this is an annotation file: its name ends in .json, or its content begins as a JSON list or object does.

    Keys of a YAML section in braces have no quotes.
    """
    if path.lower().endswith(".json"):
        return True
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            return re.match(r'\s*(\[|\{\s*")', file.read(80)) is not None
    except OSError:
        return False


def configuration(args: argparse.Namespace) -> Config:
    """CONFIG, or the default detector with the annotation file as its data."""
    if not args.alone:
        return load_config(args.data, args.overrides)
    split = {"images": str(args.images or "."), "annotations": args.data}
    raw = {"data": {"root": ".", "train": split, "val": split}}
    return parse_config(raw, args.overrides, trust=True, source=args.data)


def check(args: argparse.Namespace) -> int:
    """Check, print and write; 1 where the data have errors. A full disk does not lose the printed result."""
    if args.json:
        check_own_json(args.json)
    if args.picture:
        check_own_picture(args.picture)
    if args.anchors:
        check_own_anchors(args.anchors)
    if args.fix_names:
        print_report("\n".join(fix_names(Path(args.data), args.images, args.fix_names)))
    look = not args.alone or args.images is not None
    alone = Path(args.data).stem if args.alone else None
    result = check_data(
        configuration(args), args.data, alone=alone, look=look, read=not args.no_images, examples=args.picture is not None
    )  # fmt: skip
    try:
        if args.json:
            make_folder(args.json.parent, "name another file")
            write_text(args.json, json.dumps(report_json(result), indent=2) + "\n")
        if args.anchors:
            write_anchors(args, result)
        if args.picture:
            make_folder(args.picture.parent, "name another file")
            write_bytes(args.picture, picture_png(result))
    finally:
        print_report(report_text(result))
    return 1 if result.findings.count("error") else 0


def write_anchors(args: argparse.Namespace, result: CheckResult) -> None:
    """The proposed anchors over the configuration, as a file to train on. Raises DataError where nothing better is proposed."""
    if result.better is None:
        raise DataError(
            f"{args.anchors}: not written: no anchors of as many sizes and ratios fit the objects clearly better"
        )
    base = "" if args.alone else f"_base_: {json.dumps(base_from(args.anchors, args.data))}\n"
    use = (
        f"train on it: detector train {args.anchors}" if base else "give it as one of a configuration's `_base_` files"
    )
    given = f"\n# computed with {' '.join(args.overrides)}: give these to the training, too" if args.overrides else ""
    make_folder(args.anchors.parent, "name another file")
    write_text(args.anchors, f"{ANCHORS} {result.source}; {use}{given}\n{base}{result.better.yaml()}")


def base_from(file: Path, config: str) -> str:
    """The name of a configuration for the `_base_` of `file`."""
    return (
        config
        if config.startswith("detector:")
        else os.path.relpath(os.path.abspath(config), os.path.abspath(file.parent))
    )


def main(argv: list[str] | None = None) -> int:
    """Check a data set; the exit status."""
    args = parse(argv)
    with ending(args) as end:
        end.status = check(args)
    return end.status
