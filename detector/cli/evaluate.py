"""`detector evaluate CKPT [--split val] [--output DIR] [--tta] [key=value ...]`, and two other uses."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import torch

import detector
from detector import workflows
from detector.cli.arguments import RUNNABLE_HELP, CommandParser, add_network_options
from detector.cli.ending import ending
from detector.cli.tiling import add_tile_options, chosen_tiles
from detector.config.config import parse_config
from detector.distributed import is_rank0, on_rank0, processes, raise_on_all
from detector.evaluation.coco import evaluate_results
from detector.evaluation.results import read_json
from detector.evaluation.run import write_proposals
from detector.evaluation.tables import recall_table, summary_table
from detector.files import check_new_file, check_own, make_folder, write_text
from detector.inference.predictor import Predictor
from detector.inference.tta import TTAPredictor
from detector.interop.fetch import checkpoint_file, is_published

NETWORK_USAGE = "[--split val] [--tta] [--device D] [--precision P] [--trust] [key=value ...]"
USAGE = f"""detector evaluate CKPT [--output DIR] [--tiles SIZE [--overlap SHARE] [--no-whole]] {NETWORK_USAGE}
       detector evaluate CKPT --proposals FILE {NETWORK_USAGE}
       detector evaluate --detections FILE --annotations FILE [--output DIR] [evaluate.KEY=value ...]"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments of one of the three uses."""
    parser = CommandParser("evaluate", usage=USAGE)
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", nargs="?", type=Path, help=RUNNABLE_HELP)
    add("overrides", metavar="key=value", nargs="*", help="changes to the checkpoint's configuration")
    add("--split", default="val", help="the part of the data to evaluate on (default: val)")
    add(
        "--proposals",
        metavar="FILE",
        type=Path,
        help="write the first stage's boxes of every image there, nothing else",
    )
    add("--detections", metavar="FILE", type=Path, help="score this file of COCO results; needs --annotations")
    add("--annotations", metavar="FILE", type=Path, help="the COCO annotations to score --detections on")
    add("--output", metavar="DIR", type=Path, help="where to write (default: the folder of the checkpoint)")
    add_tile_options(parser)
    add_network_options(parser)
    args = parser.parse_intermixed_args(argv)
    args.tiles = chosen_tiles(parser, args)
    if args.detections and args.checkpoint and "=" in args.checkpoint.name:  # there is no checkpoint
        args.overrides, args.checkpoint = [str(args.checkpoint), *args.overrides], None
    if args.detections and not all(change.startswith("evaluate.") for change in args.overrides):
        parser.error("--detections takes only keys of the section evaluate: there is no model and no data section")
    if (args.detections is None) != (args.annotations is None):
        parser.error("--detections and --annotations go together")
    if (args.checkpoint is None) == (args.detections is None):
        parser.error("give either a checkpoint, or --detections and --annotations")
    if args.proposals and (args.detections or args.output):
        parser.error("--proposals FILE goes with a checkpoint and without --output: FILE is all that is written")
    if args.tiles and (args.proposals or args.detections):
        parser.error("--tiles goes with a checkpoint that is scored: a file of proposals is that of whole images")
    if args.checkpoint and is_published(args.checkpoint) and not (args.output or args.proposals):
        parser.error("a published detector has no folder of its own: say by --output where to write")
    return args


def score_file(args: argparse.Namespace) -> None:
    """--detections FILE --annotations FILE: no model, no images, no work for several processes."""
    scoring = parse_config({}, args.overrides, trust=False).evaluate
    results = read_json(args.detections)
    workflows.say_limits(args.annotations, None, scoring)
    metrics = evaluate_results(args.annotations, results, scoring=scoring, say_missing=True)
    if args.output:
        check_own(args.output, "metrics.json")
        write_text(make_folder(args.output) / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    print(summary_table(metrics))


def open_checkpoint(args: argparse.Namespace) -> Predictor:
    """CKPT as the options say."""
    options = {"overrides": args.overrides, "device": args.device, "precision": args.precision}
    kind = TTAPredictor if args.tta else Predictor
    predictor = detector.load(on_rank0(checkpoint_file, args.checkpoint), args.trust, kind=kind, **options)
    return predictor.tiled(args.tiles) if args.tiles else predictor


def score_checkpoint(args: argparse.Namespace) -> None:
    """CKPT: the detector over the images of a split."""
    predictor = open_checkpoint(args)
    workflows.score(
        predictor, *workflows.open_split(predictor, args.split), args.output or args.checkpoint.parent, print
    )


def write_proposal_file(args: argparse.Namespace) -> None:
    """CKPT --proposals FILE: the first stage's boxes in the images of a split, for a detector without an RPN."""
    on_rank0(check_new_file, args.proposals)
    predictor = open_checkpoint(args)
    dataset, workers = workflows.open_split(predictor, args.split)
    on_rank0(make_folder, args.proposals.parent, "name another file")
    recall = write_proposals(predictor, dataset, args.proposals, workers=workers)
    if is_rank0():
        print(f"{args.proposals}: proposals for {len(dataset)} images\n\n{recall_table(recall)}")


def main(argv: list[str] | None = None) -> int:
    """One of the three uses; the exit status."""
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # results travel between processes, on the CPU
    with ending(args) as end, processes(torch.device("cpu")):
        if args.detections:
            on_rank0(score_file, args)
        else:
            raise_on_all(write_proposal_file if args.proposals else score_checkpoint, args)
    return end.status
