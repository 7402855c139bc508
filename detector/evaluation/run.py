"""Running a predictor over a data set and scoring its detections."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from detector.coco_format import ONE_CLASS
from detector.data.describe import full_names_of
from detector.data.loader import eval_loader
from detector.data.proposal_file import pack
from detector.distributed import is_rank0, map_sharded, on_rank0
from detector.errors import DataError
from detector.evaluation.coco import Scored, score_results
from detector.evaluation.proposals import proposal_recall
from detector.evaluation.result_shapes import KEY_OF
from detector.evaluation.scope import STANDARD
from detector.files import check_new_file, write_atomically
from detector.inference.predictor import Predictor
from detector.progress import Progress
from detector.protocols import DataSet
from detector.recipe import Scoring
from detector.structures import Detections, Proposals


def evaluate_predictor(
    predictor: Predictor,
    dataset: DataSet,
    *,
    batch_size: int = 1,
    workers: int = 2,
    progress: bool = True,
    check: Callable[[], None] | None = None,
    scoring: Scoring = STANDARD,
    observe: Callable[[Scored], None] | None = None,
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Detect on every image and score the detections: (metrics, results in COCO form), the same on all processes.

    Metrics are those of `evaluate_results` and, where the detector gives proposals, of `proposal_recall` under "proposals". The
    results have the ids of the annotation file; those of a detector that reports proposals are scored as ONE_CLASS. Detections of
    classes that the data set does not have are left out.

    Args:
        predictor: the detector.
        dataset: images, and the annotation file for scoring.
        batch_size: images per batch.
        workers: processes that load images.
        progress: show a progress bar.
        check: called before each batch; it may raise to stop the evaluation.
        scoring: how detections are scored beside COCO's standard metrics.
        observe: called on rank 0 with what the metrics come from.
    """
    found = detect_all(predictor, dataset, batch_size, workers, progress, check)
    return score_detections(predictor, dataset, found, scoring=scoring, observe=observe)


def score_detections(
    predictor: Predictor, dataset: DataSet, every: Iterable[tuple[int, Detections]], *, scoring: Scoring = STANDARD,
    observe: Callable[[Scored], None] | None = None,
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:  # fmt: skip
    """The same of the detections of `every` image, (image id, detections with their proposals) each, on all processes."""
    results: list[dict[str, Any]] = []
    image_ids: list[int] = []
    proposals: dict[int, Tensor] = {}
    fields: set[str] = set()
    as_one_class = predictor.model.reports_proposals
    id_of = dict(zip(dataset.class_names, dataset.category_ids))
    category_ids: list[Any] = list(ONE_CLASS) if as_one_class else [id_of.get(name) for name in predictor.class_names]
    for image_id, found in every:
        rows = found.to_coco(image_id, category_ids)
        results += [row for row in rows if row["category_id"] is not None]
        fields |= {name for name in KEY_OF if getattr(found, name) is not None}
        image_ids.append(image_id)
        if found.proposals is not None:
            proposals[image_id] = found.proposals.boxes

    def score() -> dict[str, dict[str, Any]]:
        truth, classes = dataset.annotation_file, dataset.category_ids
        # by id: a data set of the user's own may name its classes otherwise than the file
        rows = [{key: value for key, value in row.items() if key != "category_name"} for row in results]
        scored = score_results(
            truth, rows, image_ids, classes, fields=fields, as_one_class=as_one_class, scoring=scoring
        )
        if proposals:
            scored.metrics["proposals"] = proposal_recall(truth, proposals, classes)
        if observe is not None:
            observe(scored)
        return scored.metrics

    return on_rank0(score), results


def _proposals_of(found: Detections) -> Proposals:
    """The first stage's boxes, which a predictor keeps with the detections."""
    if found.proposals is None:
        raise DataError("an exported file gives detections alone; write the proposals of its checkpoint")
    return found.proposals


def write_proposals(
    predictor: Predictor, dataset: DataSet, path: Path, *, workers: int = 2, progress: bool = True
) -> dict[str, float]:
    """Write the proposals of every image to a new file (data/proposal_file.py); returns their `proposal_recall`.

    Raises DataError for a path that exists or cannot be written.
    """
    proposals = {
        image_id: _proposals_of(found) for image_id, found in detect_all(predictor, dataset, 1, workers, progress)
    }

    def write() -> dict[str, float]:
        check_new_file(path)  # again: detection takes long
        content = pack(list(proposals), full_names_of(dataset), dataset.sizes.tolist(), list(proposals.values()))
        write_atomically(path, content)
        boxes = {image_id: regions.boxes for image_id, regions in proposals.items()}
        return proposal_recall(dataset.annotation_file, boxes, dataset.category_ids)

    return on_rank0(write)


def detect_all(
    predictor: Predictor,
    dataset: DataSet,
    batch_size: int,
    workers: int,
    progress: bool,
    check: Callable[[], None] | None = None,
) -> Iterator[tuple[int, Detections]]:
    """Yield (image id, detections with their proposals) of every image, in the order of the data set.

    The images are distributed over the processes.
    """
    given = getattr(dataset, "proposals", None)  # optional member of a data set

    def detect(indices: list[int]) -> Iterator[tuple[int, Detections]]:
        if predictor.model.needs_proposals and given is None:
            file = dataset.annotation_file
            raise DataError(f"{file}: this detector has no RPN; name its split's file of `proposals`")
        for images, sizes, image_ids in eval_loader(dataset, predictor.prepare, workers, batch_size, indices):
            if check is not None:
                check()
            proposals = [given[image_id] for image_id in image_ids] if predictor.model.needs_proposals else None
            yield from zip(image_ids, predictor.detect(images, sizes, proposals))

    with Progress(total=len(dataset), desc="evaluate", unit="img", shown=progress and is_rank0()) as bar:
        for found in map_sharded(range(len(dataset)), detect, batch_size):
            yield found
            bar.update()
