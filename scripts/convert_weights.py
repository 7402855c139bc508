"""Take another framework's weights in (--from NAME --config CONFIG), or give ours back to it (--to NAME)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import detector
from detector.errors import DetectorError
from detector.interop.convert import export_torchvision, import_torchvision

CLASS_CHOICES = {"coco80": "model.num_classes=80"}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage="%(prog)s SRC --from torchvision --config CONFIG --output CKPT [--classes coco80] [key=value ...]\n"
        "       %(prog)s CKPT --to torchvision --output FILE",
    )
    add = parser.add_argument
    add("source", metavar="SRC", type=Path, help="a state dict of torchvision's, or with --to a checkpoint of ours")
    add("overrides", metavar="key=value", nargs="*", help="changes to the configuration")
    add("--from", dest="origin", choices=["torchvision"], help="whose weights SRC holds")
    add("--to", dest="target", choices=["torchvision"], help="whose form FILE is to have")
    add("--config", metavar="CONFIG", type=Path, help="the same model here, for instance from configs/compat/")
    add("--output", metavar="CKPT", type=Path, required=True, help="the file to write; never one that exists")
    add("--classes", choices=list(CLASS_CHOICES), help="coco80: keep COCO's 80 real categories of the 90 columns")
    args = parser.parse_intermixed_args(argv)
    if (args.origin is None) == (args.target is None):
        parser.error("give either --from and --config, or --to")
    if args.origin and not args.config:
        parser.error("--from needs --config, the configuration of the same model")
    if args.target and (args.config or args.classes or args.overrides):
        parser.error("--to takes neither --config nor --classes nor key=value: a checkpoint describes itself")
    return args


def convert(args: argparse.Namespace) -> str:
    if args.target:
        return export_torchvision(args.source, args.output)
    classes = [CLASS_CHOICES[args.classes]] if args.classes else []
    return import_torchvision(args.source, detector.load_config(args.config, args.overrides + classes), args.output)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        print(convert(args))
    except DetectorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
