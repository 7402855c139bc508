"""The command `detector infer`, from a checkout."""

import sys

from detector.cli.infer import main

if __name__ == "__main__":
    sys.exit(main())
