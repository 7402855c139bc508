"""`detector make-shapes [--preset context] DIR`."""

from __future__ import annotations

import argparse

from detector.cli.arguments import CommandParser
from detector.cli.ending import ending
from detector.data.synthetic.drawn_set import PRESETS, draw_set


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; counts that are not given are the preset's."""
    parser = CommandParser("make-shapes")
    add = parser.add_argument
    add("folder", metavar="DIR", help="new or empty, for annotations/{train,val}.json and images/{train,val}/")
    add("--preset", choices=PRESETS, default="plain", help="context: discs whose class depends on what surrounds them")
    add("--train", metavar="N", type=int, help=f"training images (default: {_default_counts('train')})")
    add("--val", metavar="N", type=int, help=f"validation images (default: {_default_counts('val')})")
    add("--size", metavar=("W", "H"), type=int, nargs=2, default=(192, 160), help="in pixels (default: 192 160)")
    add("--seed", type=int, default=0, help="another seed draws another set (default: 0)")
    args = parser.parse_args(argv)
    counts = PRESETS[args.preset].COUNTS
    args.train = counts["train"] if args.train is None else args.train
    args.val = counts["val"] if args.val is None else args.val
    return args


def _default_counts(split: str) -> str:
    return ", ".join(f"{drawing.COUNTS[split]} in {name}" for name, drawing in PRESETS.items())


def main(argv: list[str] | None = None) -> int:
    """Draw the set, unless the folder holds it already; the exit status."""
    args = parse(argv)
    with ending(args) as end:
        print(
            draw_set(
                args.folder, train=args.train, val=args.val, size=tuple(args.size), seed=args.seed, preset=args.preset
            )
        )
    return end.status
