"""The result of a check as aligned text, and as plain values for a JSON file."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from detector.dataset_check.anchors import AnchorFit
from detector.dataset_check.check import CheckResult, Summary
from detector.dataset_check.text_table import text_table

SHOWN = 3  # places of a finding in the text
CLASSES = 100  # in the text; a JSON file has all


def report_text(result: CheckResult) -> str:
    """Findings, contents, classes, box sizes and anchors, one table below the other."""
    parts = [_findings(result), _contents(result), _classes(result), _levels(result), _anchors(result)]
    return "\n\n".join(part for part in parts if part)


def report_json(result: CheckResult) -> dict[str, Any]:
    """The same for a JSON file; of places, the first few as well."""
    findings = [
        {"kind": f.kind, "severity": f.severity, "split": f.split, "count": f.count, "effect": f.effect,
         "places": [{key: value for key, value in asdict(place).items() if value not in (None, "")}
                    for place in f.places]}
        for f in result.findings.all()
    ]  # fmt: skip
    return {
        "data": result.source,
        "errors": result.findings.count("error"),
        "warnings": result.findings.count("warning"),
        "findings": findings,
        "splits": {name: _plain_summary(summary) for name, summary in result.splits.items()},
        "better_anchors": None if result.better is None else _plain_fit(result.better),
    }


def _plain_summary(summary: Summary) -> dict[str, Any]:
    return {
        "annotations": summary.annotations,
        "folder": summary.folder,
        "images": summary.images,
        "images_without_objects": summary.without_objects,
        "objects": summary.objects,
        "crowd": summary.crowd,
        "classes": {name: {"objects": o, "images": i} for name, (o, i) in summary.classes.items()},
        "levels": {f"P{k}": count for k, count in summary.levels.items()},
        "anchors": None if summary.anchors is None else _plain_fit(summary.anchors),
    }


def _plain_fit(fit: AnchorFit) -> dict[str, Any]:
    figures = {"best_possible_recall": fit.recall, "mean_best_iou": fit.mean_iou}
    figures = {name: None if math.isnan(value) else value for name, value in figures.items()}
    return {"sizes": fit.sizes, "ratios": fit.ratios, **figures, "config": fit.config_line()}


def _findings(result: CheckResult) -> str:
    found = result.findings.all()
    if not found:
        return f"{result.source}: nothing is wrong"
    heads = [[f.severity, f.kind, f.split, str(f.count), f.effect] for f in found]
    lines = []
    for head, finding in zip(text_table(heads, "lllrl"), found):
        more = finding.count - len(finding.places[:SHOWN])
        places = [str(place) for place in finding.places[:SHOWN]] + ([f"... {more} more"] if more else [])
        lines += [head, *(f"             {place}" for place in places)]
    counts = f"{result.findings.count('error')} errors, {result.findings.count('warning')} warnings"
    return "\n".join([f"{result.source}: {counts}", *lines])


def _contents(result: CheckResult) -> str:
    rows = [["split", "images", "without objects", "objects", "crowd", "classes", "annotations"]]
    for name, s in result.splits.items():
        counts = (s.images, s.without_objects, s.objects, s.crowd, len(s.classes))
        rows.append([name, *map(str, counts), s.annotations])
    return "\n".join(text_table(rows, "lrrrrrl"))


def _classes(result: CheckResult) -> str:
    splits = result.splits.values()
    names = list(dict.fromkeys(name for s in splits for name in s.classes))
    names.sort(key=lambda name: -next(iter(splits)).classes.get(name, (0, 0))[0])  # the most frequent first
    figures = ("objects", "share", "images")
    single = len(result.splits) == 1
    rows = [["class", *(what if single else f"{split} {what}" for split in result.splits for what in figures)]]
    for name in names[:CLASSES]:
        row = [name]
        for s in splits:
            objects, images = s.classes.get(name, (0, 0))
            row += [str(objects), _percent(objects / max(s.objects, 1)), str(images)]
        rows.append(row)
    rest = [f"... {len(names) - CLASSES} more, in --json"] if len(names) > CLASSES else []
    return "\n".join(text_table(rows, "l" + "r" * (len(rows[0]) - 1)) + rest)


def _levels(result: CheckResult) -> str:
    """How many objects each level gets, and of which sqrt(w * h) they are."""
    g = result.geometry
    low, high = g.levels
    rows = [["level", "sqrt(w*h) at the training scale", *result.splits]]
    for k in range(low, high + 1):
        start, end = (g.canonical_size * 2.0 ** (edge - g.k0) for edge in (k, k + 1))
        span = [f"from {start:g}"] * (k > low) + [f"below {end:g}"] * (k < high)
        counts = [f"{s.levels[k]} {_percent(s.levels[k] / max(s.objects, 1))}" for s in result.splits.values()]
        rows.append([f"P{k}", " ".join(span) or "all", *counts])
    title = f"box sizes, resized to a short side of {max(g.resize.sides)} and a long side of {g.resize.long} at most"
    return "\n".join([title, *text_table(rows, "ll" + "r" * len(result.splits))])


def _anchors(result: CheckResult) -> str:
    fits = [(name, s.anchors) for name, s in result.splits.items() if s.anchors is not None]
    if not fits:
        return "anchors: none of ours, so nothing to say about them"
    if result.better is not None:
        fits.append(("proposed", result.better))
    rows = [["anchors", f"best possible recall (IoU >= {result.geometry.pos_iou:g})", "mean best IoU"]]
    rows += [[name, _percent(fit.recall), f"{fit.mean_iou:.3f}"] for name, fit in fits]
    lines = text_table(rows, "lrr")
    if result.better is not None:
        first = next(iter(result.splits))
        lines += [f"k-means over the boxes of {first} proposes, for a configuration or as an argument of a command:"]
        lines += [f"  {result.better.config_line()}", f"  {result.better.override()}"]
    return "\n".join(lines)


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"
