"""The parts of a page about a run as a whole: its head, its curves, its data, its speed."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable

from detector.dataset_check.check import CheckResult, Summary
from detector.insight.analysis import SHAPES, Analysis
from detector.insight.bootstrap import Interval
from detector.insight.page import bar, html_table, points, prose
from detector.insight.run_record import RunRecord, thinned
from detector.insight.run_report import RunReport
from detector.insight.svg import escaped, line_chart
from detector.insight.verdict import verdict
from detector.modeling.layers import log2_stride

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
SHOWN = 30  # classes of a table that are shown at once


def head(report: RunReport) -> str:
    """The verdict, the scores with their intervals, and how the run was made."""
    out = "".join(_verdict(analysis, alone=len(report.analyses) == 1) for analysis in report.analyses.values())
    if not report.finished:
        out += (
            "<p class=quiet>The training goes on: this page is of its newest evaluation. "
            "Where objects are lost, and the speed, are added at its end.</p>"
        )
    for kind, analysis in report.analyses.items():
        out += f"<h3>{SHAPES[kind].capitalize()}</h3>" if len(report.analyses) > 1 else ""
        out += _tiles(analysis)
    count = report.boxes.resampled.samples()
    out += (
        f"<p class=quiet>Points of 100 on val; below each the 95 % interval, from {count} bootstrap samples of the images. "
        "s, m, l: objects below 32\u00b2, from there, and from 96\u00b2 pixels.</p>"
    )
    return out + _facts(report)


def _verdict(analysis: Analysis, *, alone: bool) -> str:
    lines = verdict(analysis)
    start = "" if alone else f"{SHAPES[analysis.kind].capitalize()}: "
    return f"<p class=verdict><b>{start}{escaped(lines[0])}</b> {escaped(' '.join(lines[1:]))}</p>"


def _tiles(analysis: Analysis) -> str:
    tiles = ""
    for name in METRICS:
        interval = analysis.resampled.interval(name)
        tiles += (
            f"<div class=tile><span>{name}</span><b>{points(interval.value)}</b><span>{range_of(interval)}</span></div>"
        )
    return f"<div class=tiles>{tiles}</div>"


def range_of(interval: Interval) -> str:
    """The interval in points, "no interval" where there is none."""
    return "no interval" if math.isnan(interval.low) else f"{points(interval.low)} to {points(interval.high)}"


def _facts(report: RunReport) -> str:
    record, row = report.record, report.evaluation()
    epochs = report.config.train.epochs
    place = f"step {report.step}" if row is None else f"epoch {row['epoch']:.0f} of {epochs}, step {report.step}"
    best = max(record.evaluations, key=lambda r: r["AP"], default=None)
    facts = [("checkpoint", f"{'best.pth' if report.finished else 'newest'}: {place}")]
    if best is not None:
        facts.append(
            (
                "highest AP of boxes",
                f"{points(best['AP'])} at epoch {best['epoch']:.0f}, of {len(record.evaluations)} evaluations",
            )
        )
    if report.config.data is not None and report.config.data.tiles is not None:
        facts.append(("images are seen in", str(report.config.data.tiles.of_evaluation())))
    span = record.span() if report.finished else None  # the log does not have this evaluation yet
    if record.steps:
        log = f"; train.log from {span[0]} to {span[1]} ({duration(3600 * record.hours())})" if span else ""
        facts.append(("time", f"{duration(record.training_seconds())} in {len(record.steps)} steps{log}"))
    facts += [
        ("machine", record.said("machine: ") or "not recorded in train.log"),
        ("model", record.said("model: ") or "not recorded in train.log"),
        ("versions", ", ".join(f"{name} {version}" for name, version in report.versions.items()) or "not recorded"),
        ("seed", str(report.config.train.seed)),
    ]
    rows = [(escaped(name), escaped(value)) for name, value in facts]
    rows.append(("the same again", f"<code>{escaped(record.command())}</code>"))
    return html_table([], rows, kind="facts")


def duration(seconds: float) -> str:
    """In the largest two units."""
    if math.isnan(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def curves(report: RunReport) -> str:
    """Losses, rate, gradient norm, scores, times and memory over the training."""
    record = report.record
    if not record.steps and not record.evaluations:
        return "<p>There is no metrics.csv in the folder, so there are no curves.</p>"

    def of(*names: str) -> dict[str, list[tuple[float, float]]]:
        return {name: thinned([(row["step"], row[name]) for row in record.steps if name in row]) for name in names}

    losses = record.losses
    scores = {name: _evaluated(record, name) for name in ("AP", "AP50", "AP75", "segm/AP", "keypoints/AP")}
    scores["AR1000 of proposals"] = _evaluated(record, "AR1000")
    charts = [
        line_chart("Losses in training", of(*losses[:8]), x_label="step", scale="zero", note=_more(losses[8:])),
        line_chart(
            "Scores on val",
            {n: [(x, 100 * y) for x, y in p if y >= 0] for n, p in scores.items()},
            x_label="epoch",
            scale="zero",
        ),
        line_chart("Loss on val", {"val_loss": _evaluated(record, "val_loss")}, x_label="epoch", scale="zero"),
        line_chart("Learning rate", of("lr"), x_label="step", scale="zero"),
        line_chart("Norm of the gradient", of("grad_norm"), x_label="step", scale="log"),
        line_chart(
            "Seconds of a step",
            {"loading": of("data_s")["data_s"], "computing": of("step_s")["step_s"]},
            x_label="step",
            scale="log",
        ),
        line_chart("Memory, MiB", of("memory_mib"), x_label="step", scale="zero"),
    ]
    return f"<div class=grid2>{''.join(charts)}</div>"


def _more(names: list[str]) -> str:
    return f"metrics.csv has also {', '.join(names)}" if names else ""


def _evaluated(record: RunRecord, name: str) -> list[tuple[float, float]]:
    return [(row["epoch"], row[name]) for row in record.evaluations if name in row and "epoch" in row]


def data(report: RunReport) -> str:
    """The splits with their classes, sizes against anchors and levels, and what `check-data` finds."""
    check = report.check
    if isinstance(check, str):
        return f"<p>{escaped(check)}</p>"
    rows = [
        (escaped(name), str(s.images), str(s.without_objects), str(s.objects), str(s.crowd), str(len(s.classes)))
        for name, s in check.splits.items()
    ]
    out = html_table(["split", "images", "without objects", "objects", "crowd regions", "classes"], rows)
    return (
        out
        + _findings(check)
        + "<h3>Sizes, levels and anchors</h3>"
        + _levels(check)
        + _anchors(check, report)
        + _class_counts(check)
    )


def _findings(check: CheckResult) -> str:
    found = check.findings.all()
    command = "Image files are checked by <code>detector check-data</code>, which also names every place."
    if not found:
        return f"<p>The annotations have no fault. {command}</p>"
    rows = []
    for f in found:
        places = "; ".join(map(str, f.places[:2])) + (f" and {f.count - 2} more" if f.count > 2 else "")
        kind = f"<span class={f.severity}>{escaped(f.kind)}</span>"
        rows.append((kind, escaped(f.split), str(f.count), prose(f.effect), prose(places)))
    return (
        html_table(["finding", "split", "count", prose("effect", "th"), prose("where", "th")], rows)
        + f"<p class=quiet>{command}</p>"
    )


def _levels(check: CheckResult) -> str:
    g = check.geometry
    low, high = g.levels
    anchors = {} if g.anchors is None else dict(zip(map(log2_stride, g.anchors.strides), g.anchors.sizes))
    rows = []
    for k in sorted({*range(low, high + 1), *anchors}):
        start, end = (g.canonical_size * 2.0 ** (edge - g.k0) for edge in (k, k + 1))
        span = " ".join([f"from {start:g}"] * (k > low) + [f"below {end:g}"] * (k < high)) or "all"
        counts = [cell for s in check.splits.values() for cell in _share(s.levels.get(k, 0), s)]
        pooled = low <= k <= high
        sizes = ", ".join(f"{side:g}" for side in anchors.get(k, []))
        rows.append((f"P{k}", span if pooled else "anchors alone", sizes, *(counts if pooled else [""] * len(counts))))
    heads = [cell for name in check.splits for cell in (escaped(name), "")]
    title = f"Sides (\u221a(w\u00b7h)) are in pixels of images resized to {max(g.resize.sides)} and {g.resize.long} at most."
    return html_table(["level", "side of objects", "sides of anchors", *heads], rows) + f"<p class=quiet>{title}</p>"


def _share(count: int, split: Summary) -> tuple[str, str]:
    return str(count), bar(count / max(split.objects, 1))


def _anchors(check: CheckResult, report: RunReport) -> str:
    fits = [(name, s.anchors) for name, s in check.splits.items() if s.anchors is not None]
    fits += [("proposed by k-means", check.better)] if check.better is not None else []
    rows = [
        (escaped(name), points(fit.recall), f"{fit.mean_iou:.3f}")
        for name, fit in fits
        if fit is not None and fit.recall == fit.recall
    ]
    if not rows:
        return ""
    out = html_table(
        ["anchors", f"% of objects with one of IoU \u2265 {check.geometry.pos_iou:g}", "mean IoU of the best"], rows
    )
    if check.better is not None:
        command = shlex.join(
            ["detector", "check-data", str(report.record.folder / "config.yaml"), "--anchors", "anchors.yaml"]
        )
        out += f"<p>Better anchors are written by <code>{escaped(command)}</code>.</p>"
    return out


def _class_counts(check: CheckResult) -> str:
    splits = list(check.splits.values())
    names = list(dict.fromkeys(name for s in splits for name in s.classes))
    names.sort(key=lambda name: -splits[0].classes.get(name, (0, 0))[0])

    def rows(part: list[str]) -> list[tuple[str, ...]]:
        return [
            (escaped(name), *(cell for s in splits for cell in _share(s.classes.get(name, (0, 0))[0], s)))
            for name in part
        ]

    heads = ["class", *(cell for name in check.splits for cell in (escaped(name), ""))]
    return "<h3>Objects of each class</h3>" + first_rows(names, lambda part: html_table(heads, rows(part)), "classes")


def first_rows(items: list, show: Callable[[list], str], what: str) -> str:
    """The first items, the others behind a line to click on."""
    out = show(items[:SHOWN])
    if len(items) > SHOWN:
        out += f"<details><summary>{len(items) - SHOWN} more {what}</summary>{show(items[SHOWN:])}</details>"
    return out


def speed(report: RunReport) -> str:
    """Parameters, operations, and the time of an image."""
    found = report.speed
    if found is None:
        return "<p>Not measured: the training goes on, or val has no image.</p>"
    names = {"read": "reading the file", "prepare": "resizing", "detect": "detecting"}
    total = sum(found.seconds.values())
    rows = [(names[part], f"{1e3 * s:.1f} ms", bar(s / total)) for part, s in found.seconds.items()]
    out = html_table(["part", "time of an image", ""], [*rows, ("together", f"{1e3 * total:.1f} ms", "")])
    out += f"<p>{found.parameters / 1e6:.1f} M parameters; {found.flops / 1e9:.1f} GFLOPs for the first image.</p>"
    return out + f"<p class=quiet>Median of {found.images} images, one at a time, on {escaped(found.device)}.</p>"
