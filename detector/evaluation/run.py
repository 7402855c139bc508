"""A predictor over a data set: what it finds, and how good that is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from detector.data.coco import CocoDataset
from detector.data.loader import eval_loader
from detector.errors import DataError
from detector.evaluation.coco import detections_to_results, evaluate_results
from detector.evaluation.proposals import proposal_recall
from detector.inference.predictor import Predictor


def evaluate(
    predictor: Predictor, dataset: CocoDataset, *, batch_size: int = 1, workers: int = 2, progress: bool = True
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Detect on every image of the data set and score it: (metrics, results in COCO form).

    Metrics are those of `evaluate_results` and, under "proposals", of `proposal_recall`; ids are the annotation file's.
    """
    results: list[dict[str, Any]] = []
    proposals: dict[int, Tensor] = {}
    loader = eval_loader(dataset, predictor.prepare, workers, batch_size)
    with tqdm(total=len(dataset), desc="evaluate", unit="img", disable=not progress) as bar:
        for images, sizes, image_ids in loader:
            for image_id, (found, regions) in zip(image_ids, predictor.detect_with_proposals(images, sizes)):
                results += detections_to_results(found, image_id, dataset.category_ids)
                proposals[image_id] = regions.boxes
            bar.update(len(image_ids))
    metrics = evaluate_results(dataset.annotation_file, results, list(proposals), dataset.category_ids)
    metrics["proposals"] = proposal_recall(dataset.annotation_file, proposals, dataset.category_ids)
    return metrics, results


def make_folder(folder: Path) -> Path:
    """The folder, made if need be; DataError at once if results could not be written into it at the end."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made ({error.strerror}); choose another --output") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{folder}: cannot be written to; choose another --output")
    return folder


def write_text(path: Path, text: str) -> None:
    """Write a whole file or none: a reader, or a crash, never meets half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another --output") from error
