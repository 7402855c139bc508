"""report.html of a training: refreshed at each evaluation, complete at the end. A report that fails is a warning, no more."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from detector import distributed
from detector.checkpoint import versions
from detector.config.config import Config
from detector.dataset_check.check import CheckResult
from detector.errors import Interrupted
from detector.evaluation.coco import Scored
from detector.insight.report import FILE, checked_data, report_of_run, run_report, write_report
from detector.protocols import DataSet
from detector.training.metrics import SCORES

SAMPLES = 200  # of the bootstrap while the training goes on

log = logging.getLogger("detector")


class ReportWriter:
    """Refreshes the page after each evaluation, on rank 0; it comes after the writer of metrics.csv, which it reads.

    Args:
        folder: of the run.
        config: of the training.
        val: the images that are scored.
    """

    def __init__(self, folder: Path, config: Config, val: DataSet):
        self.folder, self.config, self.val = folder, config, val
        self._scored: Scored | None = None
        self._data: CheckResult | str | None = None

    def observe(self, scored: Scored) -> None:
        """Keep what the next evaluation's row comes from, if there is to be a report."""
        self._scored = scored if self.config.train.report else None

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Write the page after the row of an evaluation; other rows change nothing."""
        scored, self._scored = self._scored, None
        if scored is None or SCORES[0] not in row:
            return
        try:
            with torch.random.fork_rng():  # the check of the data builds a model
                self._write(step, scored)
        except Exception as error:
            warn(self.folder, error)

    def _write(self, step: int, scored: Scored) -> None:
        if self._data is None:
            self._data = checked_data(self.config)
        report = run_report(
            self.folder, self.config, scored, self.val, None, data=self._data, samples=SAMPLES, step=step
        )
        report.versions = versions()
        write_report(self.folder / FILE, [report])

    def close(self) -> None:
        """Nothing is open."""


def complete_report(folder: Path, config: Config, check: Callable[[], None]) -> None:
    """Run the best checkpoint over val once more, on all processes, and write the page of the finished training, if wanted.

    `check` is called before each image; what it raises, an interruption, is raised.
    """
    if not config.train.report:
        return
    try:
        device = config.train.device
        report = distributed.raise_on_all(report_of_run, folder, trust=True, device=device, check=check)
        if report is not None:
            write_report(folder / FILE, [report])
            log.info("report: %s", folder / FILE)
    except Interrupted:
        raise
    except Exception as error:
        warn(folder, error)


def warn(folder: Path, error: Exception) -> None:
    """Log that there is no report, and why."""
    log.warning("%s: not written (%s: %s); the training is not affected", folder / FILE, type(error).__name__, error)
