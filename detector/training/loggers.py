"""A training's numbers and pictures in TensorBoard, Weights & Biases and MLflow, all in its folder and without a network."""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from detector.errors import ConfigError
from detector.evaluation.coco import Scored
from detector.protocols import DataSet
from detector.training.val_view import ValView, view_of

PACKAGES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow"}  # and what is imported
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}  # unless the user says otherwise
PROJECT = "detector"
DELAY = 5.0  # seconds for which MLflow's numbers wait: each write to its database takes as long as a small step
MOST = 1000  # numbers that MLflow takes at once

log = logging.getLogger("detector")


class Logger(Protocol):
    """A tool that shows trainings."""

    def log(self, step: int, numbers: Mapping[str, float], view: ValView | None) -> None:
        """The numbers of a step, or those of an evaluation and its view."""

    def close(self) -> None:
        """No more numbers come."""


def check_loggers(names: Sequence[str]) -> None:
    """Raise ConfigError for a tool whose package is missing or cannot be imported."""
    for name in names:
        os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
        try:
            importlib.import_module(PACKAGES[name])
        except ImportError as error:
            raise ConfigError(
                f"train.loggers: {name} cannot be imported ({error}); `pip install {name}`, or leave it out"
            ) from error


class Loggers:
    """The writer of a training for all tools of `train.loggers`. One that fails is a warning, and the training goes on.

    Args:
        names: keys of LOGGERS.
        folder: of the training.
        val: the images that are scored.
        one_class: the detector is an RPN alone.
    """

    def __init__(self, names: Sequence[str], folder: Path, val: DataSet, *, one_class: bool):
        self._names, self._folder, self._val, self._one_class = list(dict.fromkeys(names)), folder, val, one_class
        self._open: dict[str, Logger] = {}
        self._failing: set[str] = set()
        self._results: list[dict[str, Any]] | None = None

    def open(self, step: int) -> Loggers:
        """Open the tools, to continue after so many steps; 0 begins a new run in each."""
        for name in self._names:
            logger = self._tried(name, lambda kind: kind(self._folder, step), LOGGERS[name])
            if logger is not None:
                self._open[name] = logger
        return self

    def observe(self, scored: Scored) -> None:
        """Keep the results of an evaluation until its numbers are written."""
        self._results = scored.detections if self._open else None

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Give a row to every tool."""
        results, self._results = self._results, None
        view = None
        if results is not None:
            view = self._tried("the view of val", view_of, self._val, results, one_class=self._one_class)
        for name, logger in self._open.items():
            self._tried(name, logger.log, step, row, view)

    def close(self) -> None:
        """Close every tool."""
        for name, logger in self._open.items():
            self._tried(name, logger.close)
        self._open = {}

    def _tried(self, name: str, work: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """The result of the work, or None after an error, which is logged where the one before was none."""
        try:
            result = work(*args, **options)
        except Exception as error:
            if name not in self._failing:
                log.warning("%s: not written (%s: %s); the training goes on", name, type(error).__name__, error)
            self._failing.add(name)
            return None
        self._failing.discard(name)
        return result


class TensorBoardLogger:
    """Event files in `folder`/tensorboard; those of an earlier run beyond `step` are hidden."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, numbers: Mapping[str, float], view: ValView | None) -> None:
        """Scalars, images, and precision and recall by score; all is on the disk then."""
        for key, value in numbers.items():
            self._board.add_scalar(key, value, step)
        for key, picture in view.pictures.items() if view else ():
            self._board.add_image(key, np.array(picture), step, dataformats="HWC")
        for name, counts in view.counts.items() if view else ():
            right, wrong, none = counts.right, counts.wrong, np.zeros(len(counts.right))
            self._board.add_pr_curve_raw(
                f"precision_recall/{name}", right, wrong, none, counts.objects - right, np.nan_to_num(counts.precision),
                np.nan_to_num(counts.recall), step, num_thresholds=len(right),
            )  # fmt: skip
        self._board.flush()

    def close(self) -> None:
        """Close the file."""
        self._board.close()


class WandbLogger:
    """An offline run in `folder`/wandb, which `wandb sync` uploads; a resumed training has the id of the run before."""

    def __init__(self, folder: Path, step: int):
        import wandb

        before = sorted((folder / "wandb").glob("offline-run-*-*")) if step else []
        settings = wandb.Settings(
            console="off", silent=True, disable_git=True, save_code=False, x_disable_stats=True, x_disable_meta=True
        )
        self._wandb, self._run = wandb, wandb.init(
            project=PROJECT, name=folder.resolve().name, dir=str(folder), mode="offline", resume="allow", settings=settings,
            id=before[-1].name.rsplit("-", 1)[1] if before else None, reinit="create_new",
        )  # fmt: skip

    def log(self, step: int, numbers: Mapping[str, float], view: ValView | None) -> None:
        """Numbers, images, and a chart with the curve of every class."""
        values: dict[str, Any] = dict(numbers)
        if view is not None:
            values |= {key: self._wandb.Image(picture) for key, picture in view.pictures.items()}
            curves = {name: _points(counts.recall, counts.precision) for name, counts in view.counts.items()}
            if curves:
                values["precision_recall"] = self._wandb.plot.line_series(
                    xs=[x for x, _ in curves.values()], ys=[y for _, y in curves.values()], keys=list(curves),
                    title="Precision over recall, IoU 0.5", xname="recall",
                )  # fmt: skip
        self._run.log(values, step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


class MlflowLogger:
    """A run in the database `folder`/mlflow.db, its pictures in `folder`/mlflow; a resumed training continues its run.

    Numbers wait for up to DELAY seconds; those may be missing of a training that is killed.
    """

    def __init__(self, folder: Path, step: int):
        import mlflow

        for name in ("mlflow", "alembic"):  # which announce every table that they make
            logging.getLogger(name).setLevel(logging.WARNING)
        folder = folder.resolve()
        address = f"sqlite:///{folder / 'mlflow.db'}"
        self._client = mlflow.MlflowClient(tracking_uri=address, registry_uri=address)
        self._number = mlflow.entities.Metric
        found = self._client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else self._client.create_experiment(
            PROJECT, artifact_location=(folder / "mlflow").as_uri()
        )  # fmt: skip
        before = self._client.search_runs([experiment], max_results=1) if step else []  # the newest
        self._id = before[0].info.run_id if before else self._client.create_run(
            experiment, run_name=folder.name
        ).info.run_id  # fmt: skip
        self._client.update_run(self._id, status="RUNNING")
        self._waiting: list[Any] = []
        self._written_at = time.monotonic()

    def log(self, step: int, numbers: Mapping[str, float], view: ValView | None) -> None:
        """Numbers, images, and a JSON file with the curve of every class."""
        now = int(time.time() * 1000)
        self._waiting += [self._number(key, float(value), now, step) for key, value in numbers.items()]
        if view is not None or time.monotonic() - self._written_at > DELAY:
            self._write()
        for key, picture in view.pictures.items() if view else ():
            self._client.log_image(self._id, picture, key=key, step=step)
        if view is not None and view.counts:
            curves = {
                name: {"recall": x, "precision": y}
                for name, (x, y) in ((n, _points(c.recall, c.precision)) for n, c in view.counts.items())
            }
            self._client.log_dict(self._id, curves, f"precision_recall/step_{step}.json")

    def _write(self) -> None:
        while self._waiting:
            self._client.log_batch(self._id, metrics=self._waiting[:MOST])
            del self._waiting[:MOST]
        self._written_at = time.monotonic()

    def close(self) -> None:
        """Write what waits, and end the run."""
        self._write()
        self._client.set_terminated(self._id)


LOGGERS: dict[str, Callable[[Path, int], Logger]] = {
    "tensorboard": TensorBoardLogger, "wandb": WandbLogger, "mlflow": MlflowLogger
}  # fmt: skip


def _points(recall: np.ndarray, precision: np.ndarray) -> tuple[list[float], list[float]]:
    """The points of a curve that are defined, by falling score."""
    known = ~(np.isnan(recall) | np.isnan(precision))
    return recall[known][::-1].tolist(), precision[known][::-1].tolist()
