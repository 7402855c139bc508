"""Progress of a long loop: a bar on a terminal; in a log file or a notebook, a plain line now and then."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any

from tqdm import tqdm

SECONDS_PER_LINE = 30  # without a terminal
WIDE = 120  # columns of a terminal that shows details


class Progress(tqdm):
    """A progress bar on stderr.

    A carriage return, with which a bar redraws itself, makes a log file unreadable. Without a terminal this class writes
    a line at most every 30 seconds and one at the end.

    Args:
        total: number of items.
        unit: what an item is, for example "img".
        desc: what is being done.
        initial: number of items done before.
        shown: False: nothing is shown (processes other than rank 0).
    """

    def __init__(self, *, total: int, unit: str, desc: str = "", initial: int = 0, shown: bool = True):
        self.has_terminal = sys.stderr.isatty()
        self.written_at = time.monotonic()
        line = (
            None
            if self.has_terminal
            else "{desc}: {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
        )
        super().__init__(
            total=total, desc=desc, unit=unit, initial=initial, dynamic_ncols=self.has_terminal, bar_format=line,
            smoothing=0.05, disable=not shown,
        )  # fmt: skip

    @property
    def is_wide(self) -> bool:
        """Whether details fit beside the bar."""
        return not self.has_terminal or shutil.get_terminal_size().columns >= WIDE

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Redraw the bar, or write a line if the last one is long ago."""
        if self.has_terminal:
            return super().display(msg, pos)
        if time.monotonic() - self.written_at > SECONDS_PER_LINE:
            self._write_line()

    def clear(self, nolock: bool = False) -> None:
        """Make room for another message; a line stays."""
        if self.has_terminal:
            super().clear(nolock)

    def close(self) -> None:
        """Show the end."""
        if not self.has_terminal and not self.disable:
            self._write_line()
            self.disable = True
            self._decr_instances(self)  # type: ignore[attr-defined]
        super().close()

    def _write_line(self) -> None:
        self.written_at = time.monotonic()
        self.fp.write(f"{self}\n")
        self.fp.flush()
