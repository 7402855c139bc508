"""`detector convert-weights SRC --from NAME --output CKPT`, or `CKPT --to NAME --output FILE`."""

from __future__ import annotations

import argparse
from pathlib import Path

from detector.cli.arguments import CommandParser
from detector.cli.ending import ending
from detector.interop.convert import export_weights, import_weights
from detector.interop.recognise import FRAMEWORKS

CLASS_CHOICES = {"coco80": "model.num_classes=80"}
USAGE = """detector convert-weights SRC --from NAME [--config CONFIG] --output CKPT [--classes coco80] [key=value ...]
       detector convert-weights CKPT --to NAME --output FILE"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments of one of the two directions; `--classes` has become an override."""
    parser = CommandParser("convert-weights", usage=USAGE)
    names = ", ".join(FRAMEWORKS)
    add = parser.add_argument
    add("source", metavar="SRC", type=Path, help="a .pth, .pkl or .safetensors file; with --to, a checkpoint")
    add("overrides", metavar="key=value", nargs="*", help="changes to the configuration")
    add(
        "--from",
        dest="origin",
        choices=["auto", *FRAMEWORKS],
        metavar="NAME",
        help=f"the source's framework: auto, {names}",
    )
    add(
        "--to", dest="target", choices=list(FRAMEWORKS), metavar="NAME", help=f"the framework that FILE is for: {names}"
    )
    add(
        "--config",
        metavar="CONFIG",
        help="the same model here (default: auto, the one in detector://compat/ that fits)",
    )
    add("--output", metavar="CKPT", type=Path, required=True, help="the file to write; never one that exists")
    add("--classes", choices=list(CLASS_CHOICES), help="coco80: keep COCO's 80 real categories of torchvision's 90")
    args = parser.parse_intermixed_args(argv)
    if (args.origin is None) == (args.target is None):
        parser.error("give either --from, or --to")
    if args.target and (args.config or args.classes or args.overrides):
        parser.error("--to takes neither --config nor --classes nor key=value: a checkpoint describes itself")
    args.overrides += [CLASS_CHOICES[args.classes]] if args.classes else []
    args.config = args.config or "auto"
    return args


def main(argv: list[str] | None = None) -> int:
    """Convert, and print what was done; the exit status."""
    args = parse(argv)
    with ending(args) as end:
        if args.target:
            lines = export_weights(args.source, args.target, args.output)
        else:
            lines = import_weights(args.source, args.origin, args.output, args.config, args.overrides)
        print("\n".join(lines))
    return end.status
