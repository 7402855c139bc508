"""Everything that a page says of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from detector.config.config import Config
from detector.dataset_check.check import CheckResult
from detector.insight.analysis import Analysis
from detector.insight.examples import PicturePair
from detector.insight.run_record import RunRecord
from detector.insight.speed import Speed


@dataclass
class RunReport:
    """One run: its training, and the analysis of one of its checkpoints on val."""

    record: RunRecord
    config: Config
    analyses: dict[str, Analysis]
    """Of boxes under bbox, and of masks under segm where there are any."""
    metrics: Mapping[str, Mapping[str, Any]]
    """Those of evaluation."""
    step: int | None
    """Of the checkpoint that is analysed."""
    finished: bool
    """Whether the training is at its end; else the page says that it goes on."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of this program and of the packages that it was trained with."""
    check: CheckResult | str = ""
    """Of the data, or why there is none."""
    worst: Sequence[PicturePair] = ()
    doubtful: Sequence[PicturePair] = ()
    speed: Speed | None = None

    @property
    def name(self) -> str:
        """The folder's."""
        return self.record.folder.name or str(self.record.folder)

    @property
    def boxes(self) -> Analysis:
        """The analysis of boxes."""
        return self.analyses["bbox"]

    def evaluation(self) -> dict[str, float] | None:
        """The row of metrics.csv that belongs to the checkpoint."""
        return next((row for row in self.record.evaluations if row["step"] == self.step), None)
