"""`detector browse RUN [RUN] [--port N] [--device D] [--trust] [key=value ...]`."""

from __future__ import annotations

import argparse
import sys

from detector.browse.gallery import Gallery
from detector.browse.judged import Judged
from detector.browse.server import BrowseServer
from detector.cli.arguments import OVERRIDES_HELP, CommandParser, runs_and_changes
from detector.cli.ending import ending
from detector.cli.printing import print_report
from detector.insight.collect import check_run, trace_run

USAGE = "detector browse RUN [RUN] [--port N] [--device D] [--trust] [key=value ...]"
PORT = 8900


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; folders of runs and changes are told apart by the `=`."""
    parser = CommandParser("browse", usage=USAGE)
    add = parser.add_argument
    add(
        "given",
        metavar="RUN or key=value",
        nargs="+",
        help=f"the folder of a training, or two to compare; {OVERRIDES_HELP}",
    )
    add("--port", metavar="N", type=int, default=PORT, help=f"of 127.0.0.1; 0 takes a free one (default: {PORT})")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    add("--trust", action="store_true", help="import the custom code that the checkpoints refer to")
    args = parser.parse_intermixed_args(argv)
    args.runs, args.overrides = runs_and_changes(parser, args.given)
    if len(args.runs) > 2:
        parser.error("a page shows one run or two")
    if not 0 <= args.port <= 65535:
        parser.error(f"--port must lie in 0..65535, not {args.port}")
    return args


def gallery_of(args: argparse.Namespace) -> Gallery:
    """Val with what the runs find in it."""
    names = [run.resolve().name for run in args.runs]
    runs, datasets = [], []
    for folder, name in zip(args.runs, names):
        traced = trace_run(folder, overrides=args.overrides, trust=args.trust, device=args.device)
        assert traced.scored is not None  # one process
        runs.append(Judged(str(folder) if names.count(name) > 1 else name, traced.scored, traced.losses))
        datasets.append(traced.dataset)
    return Gallery(datasets[0], runs)


def serve(args: argparse.Namespace) -> None:
    """Detect, then answer until a signal ends the command."""
    for run in args.runs:
        check_run(run)
    with BrowseServer(args.port) as server:  # first: the detection takes long
        server.gallery = gallery_of(args)
        names = " and ".join(run.name for run in server.gallery.runs)
        print_report(f"{server.url}  {names}, {len(server.gallery)} images; Ctrl-C ends it")
        sys.stdout.flush()
        server.serve_forever()


def main(argv: list[str] | None = None) -> int:
    """Show runs in a browser until a signal comes; the exit status."""
    args = parse(argv)
    with ending(args) as end:
        serve(args)
    return end.status
