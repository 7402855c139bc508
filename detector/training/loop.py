"""The training loop: steps, evaluations and checkpoints."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from detector import distributed
from detector.checkpoint import save_checkpoint
from detector.config.config import Config
from detector.data.loader import train_loader
from detector.data.sampler import GroupedBatchSampler, repeats_of
from detector.data.workers import deferred_sigchld
from detector.device import memory_mib
from detector.errors import CheckpointError
from detector.files import NotWritten
from detector.modeling.rcnn import GeneralizedRCNN
from detector.progress import Progress
from detector.protocols import DataSet, Writer
from detector.rng import random_state, set_random_state
from detector.structures import Target
from detector.training.criterion import criterion_of
from detector.training.diagnostics import explain_non_finite, lost_process_explained
from detector.training.loggers import Loggers
from detector.training.metrics import COLUMNS, CsvWriter
from detector.training.optim import learning_rate
from detector.training.reporting import ReportWriter
from detector.training.signals import Stop
from detector.training.step import NonFiniteLoss, TrainStep
from detector.training.validate import validate

LEAST_INTERVAL, SAVING_SHARE = 15.0, 0.02  # seconds between two writes of last.pth, and their share of the time

log = logging.getLogger("detector")


class Trainer:
    """One training run.

    Its position is `step`, the number of optimiser steps done, and `epoch`, the number of epochs finished and evaluated.
    Everything else follows from the position and the seed. Several processes take the same steps; rank 0 writes.

    Args:
        model: the detector to train.
        config: its configuration, with a `data` section.
        train: the training images.
        val: the images to evaluate on.
        output: the folder of the run.
        device: where the model trains.
        stop: signals and the time limit.
    """

    def __init__(
        self, model: GeneralizedRCNN, config: Config,
        train: DataSet, val: DataSet, output: Path, device: torch.device, stop: Stop,
    ):  # fmt: skip
        self.config, self.recipe, self.stop = config, config.train, stop
        data, recipe = config.needed_data(), config.train
        self.train_set, self.val_set, self.output, self.device = train, val, output, device
        self.train_step = TrainStep(model, recipe, device)
        self.loader = train_loader(
            train, recipe.batch_size, data.workers, recipe.seed, rank=distributed.rank(), world=distributed.world_size(),
            repeats=repeats_of(train, data.repeat_threshold), skip_bad=data.skip_bad, pin=device.type == "cuda",
        )  # fmt: skip
        self.batches = cast(GroupedBatchSampler, self.loader.batch_sampler)
        self.steps_per_epoch = len(self.batches)
        self.criterion = criterion_of(
            recipe.best, config.model.target_fields, config.evaluate, reports_proposals=model.reports_proposals
        )
        self.step, self.epoch = 0, 0
        self.best = -math.inf  # scores are -1 if val has no objects; best.pth is written then, too
        self.history: list[dict[str, float]] = []  # the rows of all evaluations
        self.writers: list[Writer] = []  # of rank 0
        self.loggers = Loggers(recipe.loggers, output, val, one_class=model.reports_proposals)
        self.observers: list[Any] = [self.loggers, ReportWriter(output, config, val)]
        self.saved_at, self.save_duration = -math.inf, 0.0
        self.saved_step: int | None = None

    @property
    def steps(self) -> int:
        """Number of steps of the whole training."""
        return self.recipe.epochs * self.steps_per_epoch

    def resume(self, checkpoint: Mapping[str, Any], path: Path) -> None:
        """Restore weights, optimiser, position, scores and random states from a checkpoint read from `path`.

        Raises CheckpointError if the recipe or the data changed in a way that makes the position invalid.
        """
        state = checkpoint["training"]
        try:
            if state["steps_per_epoch"] != self.steps_per_epoch:
                raise ValueError(f"{state['steps_per_epoch']} steps an epoch then, {self.steps_per_epoch} now")
            self._check_position(state["step"], state["epoch"])
            self.train_step.load_state(state, checkpoint["model"])
            self.step, self.epoch, self.best = state["step"], state["epoch"], float(state["best"])
            scores = ("step", int), (self.criterion, float)  # the values that are used
            self.history = [{**row, **{key: kind(row[key]) for key, kind in scores}} for row in state["history"]]
            if len(state["random"]) == distributed.world_size():
                set_random_state(state["random"][distributed.rank()])
            else:
                log.warning(
                    "resume: %d processes then, %d now: the random samples differ",
                    len(state["random"]), distributed.world_size(),
                )  # fmt: skip
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{path}: this training cannot go on with another batch size, data set or set of trained parameters, nor "
                f"from a file that is of an older version or damaged ({error}); undo the change, or start anew with "
                f"--init-from {path}"
            ) from error
        self.saved_step = self.step

    def _check_position(self, step: int, epoch: int) -> None:
        """Raise ValueError unless `step` lies in the epoch after `epoch` finished ones."""
        whole = isinstance(step, int) and isinstance(epoch, int) and epoch >= 0
        if not (whole and 0 <= step - epoch * self.steps_per_epoch <= self.steps_per_epoch):
            raise ValueError(f"step {step} does not follow epoch {epoch}")

    def run(self) -> None:
        """Train to the last epoch.

        Raises Interrupted after a signal or at the time limit, NonFiniteLoss, and the errors of the data.
        """
        with self.stop, lost_process_explained(self.stop, self.output / "last.pth"):
            self.train_step.connect()
            bar = Progress(total=self.steps, initial=self.step, unit="step", shown=distributed.is_rank0())
            with self._open_writers(), bar:
                self._save_or_stop(due=False)
                while self.epoch < self.recipe.epochs and not self._is_stale():
                    self._train_epoch(bar)
                    self._finish_epoch()
                if self.best == -math.inf:  # resumed with fewer epochs than are done, none of which was evaluated
                    self._evaluate(self.epoch)
                    self._save("last.pth")
                self._check_saved()

    def _train_epoch(self, bar: Progress) -> None:
        """The remaining steps of the next epoch; none if it was interrupted before its evaluation."""
        bar.set_description_str(f"epoch {self.epoch + 1}/{self.recipe.epochs}")
        self.batches.set_epoch(self.epoch, self.step - self.epoch * self.steps_per_epoch)
        self.train_step.model.train()
        requested = time.perf_counter()
        for images, targets, image_ids in self._batches():
            start = time.perf_counter()
            lr = learning_rate(self.recipe, self.step, self.steps_per_epoch)
            try:
                losses = self.train_step(lr, images, targets)
            except NonFiniteLoss as error:
                self._raise_explained(error, lr, [images, targets, image_ids])
            self.step += 1
            row = {"lr": lr, **losses, "epoch": self.epoch + 1, "data_s": start - requested}
            row |= {"step_s": time.perf_counter() - start, "memory_mib": memory_mib(self.device)}
            self._write_row(row)
            self._show(bar, row)
            self._save_or_stop(due=time.monotonic() - self.saved_at > self._save_interval())
            requested = time.perf_counter()

    def _batches(self) -> Iterator[tuple[list[Tensor], list[Target], list[int]]]:
        """Batches of this process; an unreadable image ends the training on all processes."""
        batches = iter(self.loader)
        while (batch := distributed.raise_on_all(next, batches, None)) is not None:
            yield batch

    def _raise_explained(self, error: NonFiniteLoss, lr: float, batch: list[list]) -> NoReturn:
        """Raise the error of a step with its images, which are written into bad_batch.pth."""
        last, bad_batch = self.output / "last.pth", self.output / "bad_batch.pth"
        saved = "Nothing is saved yet" if self.saved_step is None else f"{last} holds step {self.saved_step}"
        explained = explain_non_finite(error, self.step + 1, lr, batch, bad_batch, saved)
        raise explained from distributed.SharedError()

    @contextmanager
    def _open_writers(self) -> Iterator[None]:
        """The writers of rank 0, closed at the end."""
        if distributed.is_rank0():
            self.loggers.open(self.step)
            self.writers = [CsvWriter(self.output, step=self.step, history=self.history), *self.observers]
        try:
            yield
        finally:
            for writer in self.writers:
                writer.close()

    def _write_row(self, row: Mapping[str, float]) -> None:
        for writer in self.writers:
            writer.write(self.step, row)

    def _show(self, bar: Progress, row: Mapping[str, float]) -> None:
        """Show a step in the progress bar, its losses added up by the first word of their name: rpn, roi, aux."""
        shown = f"loss {row['loss']:.3f} lr {row['lr']:.2g}"
        if bar.is_wide:
            parts: dict[str, float] = {}
            for name in (name for name in row if name not in COLUMNS):
                part = name.partition("_")[0]
                parts[part] = parts.get(part, 0.0) + row[name]
            shown += f" ({', '.join(f'{part} {value:.3f}' for part, value in parts.items())})"
            shown += f" data {row['data_s'] * 1e3:.0f} ms mem {row['memory_mib']:.0f} MiB"
        bar.set_postfix_str(shown, refresh=False)
        bar.update()

    def _save_or_stop(self, *, due: bool) -> None:
        """Save if due (rank 0 decides) or if the training must stop, which raises Interrupted."""
        if self.step == self.steps:
            self.stop.deadline = None  # what is trained is scored, too
        leave, due = self.stop.agree(due)
        if leave or due:
            self._save("last.pth")
        if leave:
            self._check_saved()
        if leave or distributed.world_size() == 1:  # of several none leaves alone: a signal since then waits
            self.stop.check()

    def _save_interval(self) -> float:
        """Seconds between two writes of last.pth."""
        given = self.recipe.save_seconds
        return max(LEAST_INTERVAL, self.save_duration / SAVING_SHARE) if given is None else given

    def _check_saved(self) -> None:
        """Raise NotWritten if the last step is not saved."""
        if self.saved_step != self.step:
            last = self.output / "last.pth"
            held = f"step {self.saved_step}" if self.saved_step is not None and last.exists() else "nothing"
            raise NotWritten(
                f"{last}: step {self.step} could not be written, it holds {held}; make room and continue with --resume"
            )

    def _finish_epoch(self) -> None:
        """Evaluate the epoch if it is due; its steps are saved before, because an evaluation may take long."""
        number = self.epoch + 1
        if number % self.recipe.evaluate_every == 0 or number == self.recipe.epochs:
            self._save("last.pth")
            self._evaluate(number)
        self.epoch = number
        self._save("last.pth")
        if self._is_stale():
            log.info("no better score in the last %d evaluations: the training ends", self.recipe.patience)

    def _is_stale(self) -> bool:
        """Whether the last `patience` evaluations brought no better score."""
        scores = [row[self.criterion] for row in self.history]
        since = len(scores) - scores.index(max(scores)) - 1 if scores else 0
        return self.recipe.patience is not None and since >= self.recipe.patience

    def _evaluate(self, epoch: int) -> None:
        """Evaluate on val; a better score than before writes best.pth."""
        scores = validate(
            self.train_step.evaluated, self.config, self.train_set, self.val_set, self.device,
            workers=self.config.needed_data().workers, seed=self.recipe.seed, check=self.stop.check, observers=self.observers,
        )  # fmt: skip
        self.train_step.model.train()
        row = {"step": self.step, "epoch": epoch, **scores}
        self.history = [old for old in self.history if old["step"] < self.step] + [row]
        self._write_row({"epoch": epoch, **scores})
        found = {name: score for name, score in scores.items() if name != "val_loss"}
        shown = "  ".join(f"{name} {score:.3f}" if score >= 0 else f"{name} -" for name, score in found.items())
        log.info("epoch %d/%d: val loss %.3f  %s", epoch, self.recipe.epochs, scores["val_loss"], shown)
        if scores[self.criterion] > self.best:
            previous, self.best = self.best, scores[self.criterion]
            if not self._save("best.pth", with_state=False):
                self.best = previous  # so that a later, perhaps worse, score writes best.pth

    def _save(self, name: str, *, with_state: bool = True) -> bool:
        """Write a checkpoint; returns whether it is written. A full disk does not end the training."""
        training: dict[str, Any] = {"step": self.step, "best": self.best}
        if with_state:
            training |= {
                "epoch": self.epoch, "steps_per_epoch": self.steps_per_epoch, "history": self.history,
                "random": distributed.gather(random_state()), "launchers": distributed.gather(distributed.launcher()),
                **self.train_step.state(),
            }  # fmt: skip
        begun = time.monotonic()
        with deferred_sigchld():
            written = not distributed.is_rank0() or self._write(self.output / name, training, with_state)
            [failed] = distributed.all_reduce_max(not written)
            if with_state and not failed:
                self.saved_step = self.step
        if with_state:
            self.saved_at = time.monotonic()
            self.save_duration = self.saved_at - begun
        return not failed

    def _write(self, path: Path, training: Mapping[str, Any], with_state: bool) -> bool:
        """Write a checkpoint on this process; returns whether it is written."""
        try:
            save_checkpoint(
                path, model=self.train_step.evaluated, config=self.config.raw, class_names=self.train_set.class_names,
                category_ids=self.train_set.category_ids, pose=getattr(self.train_set, "pose", None), training=training,
                previous=path.with_name("previous.pth") if with_state else None,
            )  # fmt: skip
        except NotWritten as error:
            log.warning("step %d: %s. The training goes on", self.step, error)
            return False
        return True
