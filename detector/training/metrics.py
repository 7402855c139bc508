"""What a training writes down: metrics.csv always, TensorBoard where it is installed."""

from __future__ import annotations

import csv
import errno
import io
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

log = logging.getLogger("detector")

COLUMNS = ["step", "epoch", "lr", "loss", "grad_norm", "data_s", "step_s", "memory_mib", "val_loss"]
SCORES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "AR1000"]  # the last one of the proposals


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
    file lacks, evaluations all, are put back. What a full disk refuses is written once there is room.
    """

    def __init__(self, folder: Path, *, step: int = 0, history: Sequence[Mapping[str, float]] = ()):
        self.path = folder / "metrics.csv"
        rows = [row for row in self._old_rows() if int(row["step"]) <= step] if step else []
        self._begin(_losses(key for row in rows for key in row), _with_history(rows, history))
        self._board = _tensorboard(folder, step)

    def _begin(self, losses: list[str], rows: list[dict[str, str]]) -> None:
        """The file anew, with these columns between the general ones."""
        self.losses, self.columns = losses, [*COLUMNS[:4], *losses, *COLUMNS[4:], *SCORES]
        temporary = self.path.with_name(f".metrics.csv.{os.getpid()}.tmp")
        temporary.write_bytes(self._text([dict(zip(self.columns, self.columns)), *rows]))
        os.replace(temporary, self.path)
        self._file, self._waiting = open(self.path, "ab", buffering=0), b""

    def _text(self, rows: Iterable[Mapping[str, str]]) -> bytes:
        """Rows as they stand in the file."""
        text = io.StringIO(newline="")
        csv.DictWriter(text, self.columns, extrasaction="ignore").writerows(rows)
        return text.getvalue().encode()

    def _old_rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with open(self.path, newline="") as file:
            return [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit()]

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """One row; what a column lacks stays empty."""
        waited = bool(self._waiting)
        try:
            losses = _losses([*self.losses, *row])
            if losses != self.losses:
                self._file.close()
                self._begin(losses, self._old_rows())
            self._append(self._text([_rounded({"step": step, **row})]))
        except OSError as error:
            if not waited:
                log.warning("%s: cannot be written (%s); its rows wait for room", self.path, error.strerror)
        for key, value in row.items() if self._board else ():
            self._board.add_scalar(key, value, step)

    def _append(self, text: bytes) -> None:
        """All of it or nothing, with what waits from earlier."""
        end = self._file.seek(0, os.SEEK_END)
        self._waiting += text
        try:
            if self._file.write(self._waiting) < len(self._waiting):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._file.truncate(end)
            raise
        self._waiting = b""

    def close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()


def _rounded(row: Mapping[str, float]) -> dict[str, str]:
    return {key: f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in row.items()}


def _with_history(rows: list[dict[str, str]], history: Sequence[Mapping[str, float]]) -> list[dict[str, str]]:
    """The rows, and what they lack of the evaluations, each after the last row of its step."""
    scored = {row["step"] for row in rows if row.get(SCORES[0])}
    rows = rows + [_rounded(row) for row in history if str(row["step"]) not in scored]
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
