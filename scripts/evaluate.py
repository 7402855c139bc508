"""The twelve COCO numbers, AP of every class and recall of the proposals, for a checkpoint or a file of results."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import detector
from detector.build import build_dataset, data_settings
from detector.errors import DetectorError
from detector.evaluation.coco import evaluate_results, read_json, summary_table
from detector.evaluation.run import evaluate, make_folder, write_text
from detector.inference.predictor import PRECISIONS


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage="%(prog)s CKPT [--split val] [--output DIR] [--device D] [--precision P] [--trust] [key=value ...]\n"
        "       %(prog)s --detections FILE --annotations FILE [--output DIR]",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", nargs="?", type=Path, help="the checkpoint to evaluate")
    add("overrides", metavar="key=value", nargs="*", help="changes to the checkpoint's configuration")
    add("--split", default="val", help="the part of the data to evaluate on (default: val)")
    add("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    add("--precision", choices=sorted(PRECISIONS), default="float32", help="of the network (default: float32)")
    add("--trust", action="store_true", help="allow the checkpoint to name code of your own")
    add("--detections", metavar="FILE", type=Path, help="score this file of COCO results; needs --annotations")
    add("--annotations", metavar="FILE", type=Path, help="the COCO annotations to score --detections on")
    add("--output", metavar="DIR", type=Path, help="where to write (default: the folder of the checkpoint)")
    args = parser.parse_intermixed_args(argv)
    if (args.detections is None) != (args.annotations is None):
        parser.error("--detections and --annotations go together")
    if (args.checkpoint is None) == (args.detections is None):
        parser.error("give either a checkpoint, or --detections and --annotations")
    return args


def score_file(args: argparse.Namespace) -> None:
    """--detections FILE --annotations FILE: no model, no images."""
    metrics = evaluate_results(args.annotations, read_json(args.detections))
    if args.output:
        write_text(make_folder(args.output) / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    print(summary_table(metrics))


def score_checkpoint(args: argparse.Namespace) -> None:
    """CKPT: the detector over the images of a split."""
    how = {"overrides": args.overrides, "device": args.device, "precision": args.precision}
    predictor = detector.load(args.checkpoint, args.trust, **how)
    dataset = build_dataset(predictor.config, args.split, class_names=predictor.class_names, trust=args.trust)
    print(f"{args.split}: {dataset.report}", file=sys.stderr)
    folder = make_folder(args.output or args.checkpoint.parent)
    workers = data_settings(predictor.config["data"], trust=args.trust).workers
    metrics, results = evaluate(predictor, dataset, workers=workers)
    try:
        write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        write_text(folder / "detections.json", json.dumps(results) + "\n")
    finally:  # a full disk does not lose the numbers of a long run
        print(summary_table(metrics))


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    score = score_file if args.detections else score_checkpoint
    try:
        score(args)
    except DetectorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
