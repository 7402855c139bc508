"""`detector export CKPT --to onnx --check IMAGES --output FILE [--size H W] [--batch N] [--split val]`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from detector import workflows
from detector.cli.arguments import CHECKPOINT_HELP, CommandParser
from detector.cli.ending import ending
from detector.evaluation.run import evaluate_predictor
from detector.export.agreement import TOLERANCES
from detector.export.engines import TARGETS
from detector.export.run import export
from detector.inference.predictor import Predictor


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = CommandParser("export")
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", type=Path, help=CHECKPOINT_HELP)
    add("overrides", metavar="key=value", nargs="*", help="changes to the checkpoint's configuration")
    add("--to", choices=TARGETS, required=True, help="pt2: torch.export; aoti: native code by PyTorch's compiler")
    add("--output", metavar="FILE", type=Path, required=True, help="new; report.json is written beside it")
    add(
        "--check", metavar="PATH", nargs="+", required=True,
        help="images, folders or quoted patterns in which the file must find what the checkpoint finds",
    )  # fmt: skip
    add(
        "--size", metavar=("H", "W"), type=int, nargs=2,
        help="pixels of the graph; images are resized to fit (default: the size of most images of --check)",
    )  # fmt: skip
    add(
        "--dynamic",
        action="store_true",
        help="for images of all sizes that the checkpoint's resizing gives, instead of one",
    )
    add("--batch", metavar="N", type=int, default=1, help="images at once (default: 1)")
    add(
        "--precision", choices=TOLERANCES, default="float32",
        help="float16: weights of half the size, computed in float32 (onnx, openvino); int8: openvino alone (default: float32)",
    )  # fmt: skip
    add("--calibrate", metavar="PATH", nargs="+", help="images for int8 (default: the checkpoint's training images)")
    add("--split", metavar="NAME", help="also compare the AP of both, of boxes, on this part of the data, such as val")
    add("--trust", action="store_true", help="import the custom code that the checkpoint refers to")
    args = parser.parse_intermixed_args(argv)
    if args.batch < 1 or (args.size and min(args.size) < 1):
        parser.error("--batch and --size must be at least 1")
    if args.dynamic and (args.size or args.precision == "int8"):
        parser.error("--dynamic takes all sizes: leave out --size, and --precision int8, which is calibrated for one")
    if args.calibrate and args.precision != "int8":
        parser.error("--calibrate is for --precision int8")
    return args


def main(argv: list[str] | None = None) -> int:
    """Write and check a file; the exit status, 1 if it finds something else."""
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with ending(args) as end:
        report = export(
            args.checkpoint, args.to, args.output, args.check, size=args.size, dynamic=args.dynamic, batch=args.batch,
            precision=args.precision, calibrate=args.calibrate or (), overrides=args.overrides, trust=args.trust,
            scorer=partial(scorer_of, args.split) if args.split else None,
        )  # fmt: skip
        if "ap" in report:
            both = report["ap"]
            print(f"AP of the boxes on {args.split}: checkpoint {both['checkpoint']:.4f}, export {both['export']:.4f}")
        end.status = int(not report["ok"])
    return end.status


def scorer_of(split: str, predictor: Predictor) -> Callable[[Predictor], float]:
    """The function that gives COCO's AP of the boxes on a split of the detector's data."""
    dataset, workers = workflows.open_split(predictor, split)

    def score(other: Predictor) -> float:
        metrics, _ = evaluate_predictor(other, dataset, workers=workers)
        return float(metrics["bbox"]["AP"])

    return score
