"""Every image of a split through a detector, with the step up to which each of its objects comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detector.checkpoint import read_checkpoint
from detector.data.box_arrays import corners
from detector.data.coco_reader import read_coco_file
from detector.data.loader import eval_loader
from detector.data.settings import build_dataset
from detector.distributed import is_rank0, map_sharded
from detector.errors import ConfigError
from detector.evaluation.coco import Scored
from detector.evaluation.run import detect_all, score_detections
from detector.files import check_there
from detector.inference.predictor import Predictor, TiledPredictor, load_predictor, to_original, to_prepared
from detector.insight.funnel import Loss, lost_at
from detector.insight.trace import can_trace, region_levels, trace
from detector.progress import Progress
from detector.protocols import DataSet
from detector.recipe import Scoring
from detector.records.geometry import Size
from detector.structures import Detections, image_size


class _Objects(NamedTuple):
    """The objects of one image."""

    ids: np.ndarray  # (G,) of the entries in `Scored.objects`
    boxes: np.ndarray  # (G, 4) xyxy
    labels: np.ndarray  # (G,) of the model


@dataclass(frozen=True)
class TracedRun:
    """The best checkpoint of a run and what it finds in val."""

    checkpoint: dict[str, Any]
    predictor: Predictor
    dataset: DataSet
    scored: Scored | None
    """None on other processes than rank 0."""
    losses: dict[int, Loss] | None
    """Where each object is lost if it is missed, by the id of its entry; None where that is not followed."""


NOTHING = _Objects(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.int64))


def check_run(folder: Path) -> None:
    """Raise ConfigError where a folder of a training is none, CheckpointError where it has no checkpoint to look at."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; name that of a training, with its best.pth")
    check_there(folder / "best.pth")


def trace_run(
    folder: Path, *, overrides: Sequence[str] = (), trust: bool = False, device: str = "auto",
    check: Callable[[], None] | None = None,
) -> TracedRun:  # fmt: skip
    """Every image of val through the best checkpoint of a run, as the training scored it: in tiles, with `data.tiles`.

    Args:
        folder: of the run.
        overrides: `key.path=value` changes of the checkpoint's configuration.
        trust: import the custom code that it names.
        device: as for `detector.load`.
        check: called before each image; it may raise to stop.
    """
    path = folder / "best.pth"
    checkpoint = read_checkpoint(path)
    predictor = load_predictor(path, trust, overrides=overrides, device=device)
    data, shapes = predictor.config.needed_data(), predictor.config.evaluate.shapes
    predictor = predictor if data.tiles is None else predictor.tiled(data.tiles.of_evaluation())
    dataset = build_dataset(data, "val", class_names=predictor.class_names)
    scoring = Scoring(shapes=[shape for shape in shapes if shape == "segm"])  # by COCO's standard
    scored, losses = trace_split(predictor, dataset, workers=data.workers, scoring=scoring, check=check)
    return TracedRun(checkpoint, predictor, dataset, scored, losses)


def trace_split(
    predictor: Predictor, dataset: DataSet, *, workers: int, scoring: Scoring, check: Callable[[], None] | None = None
) -> tuple[Scored | None, dict[int, Loss] | None]:
    """The scored detections of a split, on rank 0 alone, and where its objects are lost, by the id of their entry.

    None instead of the latter for a detector whose stages are not of this package, and for one that sees tiles.

    Args:
        predictor: the detector, of a checkpoint.
        dataset: the split.
        workers: processes that load images.
        scoring: the shapes that are scored.
        check: called before each image; it may raise to stop.
    """
    objects = _objects_by_image(predictor, dataset)
    losses: dict[int, Loss] = {}
    scored: list[Scored] = []
    given: Any = getattr(dataset, "proposals", None) if predictor.model.needs_proposals else None

    def work(indices: list[int]) -> Iterator[tuple[int, Detections, dict[int, Loss]]]:
        for [image], [size], [image_id] in eval_loader(dataset, predictor.prepare, workers, 1, indices):
            if check is not None:
                check()
            proposals = None if given is None else to_prepared(given[image_id], image, size)
            yield image_id, *_traced(predictor, image, size, proposals, objects.get(image_id, NOTHING))

    def every() -> Iterator[tuple[int, Detections]]:
        with Progress(total=len(dataset), desc="trace", unit="img", shown=is_rank0()) as bar:
            for image_id, found, lost in map_sharded(range(len(dataset)), work):
                losses.update(lost)
                yield image_id, found
                bar.update()

    traced = can_trace(predictor.model) and not isinstance(predictor, TiledPredictor)
    found = every() if traced else detect_all(predictor, dataset, 1, workers, True, check)
    score_detections(predictor, dataset, found, scoring=scoring, observe=scored.append)
    return (scored[0] if scored else None), losses if traced else None


@torch.inference_mode()
def _traced(
    predictor: Predictor, image: Tensor, size: Size, proposals: Any, objects: _Objects
) -> tuple[Detections, dict[int, Loss]]:
    """The detections of a prepared image in the pixels of its original `size`, and where its objects are lost."""
    steps = trace(predictor.model, image, proposals)
    found = replace(steps.detections, proposals=steps.proposals)
    factor = (np.array(image_size(image)) / np.array(size))[[1, 0, 1, 0]]
    boxes = torch.from_numpy(objects.boxes * factor).to(steps.scores.device, torch.float32)
    lost = lost_at(steps, boxes, torch.from_numpy(objects.labels).to(boxes.device)).tolist()
    levels = region_levels(predictor.model.roi_head, boxes)
    places = [-1] * len(lost) if levels is None else levels.tolist()
    by_id = {number: Loss(*loss) for number, *loss in zip(objects.ids.tolist(), lost, places)}
    return predictor.named(to_original(found, image, size)), by_id


def _objects_by_image(predictor: Predictor, dataset: DataSet) -> dict[int, _Objects]:
    """The objects of each image that has any; crowd regions and classes that are not scored are left out."""
    coco = read_coco_file(dataset.annotation_file)
    label_of = {
        number: 0 if predictor.model.reports_proposals else predictor.class_names.index(name)
        for number, name in zip(dataset.category_ids, dataset.class_names)
    }
    labels = np.array([label_of.get(number, -1) for number in coco.category_ids.tolist()], dtype=np.int64)
    rows = np.flatnonzero((labels[coco.category_rows] >= 0) & ~coco.crowd)
    every = _Objects(rows + 1, corners(coco.xywh[rows]), labels[coco.category_rows[rows]])
    images = coco.image_rows[rows]
    order = np.argsort(images, kind="stable")
    groups = np.split(order, np.bincount(images, minlength=len(coco.image_ids)).cumsum()[:-1])
    return {
        image_id: _Objects(*(column[group] for column in every))
        for image_id, group in zip(coco.image_ids.tolist(), groups)
        if len(group)
    }
