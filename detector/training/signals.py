"""Stopping a training at a signal or a time limit, always between two steps."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType, TracebackType

from detector import distributed
from detector.data.workers import ignore_lost_workers, in_main_thread
from detector.errors import Interrupted

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
TIME_UP = 124  # exit status, as of timeout(1)


class Stop:
    """A request to stop. While the context is open, the first signal waits for the end of a step, the second exits at once.

    Args:
        minutes: the time limit, from construction on; None: no limit.
    """

    def __init__(self, minutes: float | None = None):
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.signal = 0
        self.agreed: Interrupted | None = None

    def __enter__(self) -> Stop:
        # nohup ignores SIGHUP, and this must stay so
        handled = [number for number in SIGNALS if in_main_thread() and signal.getsignal(number) != signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, self._on_signal) for number in handled}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            print("\nstopped at once", file=sys.stderr, flush=True)
            os._exit(128 + number)  # a normal exit would wait for hanging loader workers
        self.signal = number

    def agree(self, also: bool) -> tuple[bool, bool]:
        """(whether to stop, `also` of rank 0), the same on all processes. All processes must call it."""
        number, late, wanted = distributed.all_reduce_max(self.signal, self._is_late(), also and distributed.is_rank0())
        self.agreed = self._interrupted(number, bool(late))
        return self.agreed is not None, bool(wanted)

    def check(self) -> None:
        """Raise Interrupted if the processes agreed to stop, or this process has a reason to."""
        reason = self.agreed or self._interrupted(self.signal, self._is_late())
        if reason is None:
            return
        if self.signal:
            ignore_lost_workers()  # the signal may have ended them, too
        raise reason from (distributed.SharedError() if self.agreed is not None else None)

    def _is_late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def _interrupted(self, number: int, late: bool) -> Interrupted | None:
        if number:
            return Interrupted(signal.Signals(number).name, 128 + number)
        return Interrupted("the time limit", TIME_UP) if late else None
