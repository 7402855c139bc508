"""`detector train CONFIG [--output DIR] [--resume] [--init-from CKPT] [key=value ...]`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from detector.cli.arguments import CHECKPOINT_HELP, CONFIG_HELP, OVERRIDES_HELP, CommandParser, output_folder
from detector.cli.ending import ending


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; short forms of configuration keys have become overrides."""
    parser = CommandParser("train")
    add = parser.add_argument
    add("config", metavar="CONFIG", help=CONFIG_HELP)
    add("overrides", metavar="key=value", nargs="*", help=OVERRIDES_HELP)
    add("--output", type=output_folder, metavar="DIR", help="where to write (default: runs/ and the name of CONFIG)")
    add("--resume", action="store_true", help="continue the training in DIR exactly where it stopped")
    add("--init-from", type=Path, metavar="CKPT", help=f"begin with the weights of another training: {CHECKPOINT_HELP}")
    add("--deterministic", action="store_true", help="the same bits in every run (short for train.deterministic=true)")
    add("--time-limit", type=float, metavar="MINUTES", help="then save and stop (short for train.time_limit=MINUTES)")
    args = parser.parse_intermixed_args(argv)
    args.overrides += ["train.deterministic=true"] * args.deterministic
    args.overrides += [f"train.time_limit={args.time_limit}"] * (args.time_limit is not None)
    args.output = args.output or Path("runs") / Path(args.config).stem
    return args


def leave(number: int, frame: FrameType | None) -> None:
    """Signal handler before the first step: nothing is to be saved, and half-imported modules would raise anything."""
    if os.environ.get("RANK", "0") == "0":
        name = signal.Signals(number).name
        print(f"stopped by {name} before the first step; nothing to save", file=sys.stderr, flush=True)
    os._exit(128 + number)


def main(argv: list[str] | None = None) -> int:
    """Train, evaluate, and keep last.pth and best.pth; the exit status."""
    args = parse(argv)
    handlers = {int(signal.SIGINT): leave, int(signal.SIGTERM): leave}
    advice = f"{args.output / 'last.pth'} is saved, continue with --resume"
    with ending(args, handlers=handlers, advice=advice) as end:
        # these imports take seconds, in which a signal must find its handler
        import logging

        from tqdm.contrib.logging import logging_redirect_tqdm

        from detector import distributed
        from detector.config.config import load_config
        from detector.device import pick_device
        from detector.training.run import run_training

        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        with logging_redirect_tqdm(), distributed.processes(pick_device("auto")):
            config = distributed.raise_on_all(load_config, args.config, args.overrides)
            run_training(config, args.output, resume=args.resume, init_from=args.init_from)
    return end.status
