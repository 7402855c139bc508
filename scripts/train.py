"""Train a detector: CONFIG [--output DIR] [--resume] [--init-from CKPT] [key=value …]; by torchrun on many processes."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

import detector
from detector.errors import DetectorError, Interrupted


def folder(text: str) -> Path:
    """Not the current one, which an unset variable of a shell would name."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; name a folder")
    return Path(text)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("config", type=Path, metavar="CONFIG", help="a YAML file, for instance from configs/")
    add("overrides", metavar="key=value", nargs="*", help="changes to it, for instance train.epochs=3")
    add("--output", type=folder, metavar="DIR", help="where to write (default: runs/ and the name of CONFIG)")
    add("--resume", action="store_true", help="continue the training in DIR exactly where it stopped")
    add("--init-from", type=Path, metavar="CKPT", help="begin with the weights of another training")
    add("--deterministic", action="store_true", help="the same bits in every run (short for train.deterministic=true)")
    add("--time-limit", type=float, metavar="MINUTES", help="then save and leave (short for train.time_limit=MINUTES)")
    args = parser.parse_intermixed_args(argv)
    args.overrides += ["train.deterministic=true"] * args.deterministic
    args.overrides += [f"train.time_limit={args.time_limit}"] * (args.time_limit is not None)
    args.output = args.output or Path("runs") / args.config.stem
    return args


def run(args: argparse.Namespace) -> None:
    """The training, after the imports that take seconds; a signal in this time meets `leave`."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    from detector import distributed
    from detector.device import pick_device
    from detector.training.run import train

    with logging_redirect_tqdm(), distributed.processes(pick_device("auto")):
        config = distributed.raise_on_all(lambda: detector.load_config(args.config, args.overrides))
        train(config, args.output, resume=args.resume, init_from=args.init_from, source=args.config)


def leave(number: int, frame: object) -> None:
    """Before the first step there is nothing to save, and half-loaded modules would have a lot to say about it."""
    if os.environ.get("RANK", "0") == "0":
        print(
            f"stopped by {signal.Signals(number).name} before the first step; nothing to save",
            file=sys.stderr,
            flush=True,
        )
    os._exit(128 + number)


def say(error: Exception, text: str) -> None:
    """Of several processes that met the same error, the first says it."""
    if not getattr(error, "is_shared", False) or os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    handlers = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        run(args)
    except DetectorError as error:
        say(error, f"{'error' if error.exit_status == 2 else 'stopped'}: {error}")
        return error.exit_status
    except OSError as error:  # of whatever file or folder of the user's
        if error.filename is None:
            raise
        say(error, f"error: {error.filename}: {error.strerror}; correct the path or its permissions")
        return 2
    except Interrupted as error:
        last = args.output / "last.pth"
        say(error, f"stopped by {error}; {last} is saved, continue with --resume")
        return error.exit_status
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


if __name__ == "__main__":
    sys.exit(main())
