"""The command `detector convert-weights`, from a checkout."""

import sys

from detector.cli.convert_weights import main

if __name__ == "__main__":
    sys.exit(main())
