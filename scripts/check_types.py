"""The type checker as a ratchet: `make lint` fails when mypy finds more errors than LIMIT, which may only fall."""

from __future__ import annotations

import re
import subprocess
import sys

LIMIT = 42


def main() -> int:
    """Run mypy over the package; 1 if there are more errors than LIMIT."""
    found = subprocess.run([sys.executable, "-m", "mypy"], capture_output=True, text=True)
    lines = found.stdout.splitlines()
    counted = re.match(r"Found (\d+) errors?", lines[-1]) if lines else None
    if counted is None and found.returncode:
        print(found.stdout + found.stderr, file=sys.stderr)
        return 1
    count = int(counted[1]) if counted else 0
    if count > LIMIT:
        print("\n".join(lines))
    print(
        f"{count} errors of types, {LIMIT} allowed"
        + ("; lower LIMIT in scripts/check_types.py" if count < LIMIT else "")
    )
    return 1 if count > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
