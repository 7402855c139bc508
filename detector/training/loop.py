"""Training: from a configuration to `last.pth` and `best.pth`."""

from __future__ import annotations

import copy
import logging
import math
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from detector.data.coco import CocoDataset
from detector.data.loader import train_loader
from detector.data.settings import DataSettings
from detector.errors import CheckpointError, DataError, DetectorError, Interrupted
from detector.evaluation.run import evaluate
from detector.heads.proposals_only import ProposalsOnly
from detector.inference.predictor import Predictor
from detector.rcnn import GeneralizedRCNN
from detector.training.checkpoint import save_checkpoint
from detector.training.metrics import SCORES, MetricsFile
from detector.training.recipe import Recipe
from detector.training.schedule import learning_rate, make_optimizer

try:
    import resource
except ImportError:  # on Windows
    resource = None

log = logging.getLogger("detector")


class NonFiniteLoss(DetectorError):
    """The loss is no number any more; going on would ruin the weights."""


class Trainer:
    """One training run: a model, a data set, a recipe and a folder.

    Its place in the run is `step`, the number of optimiser steps done, and `epoch`, the number of epochs finished and
    scored; everything else follows from these and the seed.
    """

    def __init__(
        self, model: GeneralizedRCNN, config: Mapping[str, Any], recipe: Recipe, data: DataSettings,
        train: CocoDataset, val: CocoDataset, output: Path, device: torch.device,
    ):  # fmt: skip
        self.model, self.config, self.recipe, self.data = model.to(device), config, recipe, data
        self.train_set, self.val_set, self.output, self.device = train, val, output, device
        self.optimizer = make_optimizer(model, recipe)
        self.loader = train_loader(train, recipe.batch_size, data.workers, recipe.seed)
        self.steps_per_epoch = len(self.loader.batch_sampler)
        self.criterion = "AR1000" if isinstance(model.roi_head, ProposalsOnly) else "AP"  # of best.pth
        self.step, self.epoch, self.best = 0, 0, -math.inf  # where val has no object it is -1, and best.pth is kept
        self.signal: int | None = None
        self.saved_at, self.saved_step = -math.inf, 0

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.recipe.epochs * self.steps_per_epoch

    def resume(self, state: Mapping[str, Any]) -> None:
        """Continue where `_save` stood: optimiser, place, best score and random numbers.

        Raises CheckpointError if the recipe or the data changed so that the steps done have no place in this run.
        """
        try:
            if state["steps_per_epoch"] != self.steps_per_epoch:
                raise ValueError(f"{state['steps_per_epoch']} steps an epoch then, {self.steps_per_epoch} now")
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.epoch, self.best = state["step"], state["epoch"], state["best"]
            torch.set_rng_state(state["rng"])
            if self.device.type == "cuda" and state["cuda_rng"]:
                torch.cuda.set_rng_state_all(state["cuda_rng"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            last = self.output / "last.pth"
            raise CheckpointError(
                f"{last}: this training cannot go on with another batch size, data set or set of trained parameters "
                f"({error}); undo the change, or start anew with --init-from {last}"
            ) from error
        self.saved_step = self.step

    def run(self) -> None:
        """Train to the last epoch. Raises Interrupted after a signal, NonFiniteLoss, and what the data raise."""
        self.metrics = MetricsFile(self.output, step=self.step)
        bar = tqdm(total=self.steps, initial=self.step, unit="step", dynamic_ncols=True, smoothing=0.05)
        old_handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            with bar:
                while self.epoch < self.recipe.epochs:
                    self._epoch(bar)
                    self._finish_epoch()
                if self.best == -math.inf:  # resumed with fewer epochs than are done, none of which was scored
                    self._evaluate(self.epoch)
                    self._save("last.pth")
        except (RuntimeError, CheckpointError) as error:  # torch raises it anywhere, in the midst of saving too
            self._explain_lost_worker(error)
            raise
        finally:
            for number, handler in old_handlers.items():
                signal.signal(number, handler)
            self.metrics.close()

    def _explain_lost_worker(self, error: Exception) -> None:
        """A loading process that falls ends the training wherever it is; what was saved last stays good."""
        if "DataLoader worker" not in str(error):
            return
        time.sleep(0.2)  # a signal to all processes may reach the worker first
        if self.signal is not None:  # sent to all processes at once, and the worker could not wait
            raise Interrupted(signal.Signals(self.signal).name, 128 + self.signal) from None
        raise DataError(
            f"a process that loads images died ({error}). If memory ran out, lower data.workers or train.batch_size; "
            f"then continue from {self.output / 'last.pth'} with --resume"
        ) from None

    def _on_signal(self, number: int, frame: object) -> None:
        """The first signal waits for the end of a step, so that what is saved is whole; the second does not wait."""
        if self.signal is not None:
            sys.exit(128 + number)
        self.signal = number

    def _epoch(self, bar: tqdm) -> None:
        """The rest of the steps of the next epoch: none if it was interrupted between its last step and its score."""
        bar.set_description(f"epoch {self.epoch + 1}/{self.recipe.epochs}")
        self.loader.batch_sampler.set_epoch(self.epoch, self.step - self.epoch * self.steps_per_epoch)
        self.model.train()
        asked = time.perf_counter()
        for images, targets, image_ids in self.loader:
            began = time.perf_counter()
            row = self._step(images, targets, image_ids)
            row |= {"epoch": self.epoch + 1, "data_s": began - asked, "step_s": time.perf_counter() - began}
            row["memory_mib"] = memory_mib(self.device)
            self.metrics.write(self.step, row)
            self._show(bar, row)
            self._save_or_stop()
            asked = time.perf_counter()

    def _step(self, images: list[Tensor], targets: list, image_ids: list[int]) -> dict[str, float]:
        """One optimiser step: forward, backward, update."""
        lr = learning_rate(self.recipe, self.step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with self._precision():
            losses = self.model(images, targets)
        total = sum(losses.values())
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters], foreach=True)
        # the one wait for the device in a step: after the work of the backward pass is queued
        *values, loss, grad_norm = torch.stack([*losses.values(), total, norm]).tolist()
        row = {"lr": lr, "loss": loss, **dict(zip(losses, values)), "grad_norm": grad_norm}
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise NonFiniteLoss(self._diagnosis(row, list(losses), image_ids))
        if self.recipe.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.recipe.clip_norm, norm)
        self.optimizer.step()
        self.step += 1
        return row

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16")

    def _diagnosis(self, row: Mapping[str, float], losses: list[str], image_ids: list[int]) -> str:
        last = self.output / "last.pth"
        saved = f"{last} holds step {self.saved_step}" if self.saved_step else "Nothing is saved yet"
        bad = [f"{name} is {row[name]}" for name in [*losses, "grad_norm"] if not math.isfinite(row[name])]
        return (
            f"step {self.step + 1}: {', '.join(bad)} (image ids {image_ids}, learning rate {row['lr']:.3g}, gradient norm "
            f"{row['grad_norm']:.3g}). {saved}. Lower train.lr, raise train.warmup_steps, set train.clip_norm, or look at "
            "these images' boxes."
        )

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

    def _save_or_stop(self) -> None:
        """After the first step, every so many seconds, and when a signal came."""
        due = time.monotonic() - self.saved_at > self.recipe.save_seconds
        if due or self.signal is not None:
            self._save("last.pth")
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self.signal is not None:
            raise Interrupted(signal.Signals(self.signal).name, 128 + self.signal)

    def _finish_epoch(self) -> None:
        """Score the epoch if it is due; its steps are saved before, because scoring may take long."""
        number = self.epoch + 1
        if number % self.recipe.evaluate_every == 0 or number == self.recipe.epochs:
            self._save("last.pth")
            self._evaluate(number)
        self.epoch = number
        self._save("last.pth")

    def _evaluate(self, epoch: int) -> None:
        """Scores and loss on val; the best so far keeps its weights."""
        names, ids = self.train_set.class_names, self.train_set.category_ids
        predictor = Predictor(copy.deepcopy(self.model), self.config, names, ids, device=self.device)
        predictor.model.pyramid.register_forward_pre_hook(lambda *_: self._stop_if_asked())  # before each image
        metrics, _ = evaluate(predictor, self.val_set, workers=self.data.workers)
        scores = {name: (metrics["proposals"] | metrics["bbox"])[name] for name in SCORES}  # AR100 is of detections
        val_loss = self._val_loss(predictor)
        self.metrics.write(self.step, {"epoch": epoch, "val_loss": val_loss, **scores})
        shown = "  ".join(f"{name} {value:.3f}" for name, value in scores.items())
        log.info("epoch %d/%d: val loss %.3f  %s", epoch, self.recipe.epochs, val_loss, shown)
        if scores[self.criterion] > self.best:
            self.best = scores[self.criterion]
            self._save("best.pth", with_state=False)

    @torch.no_grad()
    def _val_loss(self, predictor: Predictor) -> float:
        """Mean loss of a val image, with the same random samples each time; the training's random numbers do not move."""
        self.model.eval()
        total = 0.0
        with torch.random.fork_rng():
            torch.manual_seed(self.recipe.seed)
            for i in range(len(self.val_set)):
                self._stop_if_asked()
                image, target, _ = self.val_set[i]
                small, target = predictor.resize(image, target)
                total += float(sum(self.model([small], [target]).values()))
        self.model.train()
        return total / len(self.val_set)

    def _save(self, name: str, *, with_state: bool = True) -> None:
        state = {
            "step": self.step, "epoch": self.epoch, "steps_per_epoch": self.steps_per_epoch, "best": self.best,
            "optimizer": self.optimizer.state_dict(), "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }  # fmt: skip
        save_checkpoint(
            self.output / name,
            model=self.model,
            config=self.config,
            class_names=self.train_set.class_names,
            category_ids=self.train_set.category_ids,
            training=state if with_state else {"step": self.step, "best": self.best},
        )
        self.saved_at, self.saved_step = time.monotonic(), self.step


def memory_mib(device: torch.device) -> float:
    """Peak memory: of the GPU's allocator, or of this process; NaN where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
