"""The command `detector convert-annotations`, from a checkout."""

import sys

from detector.cli.convert_annotations import main

if __name__ == "__main__":
    sys.exit(main())
