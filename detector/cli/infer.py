"""`detector infer CKPT PATH ... --output DIR [--score 0.5] [--uncertain N] [--to TOOL] [key=value ...]`."""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import detector
from detector.cli.arguments import RUNNABLE_HELP, CommandParser, add_network_options
from detector.cli.ending import ending
from detector.cli.tiling import add_tile_options, chosen_tiles
from detector.distributed import is_rank0, on_rank0, processes, raise_on_all
from detector.errors import DataError
from detector.files import check_folder, check_own, make_folder, write_text
from detector.inference.folder import Job, find_images, infer_images
from detector.inference.in_tiles import untiled_note
from detector.inference.pre_annotations import FILES, write_pre_annotations
from detector.inference.predictor import Predictor
from detector.inference.tta import TTAPredictor
from detector.inference.uncertainty import UncertaintyRanking
from detector.interop.fetch import checkpoint_file


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = CommandParser("infer")
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", type=Path, help=RUNNABLE_HELP)
    add(
        "paths",
        metavar="PATH",
        nargs="+",
        help="an image, a folder with all below it, or a quoted pattern; also key=value",
    )
    add("--output", metavar="DIR", type=Path, required=True, help="pictures keep their relative paths in here")
    add(
        "--annotations", metavar="FILE", type=Path, help="a COCO file of these images, whose image ids the results take"
    )
    add("--score", type=float, default=0.5, help="the least score of a box, 0..1 (default: 0.5)")
    add("--batch", metavar="N", type=int, default=4, help="images, or tiles of an image, at once (default: 4)")
    add_tile_options(parser)
    add("--uncertain", metavar="N", type=int, help="also rank the images: the N most worth labelling, in uncertain.csv")
    add("--to", choices=list(FILES), help="also write the boxes as a first draft for people who label")
    add_network_options(parser)
    args = parser.parse_intermixed_args(argv)
    args.tiles = chosen_tiles(parser, args)
    is_override = re.compile(r"(model|data)\.[\w.]+=").match
    args.overrides = [path for path in args.paths if is_override(path)]
    args.paths = [path for path in args.paths if not is_override(path)]
    if not args.paths:
        parser.error("name an image, a folder or a pattern")
    if not 0 <= args.score <= 1:
        parser.error(f"--score must lie in 0..1, not {args.score}")
    if args.batch < 1:
        parser.error(f"--batch must be at least 1, not {args.batch}")
    if args.uncertain is not None and args.uncertain < 1:
        parser.error(f"--uncertain must be at least 1, not {args.uncertain}")
    return args


def infer(args: argparse.Namespace) -> None:
    """Paths are checked before the checkpoint is read. Raises DataError, at the end, for unreadable images."""
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # data.max_pixels decides
    jobs = on_rank0(find_images, args.paths, args.output, args.annotations)
    extra = [*(["uncertain.csv"] if args.uncertain else []), *FILES.get(args.to, ())]
    on_rank0(check_own, args.output, *extra)
    on_rank0(check_folder, args.output)
    checkpoint = on_rank0(checkpoint_file, args.checkpoint)
    kind = TTAPredictor if args.tta else Predictor
    predictor = detector.load(
        checkpoint, args.trust, overrides=args.overrides, device=args.device, precision=args.precision, kind=kind
    )
    predictor.check_pictures()
    if is_rank0() and not args.tiles and (note := untiled_note(predictor.config)):
        print(note, file=sys.stderr)
    folder = on_rank0(make_folder, args.output)
    ranking = UncertaintyRanking(args.uncertain) if args.uncertain else None
    options = {"score": args.score, "batch_size": args.batch, "tiles": args.tiles, "ranking": ranking}
    results, failed = infer_images(predictor, jobs, folder, **options)
    if is_rank0():
        how = f"; {args.tiles}" if args.tiles else ""
        print(f"{folder}: {len(jobs) - len(failed)} pictures; {len(results)} objects in detections.json{how}")
        read = [job for job in jobs if job not in failed]
        for line in _write_extras(args, folder, read, results, predictor, ranking):
            print(line)
    if failed:
        raise DataError(f"{len(failed)} of {len(jobs)} images could not be read, see above")


def _write_extras(
    args: argparse.Namespace, folder: Path, jobs: list[Job], results: list[dict[str, Any]], predictor: Predictor,
    ranking: UncertaintyRanking | None,
) -> list[str]:  # fmt: skip
    """Write what is asked for beside pictures and results; lines about it."""
    lines = []
    if ranking is not None:
        write_text(folder / "uncertain.csv", ranking.table())
        lines += [f"{folder / 'uncertain.csv'}: the most uncertain of {len(jobs)} images", *ranking.lines()]
    if args.to is not None:
        lines += write_pre_annotations(args.to, folder, jobs, results, predictor, args.checkpoint.name)
    return lines


def main(argv: list[str] | None = None) -> int:
    """Detect objects in images; the exit status."""
    args = parse(argv)
    # results travel between processes, on the CPU
    with ending(args) as end, processes(torch.device("cpu")):
        raise_on_all(infer, args)
    return end.status
