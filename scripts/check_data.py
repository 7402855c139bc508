"""The command `detector check-data`, from a checkout."""

import sys

from detector.cli.check_data import main

if __name__ == "__main__":
    sys.exit(main())
