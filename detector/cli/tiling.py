"""The options of commands that look at images in tiles."""

from __future__ import annotations

import argparse

from detector.cli.arguments import CommandParser
from detector.data.tiles import Tiles


def add_tile_options(parser: CommandParser) -> None:
    """Add --tiles and what belongs to it."""
    add = parser.add_argument
    add(
        "--tiles",
        metavar="SIZE",
        type=_size,
        help="find small objects in large images: look at tiles of so many pixels, 640 or, height first, 480x640",
    )
    add("--overlap", metavar="SHARE", type=float, help="of a tile's side that the next tile shares (default: 0.2)")
    add("--no-whole", action="store_true", help="look at the tiles alone, not at the whole image as well")


def chosen_tiles(parser: CommandParser, args: argparse.Namespace) -> Tiles | None:
    """The tiles of a command line; None without --tiles. Ends the program for options that make none."""
    given = {} if args.overlap is None else {"overlap": args.overlap}
    if args.tiles is None:
        if given or args.no_whole:
            parser.error("--overlap and --no-whole go with --tiles SIZE")
        return None
    try:
        return Tiles(args.tiles, whole=not args.no_whole, **given)
    except ValueError as error:
        parser.error(f"--tiles: {error}")


def _size(text: str) -> int | tuple[int, int]:
    """640, or 480x640: height and width."""
    h, x, w = text.partition("x")
    try:
        return (int(h), int(w)) if x else int(h)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected whole pixels, 640 or 480x640 (height first), not {text!r:.80}"
        ) from None
