"""The parts of a page about what is right and wrong: classes, confusions, kinds of errors, lost objects, trust, pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from detector.insight.analysis import SHAPES, Analysis, ClassScores
from detector.insight.confusion import BINS
from detector.insight.errors import KINDS
from detector.insight.examples import PicturePair
from detector.insight.funnel import STEPS
from detector.insight.overview import first_rows, range_of
from detector.insight.page import bar, html_table, image, points, prose
from detector.insight.run_report import RunReport
from detector.insight.svg import escaped, spark, unit_chart

LARGE = 12  # classes with a curve of their own, and rows and columns of a matrix
LISTED = 15  # pairs of classes that are confused
CURVE = 60  # points of a curve
SMALL_CURVE = 12
NONE = "\u00b7"  # in the place of a count of 0


def of_each(report: RunReport, show: Callable[[Analysis], str]) -> str:
    """What `show` says of boxes and, under their own heading, of masks."""
    if len(report.analyses) == 1:
        return show(report.boxes)
    return "".join(f"<h3>{SHAPES[kind].capitalize()}</h3>{show(one)}" for kind, one in report.analyses.items())


def classes(analysis: Analysis) -> str:
    """The scores of each class and its curve of precision and recall."""
    order = sorted(analysis.classes, key=lambda one: -one.objects)
    large = [one for one in order if one.objects][:LARGE]
    charts = "".join(
        unit_chart(f"{one.name}: {one.objects} objects", {"p": _curve(one, CURVE)}, x_label="recall") for one in large
    )
    heads = [
        "class",
        "objects",
        "AP",
        "95 % interval",
        "AP50",
        "AR100",
        "best F1",
        "at score",
        "precision",
        "recall",
        "",
    ]
    out = first_rows(order, lambda part: html_table(heads, map(_class_row, part)), "classes")
    out += "<p class=quiet>Best F1: the score from which detections of the class are best taken, at an IoU of 0.5.</p>"
    return out + (f"<p>Precision over recall at an IoU of 0.5:</p><div class=grid3>{charts}</div>" if charts else "")


def _class_row(one: ClassScores) -> tuple[str, ...]:
    best = one.best
    known = one.objects > 0
    chosen = (
        [points(best.f1), f"{best.threshold:.2f}", points(best.precision), points(best.recall)] if known else ["-"] * 4
    )
    numbers = (points(one.ap.value), range_of(one.ap), points(one.ap50), points(one.recall))
    return (escaped(one.name), str(one.objects), *numbers, *chosen, spark(_curve(one, SMALL_CURVE)) if known else "")


def _curve(one: ClassScores, most: int) -> list[tuple[float, float]]:
    """Some points of the curve, from recall 0 to where it falls to 0."""
    if not len(one.curve.recall):
        return [(0.0, 0.0), (1.0, 0.0)]
    best = one.curve.envelope()
    rows = np.unique(np.linspace(0, len(best) - 1, most).astype(int))
    end = float(one.curve.recall[-1])
    inner = [(float(one.curve.recall[row]), float(best[row])) for row in rows]
    return [(0.0, float(best[0])), *inner, (end, 0.0)]


def confusions(analysis: Analysis) -> str:
    """What objects are taken for, the most confused classes if there are many."""
    names = [*(one.name for one in analysis.classes), "background"]
    matrix, k = analysis.confusion, len(analysis.classes)
    out = (
        "<p class=quiet>Rows: what an object is. Columns: what it is taken for, by the detections from their class's best score "
        "on, at an IoU of 0.5. Background: an object that is not found, or a detection where none is.</p>"
    )
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    if k > LARGE:
        chosen = np.sort(np.argsort(-(off.sum(axis=0) + off.sum(axis=1))[:k], kind="stable")[:LARGE])
        out += f"<p>The {LARGE} of {k} classes with the most mistakes:</p>"
        rows = [*chosen.tolist(), k]
        matrix = matrix[np.ix_(rows, rows)]
        shown = [names[row] for row in rows]
    else:
        shown = names
    return out + _matrix(matrix, shown) + _pairs(off[:k, :k], names)


def _matrix(matrix: np.ndarray, names: Sequence[str]) -> str:
    totals = np.maximum(matrix.sum(axis=1), 1)
    rows = []
    for name, row, total in zip(names, matrix, totals):
        shade = [f'<td class="cell a{round(10 * count / total)}">{count or NONE}</td>' for count in row.tolist()]
        rows.append((escaped(name), *shade))
    return html_table(["is \\ taken for", *map(escaped, names)], rows, kind="matrix")


def _pairs(off: np.ndarray, names: Sequence[str]) -> str:
    found = np.argwhere(off > 0)
    if not len(found):
        return "<p>No object is taken for one of another class.</p>"
    order = sorted(found.tolist(), key=lambda pair: -off[pair[0], pair[1]])[:LISTED]
    rows = [(escaped(names[is_]), escaped(names[taken]), str(off[is_, taken])) for is_, taken in order]
    return html_table(["is", "taken for", "objects"], rows)


def kinds(analysis: Analysis) -> str:
    """What each kind of error costs."""
    worst = max((cost for cost in analysis.costs.values() if cost == cost), default=0) or 1
    rows = []
    for name, cost in analysis.costs.items():
        shown, share = ("-", 0.0) if math.isnan(cost) else (points(max(cost, 0)), cost / worst)
        count = str(analysis.errors.count(name))
        rows.append((name, prose(KINDS[name]), count, shown, bar(share)))
    fp, fn = analysis.errors.lost_to_false_positives(), analysis.errors.lost_to_misses()
    out = html_table(["kind", "", "errors", "AP50 lost", ""], rows)
    out += f"<p>All false detections together cost {points(fp)} AP50, all objects that are not found {points(fn)}.</p>"
    return out + (
        "<p class=quiet>TIDE (Bolya et al. 2020): AP50 with the errors of one kind repaired, less AP50 as it is. "
        "The costs of kinds do not add up.</p>"
    )


def misses(analysis: Analysis) -> str:
    """Where missed objects are lost, by size and level."""
    counts = analysis.funnel
    total, objects = analysis.missed(), analysis.objects()
    if counts is None:
        reason = (
            "the training goes on, the detector sees tiles (detector report RUN data.tiles=null follows whole images), "
            "or a stage of it is not of this package"
        )
        return f"<p>{total} of {objects} objects are not found. Where each is lost was not followed: {reason}.</p>"
    if not total:
        return f"<p>All {objects} objects are found.</p>"
    levels = sorted({name for counter in counts.values() for name in counter} - {"all", "small", "medium", "large"})
    columns = ["small", "medium", "large", *levels]
    rows = []
    for step, (name, advice) in enumerate(STEPS.items()):
        if step == len(STEPS) - 1 and analysis.kind == "bbox":
            continue  # masks alone
        counter = counts[step]
        cells = (str(counter[column] or NONE) for column in columns)
        rows.append((name, str(counter["all"]), bar(counter["all"] / total), *cells, prose(advice)))
    sums = [str(sum(counter[c] for counter in counts.values())) for c in ("all", *columns)]
    rows.append(("<td><b>together</b></td>", f"<td><b>{sums[0]}</b></td>", "", *sums[1:], ""))
    out = f"<p>{total} of {objects} objects are not found by any detection (IoU 0.5). Each is lost at one step:</p>"
    return out + html_table(["lost as", "objects", "", *columns, prose("what it means", "th")], rows)


def trust(analysis: Analysis) -> str:
    """Whether a score is the probability to be right."""
    found = analysis.calibration
    if math.isnan(found.error):
        return "<p>Nothing is found, so there are no scores to judge.</p>"
    bars = [((i + 0.5) / BINS, float(p) if p == p else 0.0) for i, p in enumerate(found.precision)]
    line = [(float(s), float(p)) for s, p in zip(found.scores, found.precision) if p == p]
    chart = unit_chart("Share of right detections by score", {"p": line}, x_label="score", diagonal=True, bars=bars)
    high = sum(c * (s - p) for s, p, c in zip(found.scores, found.precision, found.counts) if c) / found.counts.sum()
    words = "too high" if high > 0.01 else "too low" if high < -0.01 else "about right"
    text = (
        f"Scores are {words} on average: by {100 * abs(high):.1f} points."
        if words != "about right"
        else "Scores are about right."
    )
    rows = [(f"{i / BINS:.1f} to {(i + 1) / BINS:.1f}", str(c), points(s) if c else "-", points(p) if c else "-")
            for i, (c, s, p) in enumerate(zip(found.counts, found.scores, found.precision))]  # fmt: skip
    numbers = html_table(["scores", "detections", "mean score", "right"], rows)
    out = f"<p>Expected calibration error: {points(found.error)} points. {text}</p>"
    return f"{out}<div class=beside>{chart}{numbers}</div>"


def pictures(report: RunReport) -> str:
    """The worst images, and places where the labels may be wrong."""
    out = (
        "<p class=quiet>Left as labelled, right as found from the best score of each class on. "
        "<span class=good>Green</span>: both agree (IoU 0.5). <span class=bad>Red</span>: they do not.</p>"
        "<h3>Images with the most errors</h3>" + _gallery(report.worst, "pairs", "No image has an error.")
    )
    out += (
        "<h3>Perhaps wrong labels</h3><p class=quiet>The most confident detections where nothing, or another class, is "
        "labelled; then the largest objects that nothing found.</p>"
    )
    return out + _gallery(report.doubtful, "places", "There are none.")


def _gallery(pairs: Sequence[PicturePair], kind: str, none: str) -> str:
    if not pairs:
        return f"<p>{none}</p>"
    shown = (
        f"<figure><div class=two>{image(pair.truth, 'as labelled')}{image(pair.found, 'as found')}</div>"
        f"<p class=quiet>{escaped(pair.caption)}</p></figure>"
        for pair in pairs
    )
    return f"<div class={kind}>{''.join(shown)}</div>"


def proposals(report: RunReport) -> str:
    """How many objects the first stage reaches."""
    recall = report.metrics.get("proposals")
    if recall is None:
        return ""
    rows = [(limit, *(points(recall[limit + size]) for size in ("", *"sml"))) for limit in ("AR100", "AR1000")]
    return "<h3>Proposals of the first stage</h3>" + html_table(
        ["average recall", "all", "small", "medium", "large"], rows
    )
