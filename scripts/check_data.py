"""The health of a data set: what is wrong with its files, boxes and classes, and whether the anchors fit its objects."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from detector.cli.ending import run
from detector.config import apply_overrides
from detector.dataset_check.check import check_data
from detector.dataset_check.files import check_own_json, check_own_picture
from detector.dataset_check.picture import png
from detector.dataset_check.report import plain, text
from detector.errors import ConfigError
from detector.files import make_folder, write_bytes, write_text
from detector.modeling.build import check_config, in_file, load_config
from detector.modeling.parts import DEFAULT_TYPES


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="exit status: 0 healthy, 1 errors in the data, 2 no check"
    )
    add = parser.add_argument
    add("data", metavar="CONFIG-or-JSON", type=Path, help="a configuration, or a COCO annotation file (*.json) alone")
    add("overrides", metavar="key=value", nargs="*", help="changes to the configuration, or to the default one")
    add("--images", metavar="DIR", type=Path, help="with an annotation file: its image folder")
    add("--no-images", action="store_true", help="look for the image files, but do not open them")
    add("--json", metavar="FILE", type=Path, help="write the result there too")
    add("--picture", metavar="FILE", type=Path, help="draw classes, box sizes and shapes there, a PNG")
    args = parser.parse_intermixed_args(argv)
    args.alone = args.data.suffix.lower() == ".json"
    if args.images and not args.alone:
        parser.error("--images goes with an annotation file; a configuration names its own folders")
    if args.json and args.picture and os.path.realpath(args.json) == os.path.realpath(args.picture):
        parser.error("--json and --picture name the same file")
    return args


def configuration(args: argparse.Namespace) -> dict[str, Any]:
    """That of CONFIG, or for a JSON alone the default detector with it for data."""
    if not args.alone:
        config = load_config(args.data, args.overrides)
        if "data" not in config:
            raise ConfigError(f"{args.data}: has no `data` section, so there is nothing to check")
        return config
    split = {"images": str(args.images or "."), "annotations": str(args.data)}
    config = apply_overrides({"data": {"root": ".", "train": split, "val": split}}, args.overrides, DEFAULT_TYPES)
    with in_file(args.data):
        check_config(config)
    return config


def check(args: argparse.Namespace) -> int:
    if args.json:
        check_own_json(args.json)
    if args.picture:
        check_own_picture(args.picture)
    look = not args.alone or args.images is not None
    alone = args.data.stem if args.alone else None
    health = check_data(configuration(args), args.data, alone=alone, look=look, read=not args.no_images)
    try:
        if args.json:
            make_folder(args.json.parent, "name another file")
            write_text(args.json, json.dumps(plain(health), indent=2) + "\n")
        if args.picture:
            make_folder(args.picture.parent, "name another file")
            write_bytes(args.picture, png(health))
    finally:  # a full disk does not lose the result of a long check
        show(text(health))
    return 1 if health.findings.count("error") else 0


def show(report: str) -> None:
    """Print what may hold letters that this terminal has not, for a reader who may leave early (`| head`)."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(report.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would complain on leaving


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    return run(lambda: check(args))


if __name__ == "__main__":
    sys.exit(main())
