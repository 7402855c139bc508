"""The command `detector train`, from a checkout."""

import sys

from detector.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
