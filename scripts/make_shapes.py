"""The command `detector make-shapes`, from a checkout."""

import sys

from detector.cli.make_shapes import main

if __name__ == "__main__":
    sys.exit(main())
