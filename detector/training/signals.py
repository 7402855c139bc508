"""When a training leaves before its end: at a signal, or when its time is up; always between two steps."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from detector import distributed
from detector.errors import Interrupted

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
TIME_UP = 124  # the exit status, that of timeout(1)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Torch raises the fall of a loading process in whatever the program does; what is inside is finished before."""
    if not hasattr(signal, "SIGCHLD"):  # on Windows
        yield
        return
    noted: list[tuple] = []
    handler = signal.signal(signal.SIGCHLD, lambda *event: noted.append(event))
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)
        if noted and callable(handler):
            handler(*noted[0])


class Stop:
    """As long as it is open, the first signal waits for the end of a step; the second leaves at once.

    `minutes` from its making on, the time is up; None: never.
    """

    def __init__(self, minutes: float | None = None):
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.signal, self.agreed = 0, None

    def __enter__(self) -> Stop:
        wanted = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # as nohup leaves SIGHUP
        self._handlers = {number: signal.signal(number, self._on_signal) for number in wanted}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            print("\nstopped at once", file=sys.stderr, flush=True)
            os._exit(128 + number)  # a loading process that hangs would be waited for
        self.signal = number

    def agree(self, also: bool) -> tuple[bool, bool]:
        """Whether to stop, and whether the first process wants `also`: all processes hear the same. All must call it."""
        number, late, also = distributed.all_reduce_max(self.signal, self._is_late(), also and distributed.is_rank0())
        self.agreed = self._interrupted(number, late)
        return self.agreed is not None, bool(also)

    def check(self) -> None:
        """Raise Interrupted if all have agreed to stop, or this process was asked to."""
        reason = self.agreed or self._interrupted(self.signal, self._is_late())
        if reason is not None:
            reason.is_shared = reason is self.agreed
            raise reason

    def _is_late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def _interrupted(self, number: int, late: bool) -> Interrupted | None:
        if number:
            return Interrupted(signal.Signals(number).name, 128 + number)
        return Interrupted("the time limit", TIME_UP) if late else None
