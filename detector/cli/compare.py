"""`detector compare CONFIG [CONFIG ...] --output DIR [--seeds K ...] [key=value ...]`.

Stopped, it continues with the missing runs when it is called again. A run that fails is named and does not stop the others.
"""

from __future__ import annotations

import argparse
import io
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from detector.chart import ChartPoint, draw_chart
from detector.cli.arguments import CommandParser
from detector.cli.ending import ending
from detector.comparison.execution import carry_out_all, tabulate
from detector.comparison.runs import check_systems, plan
from detector.comparison.table import SystemRow, to_csv, to_markdown
from detector.files import make_folder, write_bytes, write_text

USAGE = "detector compare CONFIG [CONFIG ...] --output DIR [--seeds K ...] [--trust] [key=value ...]"
OUTPUT_HELP = "for table.md, table.csv, ap_latency.png and <name>_seed<k>/"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments, told apart: argparse takes everything that follows --seeds."""
    parser = CommandParser("compare", usage=USAGE)
    add = parser.add_argument
    add("given", nargs="*", metavar="CONFIG or key=value", help="YAML files, and changes to all of them")
    add("--seeds", nargs="+", default=["0"], metavar="K", help="train each configuration once with each (default: 0)")
    add("--output", type=Path, required=True, metavar="DIR", help=OUTPUT_HELP)
    add("--trust", action="store_true", help="import the custom code that the configurations refer to")
    args = parser.parse_intermixed_args(argv)
    seeds = [text for text in args.seeds if re.fullmatch(r"-?\d+", text)]
    given = args.given + [text for text in args.seeds if text not in seeds]
    if not seeds:
        parser.error(f"--seeds: {args.seeds[0]} is no whole number")
    args.seeds = [int(text) for text in seeds]
    args.configs = [Path(text) for text in given if "=" not in text]
    args.overrides = [text for text in given if "=" in text]
    return args


def compare(args: argparse.Namespace) -> int:
    """Train, evaluate, tabulate; 1 where a run failed. A full disk does not lose the printed table."""
    runs = plan(args.configs, args.seeds, args.overrides, args.output)
    sizes = check_systems(runs[: len(args.configs)])
    make_folder(args.output)
    finished = carry_out_all(runs, args.overrides, trust=args.trust)
    if finished:
        rows = tabulate(finished, sizes, trust=args.trust)
        print(f"\n{to_markdown(rows)}")
        write_tables(rows, args.output)
        print(f"written into {args.output}")
    done = [one.run.folder for one in finished]
    failed = [f"{run.name} seed {run.seed}" for run in runs if run.folder not in done]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def write_tables(rows: Sequence[SystemRow], folder: Path) -> None:
    """table.csv, table.md and, where a system has an AP, ap_latency.png; an earlier picture of other numbers goes."""
    write_text(folder / "table.csv", to_csv(rows))
    write_text(folder / "table.md", to_markdown(rows))
    found = [(row.name, row.numbers["ms"].mean, row.numbers["AP"]) for row in rows]
    points = [ChartPoint(name, ms, 100 * ap.mean, 100 * ap.spread) for name, ms, ap in found if not math.isnan(ap.mean)]
    if points:
        picture = io.BytesIO()
        draw_chart(points, "ms per image", "AP").save(picture, "PNG")
        write_bytes(folder / "ap_latency.png", picture.getvalue())
    else:
        (folder / "ap_latency.png").unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    """Compare configurations; the exit status."""
    args = parse(argv)
    with ending(args, advice="the same command continues") as end:
        end.status = compare(args)
    return end.status
