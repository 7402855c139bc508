"""`detector export`: a checkpoint becomes a file for another engine, which is opened again and checked on real images."""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torchvision
from torch import Tensor

from detector import __version__
from detector.config.config import Config
from detector.errors import ConfigError, DataError
from detector.export.agreement import TOLERANCE, Agreement, agreement
from detector.export.card import Card
from detector.export.engines import TARGETS, open_engine, optional
from detector.export.exported import Eager, over
from detector.export.graph import DetectionGraph, padded
from detector.files import check_new_file, make_folder, write_text
from detector.inference.folder import find_images
from detector.inference.predictor import Predictor, load_predictor
from detector.modeling.preprocess import round_up
from detector.modeling.roi_heads.selection import CANDIDATES, DetectionSelection
from detector.progress import Progress
from detector.records.geometry import Size
from detector.structures import Detections, image_size

Score = Callable[[Predictor], float]
SAMPLE = 200  # images whose sizes decide about that of the graph


def export(
    checkpoint: Path, to: str, output: Path, images: Sequence[str], *, size: Sequence[int] | None = None, batch: int = 1,
    overrides: Sequence[str] = (), trust: bool = False, scorer: Callable[[Predictor], Score] | None = None,
    show: Callable[[str], object] = print,
) -> dict[str, Any]:  # fmt: skip
    """Write `output` and report.json beside it; returns the report, whose "ok" says whether both find the same.

    The file gets its name when it is checked; an interruption leaves nothing.

    Args:
        checkpoint: of this project, or the name of a published detector.
        to: a key of TARGETS.
        output: the new file, with the suffix of the target.
        images: files, folders and patterns in which both must find the same.
        size: (h, w) of the graph in pixels; None: the size to which most of the images are padded.
        batch: images at once.
        overrides: changes to the checkpoint's configuration.
        trust: import the custom code that the checkpoint refers to.
        scorer: of the checkpoint, the function that gives the AP of it and of the export; None: it is not compared.
        show: receives lines about what is found.

    Raises ConfigError, DataError and CheckpointError for wrong input, before anything is written.
    """
    target, report_file = TARGETS[to], output.parent / "report.json"
    if output.suffix != target.suffix:
        raise ConfigError(f"--output {output}: a file for {to} ends in {target.suffix}")
    for path in [*target.files(output), report_file]:
        check_new_file(path, "name a file in another folder")
    for module in target.modules:
        optional(module, to)
    jobs = find_images(images, output.with_name(f".{output.name}.none"))  # no pictures are written
    predictor = load_predictor(checkpoint, trust, overrides=overrides, device="cpu")
    if predictor.model.needs_proposals:
        raise ConfigError(f"{checkpoint}: a detector without an RPN (model.rpn is precomputed) cannot be exported")
    score = None if scorer is None else scorer(predictor)
    size = graph_size(predictor, size, [job.path for job in jobs])
    make_folder(output.parent, "name another file")
    with TemporaryDirectory(dir=output.parent, prefix=".export-") as folder:
        made = Path(folder) / output.name
        card = write(predictor, target, made, size, batch)
        show(f"{output}: {batch} x 3 x {size[0]} x {size[1]} -> {', '.join(card.outputs)}")
        exported = over(open_engine(made, trust=True))  # as a user will
        report = verify(predictor, exported, [job.path for job in jobs], card)
        for line in lines(report):
            show(line)
        if score is not None:
            report["ap"] = {"checkpoint": score(predictor), "export": score(exported)}
        for source, place in zip(target.files(made), target.files(output), strict=True):
            source.replace(place)
    write_text(report_file, json.dumps(report, indent=2) + "\n")
    return report


def graph_size(predictor: Predictor, wanted: Sequence[int] | None, images: Sequence[Path]) -> Size:
    """(h, w) of the graph, a multiple of the divisor: the size to which most images are padded, unless one is given."""
    if wanted is not None:
        return round_up(wanted, predictor.model.preprocess.divisor)
    prepared = (predictor.prepare(predictor.read(path)) for path in images[:SAMPLE])
    return Counter(predictor.model.preprocess.padded_size(image) for image in prepared).most_common(1)[0][0]


def write(predictor: Predictor, target: Any, output: Path, size: Size, batch: int) -> Card:
    """Write the file; returns what it says of itself. Raises DataError if there is no room for it."""
    graph = DetectionGraph(predictor.model, portable=True).eval()
    inputs = padded([torch.full((3, *size), 114, dtype=torch.uint8)] * batch, size)
    with torch.no_grad():
        outputs = list(graph.find(*inputs))  # which also makes the anchors of this size
    card = card_of(predictor, outputs, size, batch)
    try:
        target.write(graph, inputs, card, output)
    except OSError as error:
        raise DataError(
            f"{output.parent.parent}: cannot be written to ({error}); make room, or name another file"
        ) from error
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
    """The report about three detectors: the export, the checkpoint on the same padded pixels, and the checkpoint as it is used.

    The first two must agree. The last two differ where the graph's size makes an image smaller or pads it.
    """
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
                rows.append(agreement(name, want, got, candidates=every, **rule))
                in_use.append(agreement(name, used, want, **rule))
            bar.update(len(pictures))
    return {
        "ok": all(row.ok for row in rows) and any(row.both for row in rows), "tolerance": TOLERANCE, "images": len(rows),
        "both": sum(row.both for row in rows), "only_checkpoint": sum(row.only_first for row in rows),
        "only_export": sum(row.only_second for row in rows), "at_a_limit": sum(row.at_a_limit for row in rows),
        "ties": sum(row.ties for row in rows), "largest": {key: max(getattr(row, key) for row in rows) for key in TOLERANCE},
        "checkpoint_at_its_own_size": {
            "images_made_smaller": smaller, "images_that_differ": sum(not row.ok for row in in_use),
            "only_at_its_own_size": sum(row.only_first for row in in_use),
            "only_at_that_of_the_graph": sum(row.only_second for row in in_use),
        },
        "median_ms_per_image": {"checkpoint": 1e3 * median(seconds[0]), "export": 1e3 * median(seconds[1])},
        "outputs": card.outputs, "versions": card.versions, "size": card.size, "batch": card.batch,
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
    bad = [row["image"] for row in report["by_image"] if not row["ok"]]
    if not report["both"]:
        return [*found, "NOT checked: nothing is found in these images; give others to --check"]
    return [*found, f"NOT the same in {len(bad)} images, such as {bad[0]}: see report.json" if bad else "the same"]
