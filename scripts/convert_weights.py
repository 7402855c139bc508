"""Take another framework's weights in (--from NAME), or give ours to it (--to NAME)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detector.cli.ending import run
from detector.interop.convert import export_weights, import_weights
from detector.interop.recognise import FRAMEWORKS

CLASS_CHOICES = {"coco80": "model.num_classes=80"}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage="%(prog)s SRC --from NAME [--config CONFIG] --output CKPT [--classes coco80] [key=value ...]\n"
        "       %(prog)s CKPT --to NAME --output FILE",
    )
    names = ", ".join(FRAMEWORKS)
    add = parser.add_argument
    add("source", metavar="SRC", type=Path, help="a .pth, .pkl or .safetensors file; with --to a checkpoint of ours")
    add("overrides", metavar="key=value", nargs="*", help="changes to the configuration")
    add("--from", dest="origin", choices=["auto", *FRAMEWORKS], metavar="NAME", help=f"whose it is: auto, {names}")
    add("--to", dest="target", choices=list(FRAMEWORKS), metavar="NAME", help=f"whose form FILE is to have: {names}")
    add("--config", metavar="CONFIG", help="the same model here (default: auto, the file of configs/compat/ that fits)")
    add("--output", metavar="CKPT", type=Path, required=True, help="the file to write; never one that exists")
    add("--classes", choices=list(CLASS_CHOICES), help="coco80: keep COCO's 80 real categories of torchvision's 90")
    args = parser.parse_intermixed_args(argv)
    if (args.origin is None) == (args.target is None):
        parser.error("give either --from, or --to")
    if args.target and (args.config or args.classes or args.overrides):
        parser.error("--to takes neither --config nor --classes nor key=value: a checkpoint describes itself")
    return args


def convert(args: argparse.Namespace) -> list[str]:
    if args.target:
        return export_weights(args.source, args.target, args.output)
    overrides = [*args.overrides, *([CLASS_CHOICES[args.classes]] if args.classes else [])]
    config = "auto" if args.config in (None, "auto") else Path(args.config)
    return import_weights(args.source, args.origin, args.output, config, overrides)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    return run(lambda: print("\n".join(convert(args))))


if __name__ == "__main__":
    sys.exit(main())
