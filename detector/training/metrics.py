"""What a training writes down: metrics.csv always, TensorBoard where it is installed."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

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

    On resume the rows beyond `step` are dropped, because these steps will be run again.
    """

    def __init__(self, folder: Path, *, step: int = 0):
        self.path = folder / "metrics.csv"
        rows = [row for row in self._old_rows() if int(row["step"]) <= step] if step else []
        self._begin(_losses(key for row in rows for key in row), rows)
        self._board = _tensorboard(folder, step)

    def _begin(self, losses: list[str], rows: list[dict[str, str]]) -> None:
        """The file anew, with these columns between the general ones."""
        self.losses, columns = losses, [*COLUMNS[:4], *losses, *COLUMNS[4:], *SCORES]
        temporary = self.path.with_name(f".metrics.csv.{os.getpid()}.tmp")
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self.path)
        self._file = open(self.path, "a", newline="", buffering=1)
        self._writer = csv.DictWriter(self._file, columns, extrasaction="ignore")

    def _old_rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with open(self.path, newline="") as file:
            return [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit()]

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """One row; what a column lacks stays empty."""
        losses = _losses([*self.losses, *row])
        if losses != self.losses:
            self._file.close()
            self._begin(losses, self._old_rows())
        self._writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in {"step": step, **row}.items()})
        for key, value in row.items() if self._board else ():
            self._board.add_scalar(key, value, step)

    def close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()


def _losses(keys: Iterable[str | None]) -> list[str]:
    """What has no column of its own yet, each once; None is what stands beyond the columns of a damaged row."""
    return list(dict.fromkeys(key for key in keys if key is not None and key not in (*COLUMNS, *SCORES)))


def _tensorboard(folder: Path, step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # an optional extra
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
