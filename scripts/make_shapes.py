"""Draw a small detection set in COCO form: python scripts/make_shapes.py [--preset context] data/shapes"""

from __future__ import annotations

import argparse
import sys

from detector.cli.ending import run
from detector.data.synthetic.drawn_set import PRESETS, draw_set


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw shapes of all scales on textured grounds, the same everywhere.")
    add = parser.add_argument
    add("folder", metavar="DIR", help="new or empty, for annotations/{train,val}.json and images/{train,val}/")
    add("--preset", choices=PRESETS, default="plain", help="context: discs whose class is what surrounds them")
    add("--train", metavar="N", type=int, help=f"training images (default: {in_words('train')})")
    add("--val", metavar="N", type=int, help=f"validation images (default: {in_words('val')})")
    add("--size", metavar=("W", "H"), type=int, nargs=2, default=(192, 160), help="in pixels (default: 192 160)")
    add("--seed", type=int, default=0, help="another seed draws another set (default: 0)")
    return parser.parse_args(argv)


def in_words(split: str) -> str:
    """How many images of a split the presets have."""
    return ", ".join(f"{drawing.COUNTS[split]} in {name}" for name, drawing in PRESETS.items())


def draw(args: argparse.Namespace) -> None:
    given = {"train": args.train, "val": args.val}
    counts = PRESETS[args.preset].COUNTS | {split: count for split, count in given.items() if count is not None}
    print(draw_set(args.folder, **counts, size=tuple(args.size), seed=args.seed, preset=args.preset))


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    return run(lambda: draw(args))


if __name__ == "__main__":
    sys.exit(main())
