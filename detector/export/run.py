"""`detector export`: a checkpoint becomes a file for another engine, which is opened again and checked on real images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torchvision

from detector import __version__
from detector.config.config import Config
from detector.errors import ConfigError, DataError
from detector.export.calibration import CalibrationImages
from detector.export.card import Batches, Card
from detector.export.engines import TARGETS, open_engine
from detector.export.exported import over
from detector.export.graph import DetectionGraph, padded
from detector.export.report import lines, verify
from detector.files import check_new_file, make_folder, write_text
from detector.inference.folder import find_images
from detector.inference.predictor import Predictor, load_predictor
from detector.modeling.preprocess import round_up
from detector.records.geometry import Size

Score = Callable[[Predictor], float]
SAMPLE = 200  # images whose sizes decide about that of the graph
LEAST_STEPS = 3  # least side of a graph for several sizes, in divisors: torch.export needs maps of several cells


def export(
    checkpoint: Path, to: str, output: Path, images: Sequence[str], *, size: Sequence[int] | None = None,
    dynamic: bool = False, batch: int = 1, precision: str = "float32", calibrate: Sequence[str] = (),
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
        dynamic: a graph for images of all sizes that the checkpoint's rule of resizing gives, instead of one.
        batch: images at once.
        precision: one of the target's.
        calibrate: for int8, images as for `images` whose ranges decide; none: those that the checkpoint was trained on.
        overrides: changes to the checkpoint's configuration.
        trust: import the custom code that the checkpoint refers to.
        scorer: of the checkpoint, the function that gives the AP of it and of the export; None: it is not compared.
        show: receives lines about what is found.

    Raises ConfigError, DataError and CheckpointError for wrong input, before anything is written.
    """
    target, report_file = TARGETS[to], output.parent / "report.json"
    _check_request(to, output, dynamic=dynamic, precision=precision)
    for path in [*target.files(output), report_file]:
        check_new_file(path, "name a file in another folder")
    target.check(precision)
    jobs = find_images(images, output.with_name(f".{output.name}.none"))  # no pictures are written
    predictor = load_predictor(checkpoint, trust, overrides=overrides, device="cpu")
    if predictor.model.needs_proposals:
        raise ConfigError(f"{checkpoint}: a detector without an RPN (model.rpn is precomputed) cannot be exported")
    score = None if scorer is None else scorer(predictor)
    if dynamic:
        least, size = bounds(predictor)
    else:
        least, size = None, graph_size(predictor, size, [job.path for job in jobs])
    calibration = CalibrationImages(predictor, calibrate, size, batch) if precision == "int8" else ()
    make_folder(output.parent, "name another file")
    with TemporaryDirectory(dir=output.parent, prefix=".export-") as folder:
        made = Path(folder) / output.name
        card = write(predictor, target, made, size, batch, precision=precision, calibration=calibration, least=least)
        sides = [str(most) if least is None else f"{least[i]}..{most}" for i, most in enumerate(size)]
        show(f"{output}: {batch} x 3 x {' x '.join(sides)} -> {', '.join(card.outputs)}")
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


def _check_request(to: str, output: Path, *, dynamic: bool, precision: str) -> None:
    """Raise ConfigError for what a target does not make."""
    target = TARGETS[to]
    if output.suffix != target.suffix:
        raise ConfigError(f"--output {output}: a file for {to} ends in {target.suffix}")
    if dynamic and not target.takes_sizes:
        raise ConfigError(f"--dynamic: not for {to}, whose code is for one size; use --size H W")
    if precision not in target.precisions:
        able = [name for name, other in TARGETS.items() if precision in other.precisions]
        raise ConfigError(f"--precision {precision}: not for {to}; choose --to {' or '.join(able)}")


def graph_size(predictor: Predictor, wanted: Sequence[int] | None, images: Sequence[Path]) -> Size:
    """(h, w) of the graph, a multiple of the divisor: the size to which most images are padded, unless one is given."""
    if wanted is not None:
        return round_up(wanted, predictor.model.preprocess.divisor)
    prepared = (predictor.prepare(predictor.read(path)) for path in images[:SAMPLE])
    return Counter(predictor.model.preprocess.padded_size(image) for image in prepared).most_common(1)[0][0]


def bounds(predictor: Predictor) -> tuple[Size, Size]:
    """The least and the greatest (h, w) of a graph for several sizes, multiples of the divisor."""
    divisor = predictor.model.preprocess.divisor
    least, longest = LEAST_STEPS * divisor, predictor.resize.long
    h, w = round_up((longest, longest), divisor)
    return (least, least), (max(h, least + divisor), max(w, least + divisor))


def write(
    predictor: Predictor, target: Any, output: Path, size: Size, batch: int, *, precision: str = "float32",
    calibration: Batches = (), least: Size | None = None,
) -> Card:  # fmt: skip
    """Write the file; returns what it says of itself. Raises DataError if there is no room for it."""
    graph = DetectionGraph(predictor.model, portable=True).eval()
    divisor = predictor.model.preprocess.divisor
    size_of_trace = (
        size if least is None else (least[0], least[1] + divisor)
    )  # sides that differ are never taken for one
    inputs = padded([torch.full((3, *size_of_trace), 114, dtype=torch.uint8)] * batch, size_of_trace)
    with torch.no_grad():
        outputs = list(graph.find(*inputs))  # which also makes the anchors of this size
    card = card_of(predictor, outputs, size, batch)
    card = replace(card, precision=precision, least_size=least, divisor=divisor)
    try:
        target.write(graph, inputs, card, output, calibration)
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
