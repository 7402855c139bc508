"""The command `detector compare`, from a checkout."""

import sys

from detector.cli.compare import main

if __name__ == "__main__":
    sys.exit(main())
