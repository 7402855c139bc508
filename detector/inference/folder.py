"""Inference on files, folders and patterns: drawn images and one list of results."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from detector.data.coco_reader import read_coco_file
from detector.data.image import WRITABLE, read_image
from detector.data.image_names import match_names
from detector.data.tiles import Tiles
from detector.distributed import is_rank0, map_sharded
from detector.errors import DataError
from detector.files import write_text
from detector.inference.drawing import draw_detections
from detector.inference.predictor import Predictor
from detector.inference.search import search_images
from detector.inference.uncertainty import Uncertainty, UncertaintyRanking, uncertainty_of
from detector.progress import Progress


@dataclass(frozen=True)
class Job:
    """One input image."""

    path: Path
    """Absolute path of the image."""
    name: str
    """Unique name: the path relative to the deepest folder that contains all inputs, with forward slashes."""
    image_id: int
    """Its number in the results: from 1 in order, or that of an annotation file."""
    picture: Path
    """Path of the drawn image."""


def find_images(paths: Sequence[str], output: Path, annotations: Path | None = None) -> list[Job]:
    """The images of files (of any suffix), folders (with all below them) and patterns ("photos/**/*.jpg"), each once.

    Hidden files, and an `output` folder within a searched one, are skipped. With a COCO file `annotations` the images have
    its ids, else they are numbered from 1. Raises DataError if a path is missing or has no images, if the annotations lack an
    image, and if a drawn image would replace an input or leave `output`.
    """
    output = Path(os.path.abspath(output))
    found = [search_images(path, skip=output) for path in paths]
    root = os.path.commonpath([folder for folder, _ in found])
    files = dict.fromkeys(file for _, files in found for file in files)  # each once, in order
    names = [file.relative_to(root).as_posix() for file in files]
    if annotations is None:
        ids = {name: number for number, name in enumerate(names, start=1)}
    else:
        ids = match_names(names, read_coco_file(annotations))
    jobs = [_job(file, name, ids[name], output) for file, name in zip(files, names)]
    _check(jobs, output)
    return jobs


def infer_images(
    predictor: Predictor,
    jobs: Sequence[Job],
    output: Path,
    *,
    score: float,
    batch_size: int,
    tiles: Tiles | None = None,
    ranking: UncertaintyRanking | None = None,
) -> tuple[list[dict[str, Any]], list[Job]]:
    """Write the drawn images and `output`/detections.json; returns the results and the jobs with an unreadable image.

    A result is COCO's (image_id, category_id, bbox xywh in original pixels, score) with `file_name` and `category_name`.
    Unreadable images are reported and skipped. With several processes each draws its share, and
    rank 0 writes the results.

    Args:
        predictor: the detector.
        jobs: the images, from `find_images`.
        output: folder of detections.json.
        score: minimum score of a detection.
        batch_size: images per forward pass.
        tiles: look at the tiles of an image, then `batch_size` of them per forward pass.
        ranking: it collects the uncertainty of each image, by the detections of any score.
    """
    at_once = 1 if tiles else batch_size  # images in memory
    results: list[dict[str, Any]] = []
    failed: list[Job] = []

    def detect(shard: list[Job]) -> Iterator[tuple[Job, list[dict[str, Any]], Uncertainty | None, str]]:
        for start in range(0, len(shard), at_once):
            batch = shard[start : start + at_once]
            images = [_read(job, predictor) for job in batch]
            readable = (image for image in images if isinstance(image, Tensor))
            detections = predictor.stream(readable, batch=batch_size, tiles=tiles)
            for job, image in zip(batch, images):
                if isinstance(image, DataError):
                    yield job, [], None, str(image)
                    continue
                found = next(detections)
                kept = found[found.scores >= score]
                _save(draw_detections(image, kept), job.picture)
                rows = kept.to_coco(job.image_id, predictor.label_ids)
                unsure = None if ranking is None else uncertainty_of(found)
                yield job, [{"file_name": job.name} | row for row in rows], unsure, ""

    bar = Progress(total=len(jobs), desc="infer", unit="img", shown=is_rank0())
    with bar, _results_written_on_exit(output, results):
        for job, rows, unsure, error in map_sharded(jobs, detect, at_once):
            results += rows
            if ranking is not None and unsure is not None:
                ranking.add(job.name, job.image_id, unsure)
            if error:
                failed.append(job)
            if error and is_rank0():
                bar.write(f"skipped: {error}", file=sys.stderr)
            bar.update()
    return results, failed


@contextlib.contextmanager
def _results_written_on_exit(output: Path, results: list[dict[str, Any]]) -> Iterator[None]:
    """Write the results so far on exit, after an error or Ctrl-C as well."""
    try:
        yield
    finally:
        if is_rank0():
            write_text(output / "detections.json", json.dumps(results) + "\n")


def _job(file: Path, name: str, image_id: int, output: Path) -> Job:
    writable = name if Path(name).suffix.lower() in WRITABLE else f"{name}.png"
    return Job(file, name, image_id, output / writable)


def _check(jobs: list[Job], output: Path) -> None:
    """Raise DataError if drawn images would replace an input or one another, or leave the output folder through a link."""
    there = [path for path in (output / "detections.json", *(job.picture for job in jobs)) if path.exists()]
    if there and not _holds_results(output):
        raise DataError(f"{there[0]}: not of an earlier run, and would be written over; choose another --output")
    inputs, within = {job.path.resolve() for job in jobs}, output.resolve()
    taken: set[Path] = set()
    for job in jobs:
        picture = job.picture.resolve()
        if picture in inputs | taken or not picture.is_relative_to(within):
            raise DataError(f"the picture of {job.path} would be written over {picture}: choose another --output")
        taken.add(picture)


def _holds_results(output: Path) -> bool:
    """Whether an earlier run wrote into this folder, by its detections.json."""
    try:
        rows = json.loads((output / "detections.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(rows, list) and all(isinstance(row, dict) and "file_name" in row for row in rows[:1])


def _read(job: Job, predictor: Predictor) -> Tensor | DataError:
    """The image, or the error of reading it."""
    try:
        return read_image(job.path, predictor.max_pixels, bit_depth=predictor.bit_depth)
    except DataError as error:
        return error


def _save(picture: Image.Image, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=92, subsampling=0)  # full colour resolution, for thin lines; PNG ignores both
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error}); choose another --output") from error
