"""`detector convert-annotations voc DIR --output FILE.json`, or `yolo DIR --output FILE.json`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from detector.cli.arguments import CommandParser
from detector.cli.ending import ending
from detector.data.convert.voc import DIFFICULT, convert_voc
from detector.data.convert.writer import document_summary
from detector.data.convert.yolo import convert_yolo
from detector.data.image import MAX_PIXELS
from detector.files import check_new_file, make_folder, write_text


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments of one of the two formats."""
    parser = CommandParser("convert-annotations")
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT", help="voc or yolo")
    voc = formats.add_parser("voc", help="a folder with Annotations/*.xml and JPEGImages/")
    yolo = formats.add_parser("yolo", help="a folder with images/, labels/ and data.yaml")
    for each, names in ((voc, "sorted by default"), (yolo, "those of data.yaml or classes.txt by default")):
        add = each.add_argument
        add("folder", metavar="DIR", type=Path, help="it is only read")
        add("--output", metavar="FILE", type=Path, required=True, help="the COCO file to write; never one that exists")
        add("--split", metavar="NAME", help="these images alone, for instance train (default: all)")
        add("--classes", metavar="NAME", nargs="+", help=f"the names of the classes in order ({names})")
        add("--max-pixels", metavar="N", type=int, default=MAX_PIXELS, help="refuse larger images")
    voc.add_argument("--zero-based", action="store_true", help="the first pixel is 0, as labelImg writes (default: 1)")
    voc.add_argument("--difficult", choices=list(DIFFICULT), default="crowd", help="how they are kept (default: crowd)")
    return parser.parse_args(argv)


def convert_folder(args: argparse.Namespace) -> dict[str, Any]:
    """The COCO document."""
    common = {"split": args.split, "classes": args.classes, "max_pixels": args.max_pixels}
    if args.format == "yolo":
        return convert_yolo(args.folder, **common)
    return convert_voc(args.folder, zero_based=args.zero_based, difficult=args.difficult, **common)


def main(argv: list[str] | None = None) -> int:
    """Convert, write and report; the exit status."""
    args = parse(argv)
    with ending(args) as end:
        check_new_file(args.output)
        document = convert_folder(args)
        make_folder(args.output.parent, "name another file")
        write_text(args.output, json.dumps(document) + "\n")
        print("\n".join(document_summary(document)))
        print(f"{args.output}: read it with data.root={args.folder}, images: . and this file as annotations")
    return end.status
