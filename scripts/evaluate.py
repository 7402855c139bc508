"""The twelve COCO numbers, AP of every class and recall of the proposals, for a checkpoint or a file of results."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch

import detector
from detector.cli.ending import run
from detector.config import merge
from detector.data.coco import CocoDataset
from detector.data.dataset import build_dataset, data_settings
from detector.distributed import on_rank0, is_rank0, processes, raise_on_all
from detector.evaluation.coco import evaluate_results, read_json, recall_table, summary_table
from detector.evaluation.run import evaluate, write_proposals
from detector.files import check_new_file, check_own, make_folder, write_text
from detector.inference.predictor import PRECISIONS, Predictor
from detector.inference.tta import Augmented


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage="%(prog)s CKPT [--split val] [--output DIR] [--tta] [--device D] [--precision P] [--trust] [key=value ...]\n"
        "       %(prog)s CKPT --proposals FILE [--split val] [--tta] [--device D] [--precision P] [--trust] [key=value ...]\n"
        "       %(prog)s --detections FILE --annotations FILE [--output DIR]",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", nargs="?", type=Path, help="the checkpoint to evaluate")
    add("overrides", metavar="key=value", nargs="*", help="changes to the checkpoint's configuration")
    add("--split", default="val", help="the part of the data to evaluate on (default: val)")
    add("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    add("--precision", choices=sorted(PRECISIONS), default="float32", help="of the network (default: float32)")
    add("--tta", action="store_true", help="look at each image at the scales of data.tta, also mirrored, and merge")
    add(
        "--proposals",
        metavar="FILE",
        type=Path,
        help="write the first stage's boxes of every image there, nothing else",
    )
    add("--trust", action="store_true", help="allow the checkpoint to name code of your own")
    add("--detections", metavar="FILE", type=Path, help="score this file of COCO results; needs --annotations")
    add("--annotations", metavar="FILE", type=Path, help="the COCO annotations to score --detections on")
    add("--output", metavar="DIR", type=Path, help="where to write (default: the folder of the checkpoint)")
    args = parser.parse_intermixed_args(argv)
    if (args.detections is None) != (args.annotations is None):
        parser.error("--detections and --annotations go together")
    if (args.checkpoint is None) == (args.detections is None):
        parser.error("give either a checkpoint, or --detections and --annotations")
    if args.proposals and (args.detections or args.output):
        parser.error("--proposals FILE goes with a checkpoint and without --output: FILE is all that is written")
    return args


def score_file(args: argparse.Namespace) -> None:
    """--detections FILE --annotations FILE: no model, no images, no work for several processes."""
    metrics = evaluate_results(args.annotations, read_json(args.detections))
    if args.output:
        check_own(args.output, "metrics.json")
        write_text(make_folder(args.output) / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    print(summary_table(metrics))


def open_checkpoint(args: argparse.Namespace) -> tuple[Predictor, CocoDataset, int]:
    """CKPT and --split: the detector, all images of the split, and how many processes load them."""
    how = {"overrides": args.overrides, "device": args.device, "precision": args.precision}
    predictor = detector.load(args.checkpoint, args.trust, kind=Augmented if args.tta else Predictor, **how)
    config = merge(predictor.config, {"data": {"keep_empty": True}}) if "data" in predictor.config else predictor.config
    dataset = build_dataset(config, args.split, class_names=predictor.class_names, trust=args.trust)
    if is_rank0():
        print(f"{args.split}: {dataset.report}", file=sys.stderr)
    return predictor, dataset, data_settings(config["data"], trust=args.trust).workers


def score_checkpoint(args: argparse.Namespace) -> None:
    """CKPT: the detector over the images of a split."""
    predictor, dataset, workers = open_checkpoint(args)
    folder = on_rank0(lambda: make_folder(args.output or args.checkpoint.parent))
    on_rank0(lambda: check_own(folder, "metrics.json", "detections.json"))
    metrics, results = evaluate(predictor, dataset, workers=workers)
    if is_rank0():
        report(predictor, folder, metrics, results)


def report(predictor: Predictor, folder: Path, metrics: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """The files and the tables."""
    try:
        write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        if not predictor.is_rpn_alone:  # whose boxes have no category
            write_text(folder / "detections.json", json.dumps(results) + "\n")
    finally:  # a full disk does not lose the numbers of a long run
        if predictor.is_rpn_alone:
            print("an RPN alone: all classes are one, the AP is that of its best proposals\n")
        print(summary_table(metrics))


def write_file_of_proposals(args: argparse.Namespace) -> None:
    """CKPT --proposals FILE: what the first stage finds in the images of a split, for a detector without an RPN."""
    on_rank0(lambda: check_new_file(args.proposals))
    predictor, dataset, workers = open_checkpoint(args)
    on_rank0(lambda: make_folder(args.proposals.parent, "name another file"))
    recall = write_proposals(predictor, dataset, args.proposals, workers=workers)
    if is_rank0():
        print(f"{args.proposals}: proposals for {len(dataset)} images\n\n{recall_table(recall)}")


def evaluate_as_asked(args: argparse.Namespace) -> None:
    """One of the three uses."""
    if args.detections:
        on_rank0(lambda: score_file(args))
    elif args.proposals:
        write_file_of_proposals(args)
    else:
        score_checkpoint(args)


def main(argv: list[str] | None = None) -> int:
    with processes(torch.device("cpu")):  # what travels are results
        with redirect_stderr(sys.stderr if is_rank0() else StringIO()):
            args = parse(argv)
        return run(lambda: raise_on_all(lambda: evaluate_as_asked(args)))


if __name__ == "__main__":
    sys.exit(main())
