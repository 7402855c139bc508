"""`detector report RUN [RUN ...] [--output FILE] [--device D] [--trust] [key=value ...]`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch

from detector.cli.arguments import OVERRIDES_HELP, CommandParser, runs_and_changes
from detector.cli.ending import ending
from detector.distributed import on_rank0, processes, raise_on_all
from detector.files import make_folder
from detector.insight.collect import check_run
from detector.insight.report import FILE, check_own_report, report_of_run, write_report

USAGE = "detector report RUN [RUN ...] [--output FILE] [--device D] [--trust] [key=value ...]"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; folders of runs and changes are told apart by the `=`."""
    parser = CommandParser("report", usage=USAGE)
    add = parser.add_argument
    add(
        "given",
        metavar="RUN or key=value",
        nargs="+",
        help=f"folders of trainings, the first is compared with; {OVERRIDES_HELP}",
    )
    add("--output", metavar="FILE", type=Path, help=f"the page (default: {FILE} in the folder of the first run)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    add("--trust", action="store_true", help="import the custom code that the checkpoints refer to")
    args = parser.parse_intermixed_args(argv)
    args.runs, args.overrides = runs_and_changes(parser, args.given)
    return args


def write_page(args: argparse.Namespace) -> None:
    """Make the page of all runs; every process takes part."""
    output = args.output or args.runs[0] / FILE
    for run in args.runs:
        check_run(run)
    on_rank0(check_own_report, output)
    on_rank0(make_folder, output.parent, "name another --output")
    made = [
        report_of_run(run, overrides=args.overrides, trust=args.trust, device=args.device, runs=len(args.runs))
        for run in args.runs
    ]
    reports = [report for report in made if report is not None]
    on_rank0(write_report, output, reports)
    if reports:
        print(f"{output}: {output.stat().st_size / 1e6:.2f} MB")


def main(argv: list[str] | None = None) -> int:
    """Write the report of one or several runs; the exit status."""
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with ending(args) as end, processes(torch.device("cpu")):  # results travel between processes, on the CPU
        raise_on_all(write_page, args)
    return end.status
