"""The command `detector benchmark`, from a checkout."""

import sys

from detector.cli.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
