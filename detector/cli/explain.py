"""`detector explain CKPT IMAGE [--detection N | --box X1 Y1 X2 Y2] --output DIR [--class NAME] [--score 0.5] [key=value ...]`."""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from pathlib import Path

from PIL import Image

from detector.cli.arguments import CHECKPOINT_HELP, OVERRIDES_HELP, CommandParser, output_folder
from detector.cli.ending import ending
from detector.errors import CheckpointError, ConfigError
from detector.export.engines import BY_SUFFIX
from detector.files import check_folder, check_own, make_folder, write_bytes, write_text
from detector.inference.in_tiles import untiled_note
from detector.inference.predictor import load_predictor
from detector.insight.explain import explain
from detector.insight.explain_facts import Asked
from detector.insight.explain_picture import explanation_png

FILES = ("explanation.json", "explanation.txt", "explanation.png")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = CommandParser("explain")
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", type=Path, help=CHECKPOINT_HELP)
    add("image", metavar="IMAGE", help="an image file or URL")
    add(
        "overrides",
        metavar="key=value",
        nargs="*",
        help=OVERRIDES_HELP.replace("train.epochs=3", "data.resize.short=800"),
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--detection", metavar="N", type=int, help="explain one detection: its number, 0 for the best")
    which.add_argument(
        "--box", metavar=("X1", "Y1", "X2", "Y2"), nargs=4, type=float,
        help="explain an object here, in pixels of the original image: where it is lost, or how it is found",
    )  # fmt: skip
    add("--class", metavar="NAME", dest="name", help="what the object in --box is (default: what is likeliest there)")
    add("--score", type=float, default=0.5, help="the least score that counts as found, 0..1 (default: 0.5)")
    add("--output", metavar="DIR", type=output_folder, required=True, help=f"takes {', '.join(FILES)}")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    add("--trust", action="store_true", help="import the custom code that the checkpoint refers to")
    args = parser.parse_intermixed_args(argv)
    if wrong := [change for change in args.overrides if "=" not in change]:
        parser.error(f"{wrong[0]}: explain takes one image; changes are key=value")
    if not 0 <= args.score <= 1:
        parser.error(f"--score must lie in 0..1, not {args.score}")
    if args.name is not None and args.box is None:
        parser.error("--class says what the object in --box is: give --box, too")
    if args.box is not None and not all(map(math.isfinite, args.box)):
        parser.error("--box takes four finite numbers")
    return args


def write_explanation(args: argparse.Namespace) -> None:
    """Explain, print the paragraph and write the files; paths are checked before the checkpoint is read."""
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # data.max_pixels decides
    if args.checkpoint.suffix in BY_SUFFIX:
        raise CheckpointError(
            f"{args.checkpoint}: an exported file, of which the steps between image and detections cannot be seen; give the "
            "checkpoint (.pth) that it was exported from"
        )
    if any(not change.startswith(("model.", "data.")) for change in args.overrides):
        raise ConfigError("explain takes changes of `model` and `data` alone")
    check_folder(args.output)
    check_own(args.output, *FILES)
    predictor = load_predictor(args.checkpoint, args.trust, overrides=args.overrides, device=args.device)
    predictor.check_pictures()
    if note := untiled_note(predictor.config, "give a tile that is cut out of the image to see what is found there"):
        print(note, file=sys.stderr)
    about = "detection" if args.detection is not None else "image" if args.box is None else "object"
    asked = Asked(about, None if args.box is None else tuple(args.box), args.name, args.detection, args.score)
    name = args.image.rpartition("/")[2]
    made, exhibits = explain(
        predictor, predictor.read(args.image), asked, name=name, checkpoint=args.checkpoint.as_posix()
    )
    folder = make_folder(args.output)
    write_text(folder / FILES[0], made.text())  # first: it marks the others as the program's own
    write_text(folder / FILES[1], made.words + "\n")
    write_bytes(folder / FILES[2], explanation_png(made, exhibits))
    print(made.words)
    print(f"{folder}: {', '.join(FILES)}")


def main(argv: list[str] | None = None) -> int:
    """Explain what is detected in an image, or is not; the exit status."""
    args = parse(argv)
    with ending(args) as end:
        write_explanation(args)
    return end.status
