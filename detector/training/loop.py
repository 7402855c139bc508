"""Training: from a configuration to `last.pth` and `best.pth`."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from detector import distributed
from detector.checkpoint import save_checkpoint
from detector.config.config import Config
from detector.data.coco import CocoDataset
from detector.data.loader import train_loader
from detector.data.sampler import repeat_factors
from detector.errors import CheckpointError, ConfigError
from detector.files import NotWritten
from detector.modeling.rcnn import GeneralizedRCNN
from detector.rng import random_state, set_random_state
from detector.structures import Target
from detector.training.diagnostics import explain_lost_process, explain_non_finite
from detector.training.metrics import SCORES, MetricsFile
from detector.training.optim import learning_rate
from detector.training.signals import Stop, undisturbed
from detector.training.step import NonFiniteLoss, Updater
from detector.training.validate import score

try:
    import resource
except ImportError:  # on Windows
    resource = None

log = logging.getLogger("detector")


class Trainer:
    """One training run: a model, a data set, a recipe and a folder.

    Its place in the run is `step`, the number of optimiser steps done, and `epoch`, the number of epochs finished and
    scored; everything else follows from these and the seed. Several processes take the same steps together; the first
    one writes.
    """

    def __init__(
        self, model: GeneralizedRCNN, config: Config,
        train: CocoDataset, val: CocoDataset, output: Path, device: torch.device, stop: Stop,
    ):  # fmt: skip
        self.config, self.recipe, self.stop = config, config.train, stop
        data, recipe = config.needed_data(), config.train
        self.train_set, self.val_set, self.output, self.device = train, val, output, device
        self.update = Updater(model, recipe, device)
        self.loader = train_loader(train, recipe.batch_size, data.workers, recipe.seed, rank=distributed.rank(),
                                   world=distributed.world_size(), repeats=_repeats(train, data.repeat_threshold),
                                   skip_bad=data.skip_bad)  # fmt: skip
        self.steps_per_epoch = len(self.loader.batch_sampler)
        self.criterion = "AR1000" if model.reports_proposals else "AP"  # of best.pth
        self.step, self.epoch, self.best = 0, 0, -math.inf  # where val has no object it is -1, and best.pth is kept
        self.history: list[dict[str, float]] = []  # of all scores: the rows of metrics.csv
        self.saved_at, self.saved_step = -math.inf, None

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.recipe.epochs * self.steps_per_epoch

    def resume(self, checkpoint: Mapping[str, Any], path: Path) -> None:
        """Continue where `_save` stood: weights, optimiser, place, scores and random numbers.

        Raises CheckpointError if the recipe or the data changed so that the steps done have no place in this run.
        """
        state = checkpoint["training"]
        try:
            if state["steps_per_epoch"] != self.steps_per_epoch:
                raise ValueError(f"{state['steps_per_epoch']} steps an epoch then, {self.steps_per_epoch} now")
            self._check_place(state["step"], state["epoch"])
            self.update.load_state(state, checkpoint["model"])
            self.step, self.epoch, self.best = state["step"], state["epoch"], float(state["best"])
            scores = ("step", int), (self.criterion, float)  # what will be reckoned with
            self.history = [{**row, **{key: kind(row[key]) for key, kind in scores}} for row in state["history"]]
            if len(state["random"]) == distributed.world_size():
                set_random_state(state["random"][distributed.rank()])
            else:
                log.warning(
                    "resume: %d processes then, %d now: other random samples",
                    len(state["random"]),
                    distributed.world_size(),
                )
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{path}: this training cannot go on with another batch size, data set or set of trained parameters, nor from "
                f"a file that is of an older version or damaged ({error}); undo the change, or start anew with --init-from {path}"
            ) from error
        self.saved_step = self.step

    def _check_place(self, step: int, epoch: int) -> None:
        """Raise ValueError for steps that are none of the epoch after so many."""
        whole = isinstance(step, int) and isinstance(epoch, int) and epoch >= 0
        if not (whole and 0 <= step - epoch * self.steps_per_epoch <= self.steps_per_epoch):
            raise ValueError(f"step {step} does not follow on epoch {epoch}")

    def run(self) -> None:
        """Train to the last epoch. Raises Interrupted after a signal, NonFiniteLoss, and what the data raise."""
        with self.stop:
            try:
                self._run()
            except (RuntimeError, CheckpointError) as error:  # torch raises it anywhere, in the midst of saving too
                explained = explain_lost_process(error, self.output / "last.pth")
                if explained is None:
                    raise
                time.sleep(0.2)  # a signal sent to all processes at once may reach another first, which could not wait
                self.stop.check()
                raise explained from None

    def _run(self) -> None:
        self.update.connect()
        first = distributed.is_rank0()
        self.metrics = MetricsFile(self.output, step=self.step, history=self.history) if first else None
        bar = dict(total=self.steps, initial=self.step, unit="step", dynamic_ncols=True, smoothing=0.05)
        try:
            with tqdm(**bar, disable=not first) as bar:
                self._save_or_stop(due=False)
                while self.epoch < self.recipe.epochs and not self._is_stale():
                    self._epoch(bar)
                    self._finish_epoch()
                if self.best == -math.inf:  # resumed with fewer epochs than are done, none of which was scored
                    self._evaluate(self.epoch)
                    self._save("last.pth")
                self._check_saved()
        finally:
            if first:
                self.metrics.close()

    def _epoch(self, bar: tqdm) -> None:
        """The rest of the steps of the next epoch: none if it was interrupted between its last step and its score."""
        bar.set_description(f"epoch {self.epoch + 1}/{self.recipe.epochs}")
        self.loader.batch_sampler.set_epoch(self.epoch, self.step - self.epoch * self.steps_per_epoch)
        self.update.model.train()
        asked = time.perf_counter()
        for images, targets, image_ids in self._batches():
            began = time.perf_counter()
            row = self._step(images, targets, image_ids)
            row |= {"epoch": self.epoch + 1, "data_s": began - asked, "step_s": time.perf_counter() - began}
            row["memory_mib"] = memory_mib(self.device)
            if self.metrics:
                self.metrics.write(self.step, row)
                self._show(bar, row)
            self._save_or_stop(due=time.monotonic() - self.saved_at > self.recipe.save_seconds)
            asked = time.perf_counter()

    def _batches(self) -> Iterator[tuple[list[Tensor], list[Target], list[int]]]:
        """Of this process; an image that cannot be read ends the training of all."""
        batches = iter(self.loader)
        while (batch := distributed.raise_on_all(lambda: next(batches, None))) is not None:
            yield batch

    def _step(self, images: list[Tensor], targets: list[Target], image_ids: list[int]) -> dict[str, float]:
        """One optimiser step."""
        lr = learning_rate(self.recipe, self.step, self.steps_per_epoch)
        try:
            losses = self.update(lr, images, targets)
        except NonFiniteLoss as error:
            last = self.output / "last.pth"
            saved = "Nothing is saved yet" if self.saved_step is None else f"{last} holds step {self.saved_step}"
            batch, kept = [images, targets, image_ids], self.output / "bad_batch.pth"
            raise explain_non_finite(error, self.step + 1, lr, batch, kept, saved) from None
        self.step += 1
        return {"lr": lr, **losses}

    def _show(self, bar: tqdm, row: Mapping[str, float]) -> None:
        parts: dict[str, float] = {}  # the first word of a loss says what learns: rpn, roi, aux
        for name in self.metrics.losses:
            part = name.partition("_")[0]
            parts[part] = parts.get(part, 0.0) + row.get(name, 0.0)  # a column may be of an earlier recipe
        bar.set_postfix_str(
            f"loss {row['loss']:.3f} ({', '.join(f'{part} {value:.3f}' for part, value in parts.items())}) "
            f"lr {row['lr']:.2g} data {row['data_s'] * 1e3:.0f} ms mem {row['memory_mib']:.0f} MiB",
            refresh=False,
        )
        bar.update()

    def _save_or_stop(self, *, due: bool) -> None:
        """After the first step, every so many seconds, and when a signal came or the time is up."""
        leave, due = self.stop.agree(due)
        if leave or due:
            self._save("last.pth")
        if leave:
            self._check_saved()
        self.stop.check()

    def _check_saved(self) -> None:
        """Raise NotWritten if leaving now would lose steps."""
        if self.saved_step != self.step:
            last = self.output / "last.pth"
            held = f"step {self.saved_step}" if self.saved_step is not None and last.exists() else "nothing"
            raise NotWritten(
                f"{last}: step {self.step} could not be written, it holds {held}; make room and continue with --resume"
            )

    def _finish_epoch(self) -> None:
        """Score the epoch if it is due; its steps are saved before, because scoring may take long."""
        number = self.epoch + 1
        if number % self.recipe.evaluate_every == 0 or number == self.recipe.epochs:
            self._save("last.pth")
            self._evaluate(number)
        self.epoch = number
        self._save("last.pth")
        if self._is_stale():
            log.info("the last %d scores were not better: the training ends", self.recipe.patience)

    def _is_stale(self) -> bool:
        """Whether the patience is at its end."""
        scores = [row[self.criterion] for row in self.history]
        since = len(scores) - scores.index(max(scores)) - 1 if scores else 0
        return self.recipe.patience is not None and since >= self.recipe.patience

    def _evaluate(self, epoch: int) -> None:
        """Scores and loss on val; the best so far keeps its weights."""
        scores = score(self.update.evaluated, self.config, self.train_set, self.val_set, self.device,
                       workers=self.config.needed_data().workers, seed=self.recipe.seed, check=self.stop.check)  # fmt: skip
        self.update.model.train()
        row = {"step": self.step, "epoch": epoch, **scores}
        self.history = [old for old in self.history if old["step"] < self.step] + [row]
        if self.metrics:
            self.metrics.write(self.step, row)
        shown = "  ".join(f"{name} {scores[name]:.3f}" for name in SCORES)
        log.info("epoch %d/%d: val loss %.3f  %s", epoch, self.recipe.epochs, scores["val_loss"], shown)
        best = scores[self.criterion]
        if best > self.best:
            before, self.best = self.best, best
            if not self._save("best.pth", with_state=False):
                self.best = before  # a later one, which may be worse, is better than none

    def _save(self, name: str, *, with_state: bool = True) -> bool:
        """Write a checkpoint, and say whether it is written: a full disk costs this one and not the training."""
        training = {"step": self.step, "best": self.best}
        if with_state:
            training |= {
                "epoch": self.epoch, "steps_per_epoch": self.steps_per_epoch, "history": self.history,
                "random": distributed.gather(random_state()), "launchers": distributed.gather(distributed.launcher()),
                **self.update.state(),
            }  # fmt: skip
            self.saved_at = time.monotonic()
        with undisturbed():
            written = not distributed.is_rank0() or self._write(self.output / name, training, with_state)
            [failed] = distributed.all_reduce_max(not written)
            if with_state and not failed:
                self.saved_step = self.step
        return not failed

    def _write(self, path: Path, training: Mapping[str, Any], with_state: bool) -> bool:
        try:
            save_checkpoint(
                path, model=self.update.evaluated, config=self.config.raw, class_names=self.train_set.class_names,
                category_ids=self.train_set.category_ids, training=training,
                previous=path.with_name("previous.pth") if with_state else None,
            )  # fmt: skip
        except NotWritten as error:
            log.warning("step %d: %s. The training goes on", self.step, error)
            return False
        return True


def _repeats(dataset: CocoDataset, threshold: float | None) -> np.ndarray | None:
    """How often an epoch shows each image (n,), None for once."""
    if threshold is None:
        return None
    if not hasattr(dataset, "objects"):
        raise ConfigError(
            f"data.repeat_threshold: {type(dataset).__name__} must have `objects`: objects() gives the image and label of every "
            "object"
        )
    return repeat_factors(*dataset.objects(), len(dataset), threshold)


def memory_mib(device: torch.device) -> float:
    """Peak memory: of the GPU's allocator, or of this process; NaN where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
