"""Reports on stdout."""

from __future__ import annotations

import sys


def print_report(report: str) -> None:
    """Print text that may hold letters unknown to this terminal."""
    encoding = sys.stdout.encoding or "utf-8"
    print(report.encode(encoding, "backslashreplace").decode(encoding))
