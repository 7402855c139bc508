"""The report about an exported file: what it finds in real images beside what its checkpoint finds."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from detector.export.agreement import DIFFERENCES, TOLERANCES, Agreement, agreement
from detector.export.card import Card
from detector.export.exported import Eager, over
from detector.export.graph import DetectionGraph
from detector.inference.predictor import Predictor
from detector.modeling.roi_heads.selection import CANDIDATES, DetectionSelection
from detector.progress import Progress
from detector.records.geometry import Size
from detector.structures import Detections, image_size


def verify(predictor: Predictor, exported: Predictor, images: Sequence[Path], card: Card) -> dict[str, Any]:
    """The report about three detectors: the export, the checkpoint on the same padded pixels, and the checkpoint as it is used.

    The first two must agree within the tolerance of the precision. The last two, which are in float32, differ where the graph's
    size makes an image smaller or pads it.
    """
    tolerance = TOLERANCES[card.precision]
    same, loose = (
        over(Eager(DetectionGraph(m, portable=False), card)) for m in (predictor.model, unsuppressed(predictor))
    )
    head: Any = predictor.model.roi_head
    rule = {"threshold": least_score(head.selection), "limit": head.selection.max_detections}
    rows: list[Agreement] = []
    in_use: list[Agreement] = []
    smaller, seconds = 0, ([], [])  # type: tuple[int, tuple[list[float], list[float]]]
    with Progress(total=len(images), unit="img", desc="check") as bar:
        for first in range(0, len(images), card.batch):
            names = [str(path) for path in images[first : first + card.batch]]
            pictures = [predictor.read(path) for path in images[first : first + card.batch]]
            sizes, own = [image_size(p) for p in pictures], [predictor.prepare(p) for p in pictures]
            prepared = [exported.prepare(p) for p in pictures]
            smaller += sum(a.shape != b.shape for a, b in zip(own, prepared))
            as_used = _timed(seconds[0], predictor.detect, own, sizes)
            found = _timed(seconds[1], exported.detect, prepared, sizes)
            for i, (name, used, want, got) in enumerate(zip(names, as_used, same.detect(prepared, sizes), found)):
                every = partial(_one, loose, prepared[i], sizes[i])
                rows.append(agreement(name, want, got, tolerance=tolerance, candidates=every, **rule))
                in_use.append(agreement(name, used, want, **rule))
            bar.update(len(pictures))
    every_one = sum(row.both + row.only_first + row.only_second - row.at_a_limit for row in rows)
    share = 1 - sum(row.unlike for row in rows) / max(every_one, 1)
    return {
        "ok": share >= tolerance.share and any(row.both for row in rows), "precision": card.precision,
        "tolerance": asdict(tolerance), "share": share, "images": len(rows), "beyond": sum(row.beyond for row in rows),
        "both": sum(row.both for row in rows), "only_checkpoint": sum(row.only_first for row in rows),
        "only_export": sum(row.only_second for row in rows), "at_a_limit": sum(row.at_a_limit for row in rows),
        "ties": sum(row.ties for row in rows), "largest": {key: max(getattr(row, key) for row in rows) for key in DIFFERENCES},
        "checkpoint_at_its_own_size": {
            "images_made_smaller": smaller, "images_that_differ": sum(not row.ok for row in in_use),
            "only_at_its_own_size": sum(row.only_first for row in in_use),
            "only_at_that_of_the_graph": sum(row.only_second for row in in_use),
        },
        "median_ms_per_image": {"checkpoint": 1e3 * median(seconds[0]), "export": 1e3 * median(seconds[1])},
        "outputs": card.outputs, "versions": card.versions, "size": card.size, "least_size": card.least_size, "batch": card.batch,
        "by_image": [row.row() for row in rows],
    }  # fmt: skip


def least_score(selection: Any) -> float:
    """Below which a second stage reports nothing."""
    if not isinstance(selection, DetectionSelection):  # the best proposals, whatever their scores
        return 0.0
    return selection.score_threshold if selection.nms == "hard" else selection.soft_min_score


def unsuppressed(predictor: Predictor) -> Any:
    """The detector without suppression of its detections, for boxes among which rounding chooses."""
    model: Any = copy.deepcopy(predictor.model)
    if isinstance(model.roi_head.selection, DetectionSelection):
        model.roi_head.selection = replace(model.roi_head.selection, nms="hard", nms_iou=1.0, max_detections=CANDIDATES)
    return model


def _one(predictor: Predictor, image: Tensor, size: Size) -> Detections:
    return predictor.detect([image], [size])[0]


def _timed(seconds: list[float], detect: Callable[..., list[Detections]], *batch: list) -> list[Detections]:
    """What `detect` finds in a batch; its time for each image is appended."""
    begun = time.perf_counter()
    found = detect(*batch)
    seconds.append((time.perf_counter() - begun) / len(found))
    return found


def lines(report: dict[str, Any]) -> list[str]:
    """The report in words."""
    alone = report["only_checkpoint"] + report["only_export"]
    units = {"box": "px", "score": "in score", "mask": "in a mask", "keypoint": "px of a keypoint"}
    shown = [
        "box",
        "score",
        *(["mask"] * ("masks" in report["outputs"])),
        *(["keypoint"] * ("heat_maps" in report["outputs"])),
    ]
    largest = ", ".join(f"{report['largest'][name]:.1g} {units[name]}" for name in shown)
    found = [
        f"{report['images']} images: {report['both']} detections in both, {alone} in one alone; differences up to {largest}"
    ]
    if report["at_a_limit"] or report["ties"]:
        found.append(
            f"decided by rounding: {report['at_a_limit']} at the score threshold or in the last row, {report['ties']} of two "
            "boxes with equal scores"
        )
    use, (h, w) = report["checkpoint_at_its_own_size"], report["size"]
    if use["images_that_differ"]:
        found.append(
            f"the size {h} x {w}, for which {use['images_made_smaller']} images are made smaller and others padded, changes what"
            f" the checkpoint itself finds in {use['images_that_differ']}: {use['only_at_its_own_size']} detections only at its"
            f" own size, {use['only_at_that_of_the_graph']} only at this one"
        )
    return [*found, agreement_verdict(report)]


def agreement_verdict(report: dict[str, Any]) -> str:
    """Whether the export is as good as its precision promises."""
    if not report["both"]:
        return "NOT checked: nothing is found in these images; give others to --check"
    limits, bad = report["tolerance"], [row["image"] for row in report["by_image"] if not row["ok"]]
    if limits["share"] < 1:
        box = "an IoU of 0.5" if limits["box"] is None else f"{limits['box']:g} px"
        said = f"{report['share']:.1%} of the detections are alike to {box} and {limits['score']:g} in score"
        said += f", of those with a score of {limits['least_score']:g} or more" * (limits["least_score"] > 0)
        enough = "enough" if report["ok"] else "NOT enough"
        return f"{said}: {enough} for {report['precision']}, the least is {limits['share']:.0%}"
    return "the same" if report["ok"] else f"NOT the same in {len(bad)} images, such as {bad[0]}: see report.json"
