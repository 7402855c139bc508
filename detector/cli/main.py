"""The command `detector NAME ...`; the module of a command is imported when it is called."""

from __future__ import annotations

import argparse
import importlib
import sys

import detector
from detector.cli.arguments import COMMANDS


def main(argv: list[str] | None = None) -> int:
    """Run one of COMMANDS; its exit status."""
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="detector",
        usage="detector COMMAND ...",
        description="Two-stage object detectors. `detector COMMAND --help` shows the arguments of a command.",
        epilog="commands:\n" + "\n".join(f"  {name:{width}}  {sentence}" for name, sentence in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"detector {detector.__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=list(COMMANDS), help="one of those below")
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv[:1])
    return importlib.import_module(f"detector.cli.{args.command.replace('-', '_')}").main(argv[1:])
