"""Train a detector: CONFIG [--output DIR] [--resume] [--init-from CKPT] [key=value …]."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

import detector
from detector.errors import Interrupted
from detector.training.loop import NonFiniteLoss
from detector.training.run import train


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("config", type=Path, metavar="CONFIG", help="a YAML file, for instance from configs/")
    add("overrides", metavar="key=value", nargs="*", help="changes to it, for instance train.epochs=3")
    add("--output", type=Path, metavar="DIR", help="where to write (default: runs/ and the name of CONFIG)")
    add("--resume", action="store_true", help="continue the training in DIR exactly where it stopped")
    add("--init-from", type=Path, metavar="CKPT", help="begin with the weights of another training")
    return parser.parse_intermixed_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    output = args.output or Path("runs") / args.config.stem
    try:
        config = detector.load_config(args.config, args.overrides)
        with logging_redirect_tqdm():
            train(config, output, resume=args.resume, init_from=args.init_from, source=args.config)
    except NonFiniteLoss as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except detector.DetectorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as error:
        saved = (
            f"{output / 'last.pth'} is saved, continue with --resume"
            if (output / "last.pth").exists()
            else "nothing yet"
        )
        print(f"stopped by {error}; {saved}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("stopped before the first step", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
