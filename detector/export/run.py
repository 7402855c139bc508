"""`detector export`: a checkpoint becomes a file for another engine, which is opened again and checked on real images."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision

from detector import __version__
from detector.config.config import Config
from detector.errors import ConfigError
from detector.export.agreement import BOX, MASK, SCORE, Agreement, agreement
from detector.export.card import Card
from detector.export.engines import TARGETS
from detector.export.exported import Eager, over
from detector.export.graph import DetectionGraph, padded
from detector.files import check_new_file, make_folder, write_text
from detector.inference.folder import find_images
from detector.inference.predictor import Predictor, load_predictor
from detector.modeling.preprocess import round_up
from detector.progress import Progress
from detector.records.geometry import Size
from detector.structures import image_size

SAMPLE = 200  # images whose sizes decide about that of the graph


def export(
    checkpoint: Path, to: str, output: Path, images: Sequence[str], *, size: Sequence[int] | None = None, batch: int = 1,
    overrides: Sequence[str] = (), trust: bool = False, score: Callable[[Predictor], float] | None = None,
    show: Callable[[str], object] = print,
) -> dict[str, Any]:  # fmt: skip
    """Write `output` and report.json beside it; returns the report, whose "ok" says whether both find the same.

    Args:
        checkpoint: of this project, or the name of a published detector.
        to: a key of TARGETS.
        output: the new file, with the suffix of the target.
        images: files, folders and patterns in which both must find the same.
        size: (h, w) of the graph in pixels; None: the size to which most of the images are padded.
        batch: images at once.
        overrides: changes to the checkpoint's configuration.
        trust: import the custom code that the checkpoint refers to.
        score: the AP of a predictor; None: it is not compared.
        show: receives lines about what is found.

    Raises ConfigError, DataError and CheckpointError for wrong input, before anything is written.
    """
    target, report_file = TARGETS[to], output.parent / "report.json"
    if output.suffix != target.suffix:
        raise ConfigError(f"--output {output}: a file for {to} ends in {target.suffix}")
    for path in target.files(output) + [report_file]:
        check_new_file(path)
    jobs = find_images(images, output.parent)
    predictor = load_predictor(checkpoint, trust, overrides=overrides, device="cpu")
    if predictor.model.needs_proposals:
        raise ConfigError(f"{checkpoint}: a detector without an RPN (model.rpn is precomputed) cannot be exported")
    size = graph_size(predictor, size, [job.path for job in jobs])
    make_folder(output.parent, "name another file")
    card = write(predictor, target, output, size, batch)
    show(f"{output}: {batch} x 3 x {size[0]} x {size[1]} -> {', '.join(card.outputs)}")
    exported = over(target(output))
    report = verify(predictor, exported, [job.path for job in jobs], card)
    for line in lines(report):
        show(line)
    if score is not None:
        report["ap"] = {"checkpoint": score(predictor), "export": score(exported)}
    write_text(report_file, json.dumps(report, indent=2) + "\n")
    return report


def graph_size(predictor: Predictor, wanted: Sequence[int] | None, images: Sequence[Path]) -> Size:
    """(h, w) of the graph: the size to which most of the images are padded, unless one is given."""
    if wanted is not None:
        return round_up(wanted, predictor.model.preprocess.divisor)
    prepared = (predictor.prepare(predictor.read(path)) for path in images[:SAMPLE])
    return Counter(predictor.model.preprocess.padded_size(image) for image in prepared).most_common(1)[0][0]


def write(predictor: Predictor, target: Any, output: Path, size: Size, batch: int) -> Card:
    """Write the file; returns what it says of itself."""
    graph = DetectionGraph(predictor.model, portable=True).eval()
    inputs = padded([torch.full((3, *size), 114, dtype=torch.uint8)] * batch, size)
    with torch.no_grad():
        graph(*inputs)  # after which it knows its outputs, and has the anchors of this size
    card = card_of(predictor, graph.outputs, size, batch)
    target.write(graph, inputs, card, output)
    return card


def card_of(predictor: Predictor, outputs: list[str], size: Size, batch: int) -> Card:
    """What an exported file of this detector says of itself."""
    config: Config = predictor.config
    branch: Any = getattr(predictor.model.roi_head, "keypoint", None)
    pose = predictor.pose
    return Card(
        class_names=predictor.class_names, category_ids=predictor.category_ids, config=dict(config.raw), size=size,
        batch=batch, outputs=outputs, proposals_only=predictor.model.reports_proposals,
        pose=None if pose is None else {"names": list(pose.names), "skeleton": [list(bone) for bone in pose.skeleton]},
        keypoints=None if branch is None else {"scores": branch.head.scores, "offset": branch.head.offset},
        versions={"detector": __version__, "torch": str(torch.__version__), "torchvision": str(torchvision.__version__)},
    )  # fmt: skip


def verify(predictor: Predictor, exported: Predictor, images: Sequence[Path], card: Card) -> dict[str, Any]:
    """The report about what both find in the same images, resized for the graph and padded to its size.

    Padding changes what a detector finds near the border; `padding` says how much, beside the checkpoint without it.
    """
    resize = partial(predictor.resize.resize_within, limit=card.size)
    same = over(Eager(DetectionGraph(predictor.model, portable=False), card))
    threshold = getattr(getattr(predictor.model.roi_head, "selection", None), "score_threshold", 0.0)
    rows: list[Agreement] = []
    unpadded: list[Agreement] = []
    seconds: tuple[list[float], list[float]] = ([], [])
    with Progress(total=len(images), unit="img", desc="check") as bar:
        for path in images:
            image = predictor.read(path)
            prepared, size = resize(image), image_size(image)
            found = []
            for i, side in enumerate((predictor, exported)):
                begun = time.perf_counter()
                found += side.detect([prepared], [size])
                seconds[i].append(time.perf_counter() - begun)
            unpadded.append(agreement(str(path), found[0], found[1], threshold))
            rows.append(agreement(str(path), same.detect([prepared], [size])[0], found[1], threshold))
            bar.update()
    return {
        "ok": all(row.ok for row in rows), "tolerance": {"box_px": BOX, "score": SCORE, "mask": MASK},
        "images": len(rows), "both": sum(row.both for row in rows),
        "only_checkpoint": sum(row.only_checkpoint for row in rows), "only_export": sum(row.only_export for row in rows),
        "at_a_limit": sum(row.at_a_limit for row in rows),
        "largest": {name: max(getattr(row, name) for row in rows) for name in ("box", "score", "mask")},
        "padding": {
            "images": sum(not row.ok for row in unpadded),
            "only_checkpoint": sum(row.only_checkpoint for row in unpadded),
            "only_export": sum(row.only_export for row in unpadded),
        },
        "median_ms_per_image": {"checkpoint": 1e3 * median(seconds[0]), "export": 1e3 * median(seconds[1])},
        "versions": card.versions, "size": card.size, "batch": card.batch, "by_image": [row.row() for row in rows],
    }  # fmt: skip


def lines(report: dict[str, Any]) -> list[str]:
    """The report in words."""
    largest, alone = report["largest"], report["only_checkpoint"] + report["only_export"]
    found = [
        f"{report['images']} images: {report['both']} detections in both, {alone} in one alone"
        f" ({report['at_a_limit']} of them at the score threshold or in the last row); largest difference"
        f" {largest['box']:.2g} px, {largest['score']:.1g} in score"
    ]
    padding, (h, w) = report["padding"], report["size"]
    if padding["images"]:
        found.append(
            f"padding to {h} x {w} changes what the checkpoint itself finds in {padding['images']} of them: "
            f"{padding['only_checkpoint']} detections without it, {padding['only_export']} with it"
        )
    bad = [row["image"] for row in report["by_image"] if not row["ok"]]
    return [*found, f"NOT the same in {len(bad)} images, such as {bad[0]}: see report.json" if bad else "the same"]
