"""Detect objects in pictures: python scripts/infer.py runs/demo/best.pth photos/ 'more/**/*.jpg' --output found"""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import torch

import detector
from detector.cli.ending import run
from detector.distributed import on_rank0, is_rank0, processes, raise_on_all
from detector.errors import DataError
from detector.files import check_folder, make_folder
from detector.inference.folder import find_images, infer_images
from detector.inference.predictor import PRECISIONS, Predictor
from detector.inference.tta import Augmented


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write pictures with boxes, and detections.json in COCO results form.")
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", type=Path, help="the checkpoint of a detector")
    add("paths", metavar="PATH", nargs="+", help="an image, a folder with all below it, or a quoted pattern")
    add("--output", metavar="DIR", type=Path, required=True, help="pictures keep their places and names in here")
    add("--score", type=float, default=0.5, help="the least score of a box, 0..1 (default: 0.5)")
    add("--batch", metavar="N", type=int, default=4, help="images at once (default: 4)")
    add("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    add("--precision", choices=sorted(PRECISIONS), default="float32", help="of the network (default: float32)")
    add("--tta", action="store_true", help="look at each image at the scales of data.tta, also mirrored, and merge")
    add("--trust", action="store_true", help="allow the checkpoint to name code of your own")
    args = parser.parse_args(argv)
    if not 0 <= args.score <= 1:
        parser.error(f"--score must lie in 0..1, not {args.score}")
    if args.batch < 1:
        parser.error(f"--batch must be at least 1, not {args.batch}")
    return args


def infer(args: argparse.Namespace) -> None:
    jobs = on_rank0(lambda: find_images(args.paths, args.output))  # a wrong path is known before anything heavy
    on_rank0(lambda: check_folder(args.output))
    kind = Augmented if args.tta else Predictor
    predictor = detector.load(args.checkpoint, args.trust, device=args.device, precision=args.precision, kind=kind)
    predictor.check_pictures()
    folder = on_rank0(lambda: make_folder(args.output))
    results, failed = infer_images(predictor, jobs, folder, score=args.score, batch_size=args.batch)
    if is_rank0():
        print(f"{folder}: {len(jobs) - len(failed)} pictures; {len(results)} boxes in detections.json")
    if failed:
        raise DataError(f"{len(failed)} of {len(jobs)} images could not be read, see above")


def main(argv: list[str] | None = None) -> int:
    with processes(torch.device("cpu")):  # what travels are results
        with redirect_stderr(sys.stderr if is_rank0() else StringIO()):
            args = parse(argv)
        return run(lambda: raise_on_all(lambda: infer(args)))


if __name__ == "__main__":
    sys.exit(main())
