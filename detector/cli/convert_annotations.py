"""`detector convert-annotations voc DIR --output FILE.json`, `yolo` or `labelme`; `label-studio EXPORT --images DIR
--output FILE` or `cvat`; `to-voc JSON ... --output DIR` or `to-yolo`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detector.cli.arguments import CommandParser
from detector.cli.ending import ending
from detector.cli.printing import print_report
from detector.data.convert.cvat import convert_cvat
from detector.data.convert.label_studio import convert_label_studio
from detector.data.convert.labelme import convert_labelme
from detector.data.convert.to_voc import write_voc
from detector.data.convert.to_yolo import write_yolo
from detector.data.convert.voc import DIFFICULT, convert_voc
from detector.data.convert.writer import document_summary
from detector.data.convert.yolo import convert_yolo
from detector.data.image import MAX_PIXELS
from detector.files import check_new_file, make_folder, new_folder, write_text

EXPORTS: dict[str, Callable[..., list[str]]] = {"to-voc": write_voc, "to-yolo": write_yolo}
TOOLS: dict[str, Callable[..., dict[str, Any]]] = {"label-studio": convert_label_studio, "cvat": convert_cvat}
IMAGE_PLACES = {
    "to-voc": "the images belong into JPEGImages",
    "to-yolo": "the images of each split belong into images/SPLIT, where YOLO tools find labels/SPLIT beside them",
}
EPILOGS = {
    "to-voc": "Classes and boxes are kept. Outlines and other keys are counted and left out.",
    "to-yolo": "Classes are kept, and boxes or with --outlines outlines. Other keys and crowd regions are counted and left out.",
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments of one of the formats."""
    parser = CommandParser("convert-annotations")
    formats = parser.add_subparsers(
        dest="format", required=True, metavar="FORMAT", help="voc, yolo, labelme, label-studio, cvat, to-voc or to-yolo"
    )
    voc = formats.add_parser("voc", help="a folder with Annotations/*.xml, JPEGImages/ and perhaps SegmentationObject/")
    yolo = formats.add_parser("yolo", help="a folder with images/, labels/ and data.yaml")
    labelme = formats.add_parser("labelme", help="a folder with a JSON file of labelme for every image")
    studio = formats.add_parser("label-studio", help="a project's export as JSON (not JSON-MIN)")
    cvat = formats.add_parser("cvat", help="a task's export as CVAT for images 1.1; one as COCO 1.0 is read as it is")
    sources = (
        (voc, "sorted by default"),
        (yolo, "those of data.yaml or classes.txt by default"),
        (labelme, "sorted by default"),
        (studio, "sorted by default"),
        (cvat, "those of the task by default"),
    )
    for each, names in sources:
        add = each.add_argument
        if each in (studio, cvat):
            add("export", metavar="EXPORT", type=Path, help="it is only read")
            add(
                "--images", dest="folder", metavar="DIR", type=Path, required=True, help="the images that were labelled"
            )
        else:
            add("folder", metavar="DIR", type=Path, help="it is only read")
        add("--output", metavar="FILE", type=Path, required=True, help="the COCO file to write; never one that exists")
        if each in (voc, yolo):
            add("--split", metavar="NAME", help="these images alone, for instance train (default: all)")
        add("--classes", metavar="NAME", nargs="+", help=f"the names of the classes in order ({names})")
        add("--max-pixels", metavar="N", type=int, default=MAX_PIXELS, help="refuse larger images")
    voc.add_argument("--zero-based", action="store_true", help="the first pixel is 0, as labelImg writes (default: 1)")
    voc.add_argument("--difficult", choices=list(DIFFICULT), default="crowd", help="how they are kept (default: crowd)")
    _add_exports(formats)
    args = parser.parse_args(argv)
    if args.format in EXPORTS:
        args.split = args.split or [path.stem for path in args.annotations]
        if len(args.split) != len(args.annotations):
            parser.error(f"--split: {len(args.split)} names for {len(args.annotations)} files; give one for each file")
    return args


def _add_exports(formats: Any) -> None:
    for name in EXPORTS:
        each = formats.add_parser(name, help="from COCO files, one for each split", epilog=EPILOGS[name])
        add = each.add_argument
        add("annotations", metavar="JSON", type=Path, nargs="+", help="COCO files; they are only read")
        add("--output", metavar="DIR", type=Path, required=True, help="the folder to write; never one that exists")
        add(
            "--split",
            metavar="NAME",
            nargs="+",
            help="of the split in each JSON (default: train of train.json and so on)",
        )
        images = each.add_mutually_exclusive_group()
        images.add_argument("--copy-images", metavar="IMAGES", type=Path, help="copy the images from this folder")
        images.add_argument("--link-images", metavar="IMAGES", type=Path, help="hard-link them, which takes no space; "
            "tools that rewrite images in place would change the originals")  # fmt: skip
        if name == "to-voc":
            add("--whole-pixels", action="store_true", help="round corners of boxes (default: as exact as the file)")
        else:
            add(
                "--outlines",
                action="store_true",
                help="write the outlines instead of boxes; every object must have one",
            )


def convert_folder(args: argparse.Namespace) -> dict[str, Any]:
    """The COCO document."""
    if args.format in TOOLS:
        return TOOLS[args.format](args.export, args.folder, classes=args.classes, max_pixels=args.max_pixels)
    if args.format == "labelme":
        return convert_labelme(args.folder, classes=args.classes, max_pixels=args.max_pixels)
    common = {"split": args.split, "classes": args.classes, "max_pixels": args.max_pixels}
    if args.format == "yolo":
        return convert_yolo(args.folder, **common)
    return convert_voc(args.folder, zero_based=args.zero_based, difficult=args.difficult, **common)


def export_folder(args: argparse.Namespace) -> list[str]:
    """Write the folder of another format; lines about it."""
    images, placement = args.copy_images or args.link_images, "copy" if args.copy_images else "link"
    key = "whole_pixels" if args.format == "to-voc" else "outlines"
    options = {key: getattr(args, key)}
    with new_folder(args.output) as folder:
        lines = EXPORTS[args.format](
            folder, args.annotations, args.split, images=images, placement=placement, **options
        )
    if images is not None:
        return [*lines, f"{args.output}: written with its images"]
    place = IMAGE_PLACES[args.format]
    return [*lines, f"{args.output}: labels alone; {place}; --copy-images or --link-images puts them there"]


def section(folder: Path, annotations: Path) -> str:
    """The lines of a configuration that read the file."""
    return f"data:\n  root: {folder.resolve()}\n  train: {{images: ., annotations: {annotations.resolve()}}}"


def main(argv: list[str] | None = None) -> int:
    """Convert, write and report; the exit status."""
    args = parse(argv)
    with ending(args) as end:
        if args.format in EXPORTS:
            print_report("\n".join(export_folder(args)))
            return end.status
        check_new_file(args.output)
        document = convert_folder(args)
        make_folder(args.output.parent, "name another file")
        write_text(args.output, json.dumps(document) + "\n")
        print("\n".join(document_summary(document)))
        print(
            f"{args.output}: written. In a configuration (`detector split` divides it):\n{section(args.folder, args.output)}"
        )
    return end.status
