"""`detector config FILE [key=value ...]`, or `detector config --keys [PATH]`."""

from __future__ import annotations

import argparse

from detector.cli.arguments import CONFIG_HELP, OVERRIDES_HELP, CommandParser
from detector.cli.ending import ending
from detector.cli.printing import print_report
from detector.config.describe import EffectiveConfig, keys_to_text
from detector.config.keys import key_table, keys_below, keys_to_markdown

USAGE = """detector config CONFIG [--keys PATH] [key=value ...]
       detector config --keys [PATH]
       detector config --markdown"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments of one of the three uses."""
    parser = CommandParser("config", usage=USAGE)
    add = parser.add_argument
    add("config", metavar="CONFIG", nargs="?", help=CONFIG_HELP)
    add("overrides", metavar="key=value", nargs="*", help=OVERRIDES_HELP)
    add(
        "--keys", metavar="PATH", nargs="?", const="", help="explain the keys at and below PATH, for instance model.rpn"
    )
    add("--markdown", action="store_true", help="print docs/keys.md")
    args = parser.parse_intermixed_args(argv)
    if args.config is None and args.keys is None and not args.markdown:
        parser.error("give a configuration, --keys, or --markdown")
    return args


def requested_text(args: argparse.Namespace) -> str:
    """The text that was asked for."""
    if args.markdown:
        return keys_to_markdown(key_table()).rstrip("\n")
    if args.config is None:
        return keys_to_text(keys_below(key_table(), args.keys))
    effective = EffectiveConfig(args.config, args.overrides)
    if args.keys is None:
        return effective.to_text(effective.sections)
    return keys_to_text(keys_below(effective.sections, args.keys), effective.settings)


def main(argv: list[str] | None = None) -> int:
    """Print a configuration or the meaning of keys; the exit status."""
    args = parse(argv)
    with ending(args) as end:
        print_report(requested_text(args))
    return end.status
