"""The death of processes that load images.

PyTorch raises it as RuntimeError from its handler of SIGCHLD, between any two operations of the program: during a save, or
while another exception is on its way. A process that dies while it hands over an image is first noticed as a broken connection.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_LOST = "DataLoader worker (pid"  # in all of PyTorch's messages but one, and not in those about errors of a data set
PINNING_ENDED = "Pin memory thread exited unexpectedly"  # it reads from the loading processes


def in_main_thread() -> bool:
    """Whether this thread may handle signals."""
    return threading.current_thread() is threading.main_thread()


def is_lost_worker(error: Exception) -> bool:
    """Whether this is PyTorch's error, or `lost_worker`'s, about a loading process that died."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in (_LOST, PINNING_ENDED))


def is_from_data_set(error: Exception) -> bool:
    """Whether PyTorch passed on this error of a data set from a loading process."""
    return "in DataLoader worker process" in str(error)


def lost_worker() -> RuntimeError:
    """The error about a loading process whose connection broke."""
    return RuntimeError(f"{_LOST} unknown) died while it handed over an image")


def ignore_lost_workers() -> None:
    """From now on no death of a loading process is raised: for a program that is ending, whose signal may have ended them."""
    if hasattr(signal, "SIGCHLD") and in_main_thread():  # not on Windows
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@contextmanager
def deferred_sigchld() -> Iterator[None]:
    """Defer SIGCHLD, from whose handler PyTorch raises a worker's death, to the end of the context."""
    if not hasattr(signal, "SIGCHLD") or not in_main_thread():
        yield
        return
    received: list[tuple[int, FrameType | None]] = []

    def record(number: int, frame: FrameType | None) -> None:
        received.append((number, frame))

    handler = signal.signal(signal.SIGCHLD, record)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)
        if received and callable(handler):
            handler(*received[0])
