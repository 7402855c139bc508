"""What a training writes down: metrics.csv always, TensorBoard where it is installed."""

from __future__ import annotations

import csv
import errno
import io
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from detector.errors import DetectorError

log = logging.getLogger("detector")

COLUMNS = ["step", "epoch", "lr", "loss", "grad_norm", "data_s", "step_s", "memory_mib", "val_loss"]
SCORES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "AR1000"]  # the last one of the proposals
STEP = re.compile("[0-9]{1,18}")


def is_metrics_file(path: Path) -> bool:
    """Whether a training wrote this file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().startswith(",".join(COLUMNS[:4]) + ",")
    except OSError:
        return False


class MetricsFile:
    """metrics.csv: a row a training step, and one an evaluation; a key met for the first time, a loss's, gets a column.

    On resume the rows beyond `step` are dropped, because these steps will be run again, and those of `history` that the
    file lacks, evaluations all, are put back. What a full disk refuses is written once there is room. Raises DetectorError
    for a file that cannot be continued.
    """

    def __init__(self, folder: Path, *, step: int = 0, history: Sequence[Mapping[str, float]] = ()):
        self.path = folder / "metrics.csv"
        self._file, self._waiting = None, []  # rows that a full disk did not take
        try:
            rows = [row for row in self._old_rows() if int(row["step"]) <= step] if step else []
            self._begin(_losses(key for row in rows for key in row), _with_history(rows, history))
        except (OSError, csv.Error) as error:
            raise DetectorError(
                f"{self.path}: cannot be continued ({error}); move it away: a resumed training begins a new one"
            ) from error
        self._board = _tensorboard(folder, step)

    def _begin(self, losses: list[str], rows: list[dict[str, str]]) -> None:
        """The file anew, with these columns between the general ones."""
        columns = [*COLUMNS[:4], *losses, *COLUMNS[4:], *SCORES]
        temporary = self.path.with_name(f".metrics.csv.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(_text(columns, [dict(zip(columns, columns)), *rows]))
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        if self._file:
            self._file.close()
        self._file = open(self.path, "ab", buffering=0)
        self.losses, self.columns = losses, columns

    def _old_rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with open(self.path, newline="", encoding="utf-8", errors="replace") as file:  # edited by who knows what
            return [row for row in csv.DictReader(file) if STEP.fullmatch(row.get("step") or "")]

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """One row; what a column lacks stays empty."""
        waited = bool(self._waiting)
        self._waiting.append(_rounded({"step": step, **row}))
        try:
            losses = _losses([*self.losses, *(key for waiting in self._waiting for key in waiting)])
            if losses != self.losses:
                self._begin(losses, self._old_rows())
            self._append(_text(self.columns, self._waiting))
            self._waiting.clear()
        except (OSError, csv.Error) as error:
            if not waited:
                log.warning("%s: cannot be written (%s); its rows wait for room", self.path, error)
        for key, value in row.items() if self._board else ():
            self._board.add_scalar(key, value, step)

    def _append(self, text: bytes) -> None:
        """All of it or nothing."""
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._file.truncate(end)
            raise

    def close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()


def _text(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> bytes:
    """Rows as they stand in the file."""
    text = io.StringIO(newline="")
    csv.DictWriter(text, columns, extrasaction="ignore").writerows(rows)
    return text.getvalue().encode()


def _rounded(row: Mapping[str, float]) -> dict[str, str]:
    return {key: f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in row.items()}


def _with_history(rows: list[dict[str, str]], history: Sequence[Mapping[str, float]]) -> list[dict[str, str]]:
    """The rows of steps, and each evaluation after that of its step.

    An evaluation that the history lacks will be done again: it was written down, but not saved.
    """
    scored = {row["step"] for row in rows if row.get(SCORES[0])}
    known = {str(row["step"]) for row in history}
    rows = [row for row in rows if not row.get(SCORES[0]) or row["step"] in known]
    rows += [_rounded(row) for row in history if str(row["step"]) not in scored]
    return sorted(rows, key=lambda row: (int(row["step"]), bool(row.get(SCORES[0]))))


def _losses(keys: Iterable[str | None]) -> list[str]:
    """What has no column of its own yet, each once; None is what stands beyond the columns of a damaged row."""
    return list(dict.fromkeys(key for key in keys if key is not None and key not in (*COLUMNS, *SCORES)))


def _tensorboard(folder: Path, step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # an optional extra
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
