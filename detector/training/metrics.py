"""metrics.csv, the table of a training."""

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
SCORES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "AR1000"]  # AR1000 is that of proposals
# columns such as "segm/AP", of models with masks or keypoints
SHAPE_SCORES = {"segm": ["AP", "AP50", "AP75"], "boundary": ["AP"], "keypoints": ["AP", "AP50", "AP75"]}
STEP = re.compile("[0-9]{1,18}")


def is_metrics_file(path: Path) -> bool:
    """Whether this is the metrics.csv of a training, by its header."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().startswith(",".join(COLUMNS[:4]) + ",")
    except OSError:
        return False


class CsvWriter:
    """metrics.csv: one row per training step and one per evaluation; a new loss or score gets a column.

    On resume, rows beyond `step` are dropped, because those steps run again, and evaluations of `history` that the file
    lacks are added. Rows that a full disk refuses are kept and written later. Raises DetectorError for a file that cannot
    be continued.

    Args:
        folder: of the training.
        step: training steps done before; 0 starts a new file.
        history: rows of the evaluations done before.
    """

    def __init__(self, folder: Path, *, step: int = 0, history: Sequence[Mapping[str, float]] = ()):
        self.path = folder / "metrics.csv"
        self._file: io.FileIO | None = None
        self._waiting: list[dict[str, str]] = []  # rows that a full disk refused
        try:
            rows = [row for row in self._old_rows() if int(row["step"]) <= step] if step else []
            rows = _with_history(rows, history)
            self._begin(_added(key for row in rows for key in row), rows)
        except (OSError, csv.Error) as error:
            raise DetectorError(
                f"{self.path}: cannot be continued ({error}); move it away, then a resumed training starts a new one"
            ) from error

    def _begin(self, added: list[str], rows: list[dict[str, str]]) -> None:
        """Replace the file by one with these columns beside the general ones, losses and scores, and these rows."""
        scores = [f"{title}/{name}" for title, names in SHAPE_SCORES.items() for name in names]
        losses = [key for key in added if key not in scores]
        columns = [*COLUMNS[:4], *losses, *COLUMNS[4:], *SCORES, *(key for key in scores if key in added)]
        temporary = self.path.with_name(f".metrics.csv.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(_text(columns, [dict(zip(columns, columns)), *rows]))
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        if self._file:
            self._file.close()
        self._file = open(self.path, "ab", buffering=0)
        self.added, self.columns = added, columns

    def _old_rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with open(self.path, newline="", encoding="utf-8", errors="replace") as file:  # may have been edited
            return [row for row in csv.DictReader(file) if STEP.fullmatch(row.get("step") or "")]

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Append a row; columns without a value stay empty."""
        waited = bool(self._waiting)
        self._waiting.append(_rounded({"step": step, **row}))
        try:
            added = _added([*self.added, *(key for waiting in self._waiting for key in waiting)])
            if added != self.added:
                self._begin(added, self._old_rows())
            self._append(_text(self.columns, self._waiting))
            self._waiting.clear()
        except (OSError, csv.Error) as error:
            if not waited:
                log.warning("%s: cannot be written (%s); its rows wait for room", self.path, error)

    def _append(self, text: bytes) -> None:
        """Append the text completely or not at all."""
        assert self._file is not None
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._file.truncate(end)
            raise

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _text(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> bytes:
    """Rows in the form of the file."""
    text = io.StringIO(newline="")
    csv.DictWriter(text, columns, extrasaction="ignore").writerows(rows)
    return text.getvalue().encode()


def _rounded(row: Mapping[str, float]) -> dict[str, str]:
    return {key: f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in row.items()}


def _with_history(rows: list[dict[str, str]], history: Sequence[Mapping[str, float]]) -> list[dict[str, str]]:
    """The rows of steps, each followed by the evaluation after that step.

    An evaluation missing from `history` was written but not saved in a checkpoint; it is dropped, because it runs again.
    """
    scored = {row["step"] for row in rows if row.get(SCORES[0])}
    known = {str(row["step"]) for row in history}
    rows = [row for row in rows if not row.get(SCORES[0]) or row["step"] in known]
    rows += [_rounded(row) for row in history if str(row["step"]) not in scored]
    return sorted(rows, key=_row_order)


def _row_order(row: Mapping[str, str]) -> tuple[int, bool]:
    return int(row["step"]), bool(row.get(SCORES[0]))


def _added(keys: Iterable[str | None]) -> list[str]:
    """Keys that are no general columns, each once; csv.DictReader gives None for excess values of a damaged row."""
    return list(dict.fromkeys(key for key in keys if key is not None and key not in (*COLUMNS, *SCORES)))
