"""The report of runs: made of a checkpoint and its split, drawn as one page, written beside the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detector.config.config import Config
from detector.dataset_check.check import CheckResult, check_data
from detector.errors import DataError, DetectorError
from detector.evaluation.coco import Scored
from detector.files import begins, check_folder, write_text
from detector.insight.analysis import analyse
from detector.insight.bootstrap import SAMPLES
from detector.insight.collect import trace_run
from detector.insight.details import classes, confusions, kinds, misses, of_each, pictures, proposals, trust
from detector.insight.examples import Examples, PicturePair
from detector.insight.funnel import Loss
from detector.insight.overview import curves, data, head, speed
from detector.insight.page import MARK, page
from detector.insight.run_record import read_record
from detector.insight.run_report import RunReport
from detector.insight.speed import measure_speed
from detector.insight.svg import escaped
from detector.insight.versus import check_comparable, versus
from detector.protocols import DataSet

FILE = "report.html"
PICTURES = 2_000_000  # bytes of all pictures of a page, a third more as text
SECTIONS: dict[str, Callable[[RunReport], str]] = {
    "Curves": curves,
    "Data": data,
    "Classes": lambda report: of_each(report, classes),
    "Confusions": lambda report: of_each(report, confusions),
    "Errors": lambda report: of_each(report, kinds),
    "Misses": lambda report: of_each(report, misses) + proposals(report),
    "Calibration": lambda report: of_each(report, trust),
    "Pictures": pictures,
    "Speed": speed,
}


def report_page(reports: Sequence[RunReport]) -> str:
    """The page of one or several runs on the same images; the others are compared with the first."""
    check_comparable(reports)
    alone = len(reports) == 1
    body = (
        "<h1>" + ("Report of " if alone else "Reports of ") + ", ".join(escaped(one.name) for one in reports) + "</h1>"
    )
    if not alone:
        body += _navigation([("versus", "Comparison"), *((f"r{i}", one.name) for i, one in enumerate(reports))])
        body += '<h2 id="versus">Comparison</h2>' + "".join(versus(reports[0], other) for other in reports[1:])
    for number, report in enumerate(reports):
        start = "" if alone else f"r{number}-"
        body += "" if alone else f'<h1 id="r{number}">{escaped(report.name)}</h1>'
        body += head(report) + _navigation([(f"{start}{name.lower()}", name) for name in SECTIONS])
        body += "".join(f'<h2 id="{start}{name.lower()}">{name}</h2>{show(report)}' for name, show in SECTIONS.items())
    return page(f"report of {', '.join(one.name for one in reports)}", body)


def _navigation(links: Sequence[tuple[str, str]]) -> str:
    items = (f'<a href="#{anchor}">{escaped(text)}</a>' for anchor, text in links)
    return f"<nav>{''.join(items)}</nav>"


def check_own_report(path: Path) -> None:
    """Raise DataError where a page cannot be written to a path, or would replace a file that is none."""
    check_folder(path.parent, "name another --output")
    if (path.exists() or path.is_symlink()) and not begins(path, (MARK.encode()[:30],)):
        raise DataError(f"{path}: not of an earlier report, and would be written over; name another --output")


def write_report(path: Path, reports: Sequence[RunReport]) -> None:
    """Write the page of these runs. Raises DataError for a path that holds another file."""
    check_own_report(path)
    write_text(path, report_page(reports))


def report_of_run(
    folder: Path, *, overrides: Sequence[str] = (), trust: bool = False, device: str = "auto", runs: int = 1,
    check: Callable[[], None] | None = None,
) -> RunReport | None:  # fmt: skip
    """The report of the best checkpoint of a run, whose val is run through it, on rank 0; None on the other processes.

    Args:
        folder: of the run.
        overrides: `key.path=value` changes of the checkpoint's configuration.
        trust: import the custom code that it names.
        device: as for `detector.load`.
        runs: that share the page, and with it the room for pictures.
        check: called before each image; it may raise to stop.
    """
    run = trace_run(folder, overrides=overrides, trust=trust, device=device, check=check)
    content, config = run.checkpoint, run.predictor.config
    if run.scored is None:
        return None
    report = run_report(
        folder, config, run.scored, run.dataset, run.losses, data=checked_data(config),
        step=content["training"].get("step"), pictures=PICTURES // runs,
    )  # fmt: skip
    report.versions, report.finished, report.speed = (
        content.get("versions", {}),
        True,
        measure_speed(run.predictor, run.dataset),
    )
    return report


def checked_data(config: Config) -> CheckResult | str:
    """The check of the annotations, without the image files; why it cannot be made where that is so."""
    try:
        return check_data(config, config.source or "the configuration", look=False)
    except DetectorError as error:
        return f"The data cannot be checked: {error}"


def run_report(
    folder: Path, config: Config, scored: Scored, dataset: DataSet, losses: Mapping[int, Loss] | None, *,
    data: CheckResult | str, step: int | None = None, samples: int = SAMPLES, pictures: int = PICTURES,
) -> RunReport:  # fmt: skip
    """The report of scored detections of a split, of a checkpoint at that step; pictures take so many bytes at most."""
    analyses = analyse(scored, losses, samples)
    examples = Examples(analyses.get("segm", analyses["bbox"]), scored, dataset)
    report = RunReport(read_record(folder), config, analyses, scored.metrics, step, False, check=data)
    report.worst = _within(examples.worst_images(), pictures // 2)
    report.doubtful = _within(examples.doubtful_labels(), pictures // 2)
    return report


def _within(pairs: Any, room: int) -> list[PicturePair]:
    """The first pictures that take so many bytes together."""
    kept = []
    for pair in pairs:
        room -= len(pair.truth) + len(pair.found)
        if room < 0:
            break
        kept.append(pair)
    return kept
