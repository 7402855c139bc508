"""How a script ends: with 0 when its task is done, else with one line on stderr and a status that says what happened."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from detector.distributed import is_lost_peer, should_report
from detector.errors import DetectorError


def run(task: Callable[[], int | None]) -> int:
    """The exit status of a task, which may name one itself: 2 for what the user can mend, 130 for Ctrl-C."""
    try:
        return task() or 0
    except DetectorError as error:
        if should_report(error):
            print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:  # pathlib raises it wherever it asks for a closed folder, or a name too long
        if error.filename is None:
            raise
        if should_report(error):
            print(f"error: {error.filename}: {error.strerror}; correct the path or its permissions", file=sys.stderr)
        return 2
    except RuntimeError as error:  # torch's, of a process that has left
        if not (is_lost_peer(error) or "DataLoader worker" in str(error)):
            raise
        print(f"error: another process died ({error}); if memory ran out, lower data.workers", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":  # of several processes one says it
            print("stopped", file=sys.stderr)
        return 130
