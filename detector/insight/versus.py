"""The part of a page that compares runs on the same images: what differs, and whether by more than chance."""

from __future__ import annotations

from collections.abc import Sequence

from detector.errors import DataError
from detector.insight.analysis import Analysis
from detector.insight.bootstrap import Interval
from detector.insight.overview import METRICS, first_rows, range_of
from detector.insight.page import html_table, points, signed
from detector.insight.run_report import RunReport
from detector.insight.svg import escaped


def check_comparable(reports: Sequence[RunReport]) -> None:
    """Raise DataError for runs that were not scored on the same images and objects."""
    first = reports[0]
    for other in reports[1:]:
        if _truth(first.boxes) != _truth(other.boxes):
            raise DataError(
                f"{other.record.folder} and {first.record.folder} are scored on different images or objects (data.val); compare "
                "runs with the same val, or name one run"
            )


def _truth(analysis: Analysis) -> tuple[list[int], list[tuple[int, str, float]]]:
    """The images and their objects, whatever the order of the objects and the numbers of the classes."""
    errors, names = analysis.errors, [one.name for one in analysis.classes]
    named = [names[label] for label in errors.object_labels.tolist()]
    return analysis.image_ids, sorted(zip(errors.object_images.tolist(), named, errors.object_areas.tolist()))


def versus(first: RunReport, other: RunReport) -> str:
    """Another run less the first: a paired bootstrap of all metrics, sizes and classes."""
    out = f"<h3>{escaped(other.name)} less {escaped(first.name)}</h3>"
    for kind in (kind for kind in first.analyses if kind in other.analyses):
        out += "" if len(first.analyses) == 1 else f"<p>{'Boxes' if kind == 'bbox' else 'Masks'}:</p>"
        names = escaped(first.name), escaped(other.name)
        out += _compared(first.analyses[kind], other.analyses[kind], names)
    return out


def _compared(first: Analysis, other: Analysis, names: tuple[str, str]) -> str:
    differences = other.resampled.difference(first.resampled)
    main = differences["AP"]
    out = f"<p class=verdict><b>{escaped(_sentence(main))}</b></p>"
    rows = [
        _row(name, first.resampled.interval(name).value, other.resampled.interval(name).value, differences[name])
        for name in METRICS
    ]
    heads = ["", *names, "difference", "95 % interval", ""]
    out += html_table(heads, rows)
    out += (
        f"<p class=quiet>Points of 100; the intervals are of {other.resampled.samples()} bootstrap samples of the images, the "
        "same ones for both runs.</p>"
    )
    number = {one.name: label for label, one in enumerate(first.classes)}
    common = [(label, number[one.name]) for label, one in enumerate(other.classes) if one.name in number]
    of_class = {label: other.resampled.difference_of_class(first.resampled, label, own) for label, own in common}
    common.sort(
        key=lambda pair: -abs(of_class[pair[0]].value) if of_class[pair[0]].value == of_class[pair[0]].value else 1
    )
    lines = [
        _row(escaped(other.classes[a].name), first.classes[b].ap.value, other.classes[a].ap.value, of_class[a])
        for a, b in common
    ]
    return (
        out
        + "<p>AP of each class, the largest difference first:</p>"
        + first_rows(lines, lambda part: html_table(heads, part), "classes")
    )


def _row(name: str, first: float, other: float, difference: Interval) -> tuple[str, ...]:
    word = ""
    if difference.excludes_zero():
        word = "<span class=good>better</span>" if difference.value > 0 else "<span class=bad>worse</span>"
    interval = (
        "no interval"
        if range_of(difference) == "no interval"
        else f"{signed(difference.low)} to {signed(difference.high)}"
    )
    return name, points(first), points(other), signed(difference.value), interval, word


def _sentence(difference: Interval) -> str:
    if difference.value != difference.value:
        return "Nothing can be compared: the split has no objects."
    size = f"{100 * abs(difference.value):.1f} AP"
    if difference.low != difference.low:
        return f"A difference of {signed(difference.value)} AP on one image says nothing about others."
    if not difference.excludes_zero():
        return f"No clear difference: {signed(difference.value)} AP, and the interval holds 0. Other images may turn it round."
    return f"{'Better' if difference.value > 0 else 'Worse'} by {size}: the interval of the difference does not hold 0."
