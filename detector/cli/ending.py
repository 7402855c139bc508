"""How every command ends: an exit status that says what happened and, unless it succeeded, one line on stderr.

The statuses are 0 done, 1 the work failed (a loss that is not finite, errors in the data), 2 wrong input, 124 the time limit,
129 a lost terminal, 130 Ctrl-C, 141 a reader of the output that stopped (`| head`), 143 SIGTERM. A fault of the program itself
is left to Python, which shows the traceback.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any

from detector.data.workers import ignore_lost_workers, is_lost_worker
from detector.errors import DetectorError, Interrupted

# no SIGHUP on Windows
STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
LOST_READER = 141  # as a shell reports SIGPIPE
Handler = Callable[[int, FrameType | None], None]


def interrupt(number: int, frame: FrameType | None) -> None:
    """Signal handler: SIGTERM and SIGHUP end a command as Ctrl-C does, whose loading processes may have got it, too."""
    ignore_lost_workers()
    raise KeyboardInterrupt(number)


class ending:
    """Context of a command's work; afterwards `status` is its exit status.

    Args:
        args: the parsed arguments, for `--debug`.
        handlers: signal number -> handler while the context is open; None: `interrupt` for all of STOPS.
        advice: how to continue, added to the line about an interruption.
    """

    def __init__(
        self, args: argparse.Namespace, *, handlers: Mapping[int, Handler] | None = None, advice: str | None = None
    ):
        self.debug = getattr(args, "debug", False) or os.environ.get("DETECTOR_DEBUG", "0") not in ("", "0")
        # torchrun ends processes that wait for each other in native code, where no handler of Python runs
        alone = "TORCHELASTIC_RUN_ID" not in os.environ
        self.handlers = handlers if handlers is not None else dict.fromkeys(STOPS if alone else [], interrupt)
        self.advice = f"; {advice}" if advice else ""
        self.status = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> ending:
        for number, handler in self.handlers.items():
            if not _is_ignored_hangup(number):
                self._previous[number] = signal.signal(number, handler)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> bool:
        """Report an expected error and set `status`; anything else is raised."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if isinstance(error, BrokenPipeError) or (error is None and _reader_is_gone()):
            os.dup2(
                os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
            )  # Python would complain when it flushes at exit
            self.status = self.status or LOST_READER
            return True
        if error is None:
            return False
        ended = self._explain(error)
        if ended is None:
            return False
        self.status, line = ended
        if _should_report(error):
            if self.debug:
                traceback.print_exception(error)
            print(line, file=sys.stderr, flush=True)
        return True

    def _explain(self, error: BaseException) -> tuple[int, str] | None:
        """Exit status and message of an expected error; None: a fault of the program."""
        if isinstance(error, DetectorError):
            return error.exit_status, f"{'error' if error.exit_status == 2 else 'stopped'}: {error}"
        if isinstance(error, Interrupted):
            return error.exit_status, f"stopped by {error}{self.advice}"
        if isinstance(error, KeyboardInterrupt):
            number = error.args[0] if error.args else signal.SIGINT
            return 128 + number, f"stopped by {signal.Signals(number).name}{self.advice}"
        # pathlib raises OSError wherever it asks for a closed folder, or a name too long
        if isinstance(error, OSError) and error.filename is not None:
            return 2, f"error: {error.filename}: {error.strerror}; correct the path or its permissions"
        if isinstance(error, RuntimeError) and _is_lost_process(error):
            return 2, f"error: another process died ({error}); if memory ran out, lower data.workers"
        return None


def _reader_is_gone() -> bool:
    """Whether nobody reads the output any more."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return True
    return False


def _is_ignored_hangup(number: int) -> bool:
    """Whether this is SIGHUP and nohup made the process ignore it."""
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN


def _should_report(error: BaseException) -> bool:
    """Whether this process prints the error; an interruption reaches all, and the first process prints it."""
    if isinstance(error, KeyboardInterrupt):
        return os.environ.get("RANK", "0") == "0"
    from detector.distributed import should_report  # imports torch, which `train` must not do before its first signal

    return not isinstance(error, Exception) or should_report(error)


def _is_lost_process(error: RuntimeError) -> bool:
    """Whether PyTorch raised this because a peer or a loading process is gone."""
    from detector.distributed import is_lost_peer

    return is_lost_peer(error) or is_lost_worker(error)
