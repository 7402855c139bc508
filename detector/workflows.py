"""Training and evaluation as functions, for scripts and notebooks: `detector.train` and `detector.evaluate`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detector.config.config import Config, load_config
from detector.data.describe import report_of
from detector.data.settings import build_dataset
from detector.data.tiles import Tiles
from detector.distributed import is_rank0, on_rank0
from detector.errors import Interrupted
from detector.evaluation import run as scoring
from detector.evaluation.reach import scoring_limits
from detector.evaluation.tables import summary_table
from detector.export.exported import load
from detector.files import check_own, make_folder, write_text
from detector.inference.in_tiles import untiled_note
from detector.inference.predictor import Predictor, TiledPredictor
from detector.inference.tta import TTAPredictor
from detector.protocols import DataSet
from detector.records.geometry import Size
from detector.records.keypoints import Pose
from detector.training import run as training

log = logging.getLogger("detector")


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended."""

    folder: Path
    """With config.yaml, metrics.csv, train.log, last.pth and best.pth."""
    stopped_by: str | None
    """What ended it early, such as "the time limit"; None after the last step. `resume=True` continues it."""

    @property
    def best(self) -> Path:
        """The checkpoint with the best score; it exists once a training was scored."""
        return self.folder / "best.pth"

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "last.pth"


def train(
    config: str | Path | Mapping[str, Any] | Config, output: str | Path, overrides: Sequence[str] = (), *,
    resume: bool = False, init_from: str | Path | None = None,
) -> TrainingResult:  # fmt: skip
    """Train, evaluate and keep the last and the best checkpoint, as `detector train` does.

    The end of `train.time_limit` is a result. So is an interruption (Ctrl-C, the stop button of a notebook): the step is
    finished and saved. Raises DetectorError for what is wrong with the configuration, the data or the folder, NonFiniteLoss.

    Args:
        config: a file, the content of one, or a Config.
        output: the folder of the run.
        overrides: `key.path=value` changes; none with a Config.
        resume: continue from its `last.pth` exactly where it stopped.
        init_from: a checkpoint whose weights the training starts from.
    """
    with shown_log():
        if not isinstance(config, Config):
            config = load_config(config, list(overrides))
        elif overrides:
            raise ValueError("overrides change a file or its content; of a Config use dataclasses.replace")
        try:
            folder, reason = training.run_training(config, output, resume=resume, init_from=init_from), None
        except Interrupted as error:
            folder, reason = Path(output), str(error)
            log.info("stopped by %s; %s is saved, resume=True continues", reason, folder / "last.pth")
    return TrainingResult(folder, reason)


def evaluate(
    checkpoint: str | Path | Predictor, *, split: str = "val", overrides: Sequence[str] = (), trust: bool = False,
    output: str | Path | None = None, device: str = "auto", precision: str = "float32", tta: bool = False,
    tiles: int | Size | Tiles | None = None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """The metrics of a detector on a split of its data: {"bbox": COCO's twelve, "per_class": ..., "proposals": ...}.

    With masks also "segm" and "boundary", with keypoints "keypoints", with tiles "tiles": what they were.

    Raises DetectorError for what is wrong with the checkpoint, the data or the folder.

    Args:
        checkpoint: a file, a published name as for `detector.load`, or a Predictor (which has the other options itself).
        split: train, val or test of the configuration.
        overrides: `key.path=value` changes of the checkpoint's configuration.
        trust: import the custom classes that it names.
        output: a folder for metrics.json and detections.json; None writes nothing.
        device: as for `detector.load`.
        precision: of the network, float32 or bfloat16.
        tta: merge the scales and flips of data.tta.
        tiles: look at the tiles of every image, as `Predictor.tiled` does.
    """
    with shown_log():
        if isinstance(checkpoint, Predictor):
            if overrides or trust or tta or (device, precision) != ("auto", "float32"):
                raise ValueError("a Predictor has its options: give them to detector.load, or name the checkpoint here")
        else:
            kind = TTAPredictor if tta else Predictor
            checkpoint = load(checkpoint, trust, overrides=overrides, device=device, precision=precision, kind=kind)
        checkpoint = checkpoint if tiles is None else checkpoint.tiled(tiles)
        dataset, workers = open_split(checkpoint, split)
        return score(checkpoint, dataset, workers, None if output is None else Path(output), log.info)


def open_split(predictor: Predictor, split: str) -> tuple[DataSet, int]:
    """All images of a split of the detector's data, and the number of loading processes."""
    data = replace(predictor.config.needed_data(), keep_empty=True, tiles=None)
    dataset = build_dataset(data, split, class_names=predictor.class_names)
    if is_rank0():
        log.info("%s: %s", split, report_of(dataset))
    return dataset, data.workers


def score(
    predictor: Predictor, dataset: DataSet, workers: int, output: Path | None, show: Callable[[str], object]
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """The metrics of a detector on a data set.

    `show` receives the table, before metrics.json and detections.json (unless boxes are proposals) are written to `output`; they
    are, too, where it raises an error.
    """
    settings = predictor.config.evaluate
    if output is not None:
        on_rank0(make_folder, output)
        on_rank0(check_own, output, "metrics.json", "detections.json")
    if is_rank0() and not isinstance(predictor, TiledPredictor) and (note := untiled_note(predictor.config)):
        log.warning("%s", note)
    fields, pose = predictor.config.model.target_fields, predictor.pose
    on_rank0(say_limits, dataset.annotation_file, dataset.category_ids, settings, fields, pose)
    metrics, results = scoring.evaluate_predictor(predictor, dataset, workers=workers, scoring=settings)
    as_one_class = predictor.model.reports_proposals  # its boxes have no category
    if isinstance(predictor, TiledPredictor):
        metrics = metrics | {"tiles": predictor.tiles.as_dict()}
    if is_rank0():
        try:
            if as_one_class:
                show("an RPN alone: all classes are one, the AP is that of its best proposals\n")
            if isinstance(predictor, TiledPredictor):
                show(f"in {predictor.tiles}\n")
            show(summary_table(metrics))
        finally:  # a reader who has seen enough closes the pipe
            if output is not None:
                write_text(output / "metrics.json", json.dumps(metrics, indent=2) + "\n")
                if not as_one_class:
                    write_text(output / "detections.json", json.dumps(results) + "\n")
    return metrics


def say_limits(
    annotations: Path, category_ids: list[int] | None, settings: Any, fields: Collection[str] = (),
    pose: Pose | None = None,
) -> None:  # fmt: skip
    """Log what no detector can reach. Raises DataError for a file that cannot be scored."""
    for line in scoring_limits(annotations, category_ids, settings, fields, pose):
        log.warning("note: %s", line)


@contextmanager
def shown_log() -> Iterator[None]:
    """Print the log on stdout, unless the program has set up logging itself."""
    if log.hasHandlers():
        yield
        return
    handler, level = logging.StreamHandler(sys.stdout), log.level
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
