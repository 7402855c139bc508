"""The command `detector evaluate`, from a checkout."""

import sys

from detector.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
